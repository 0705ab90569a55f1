"""Protects the documentation: it builds without a warning, and describes all public names."""

import subprocess
import sys

from folders import ROOT

import rnnjit


def test_it_builds_and_misses_nothing(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    described = {name for name in rnnjit.__all__ for page in pages if f'id="rnnjit.{name}"' in page}
    assert set(rnnjit.__all__) - described == {"__version__"}
