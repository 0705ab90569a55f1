"""Protects the pytest-benchmark suites: the name of their results file, and its content."""

import json
import os
import subprocess
import sys

import pytest
import torch
from folders import ROOT
from suites.host import slug


@pytest.mark.parametrize(
    ("cpu", "threads", "expected"),
    [
        ("AMD EPYC 9B14", 2, "amd-epyc-9b14-2-threads"),
        ("AMD EPYC 7763 64-Core Processor", 1, "amd-epyc-7763-1-thread"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", 96, "intel-xeon-2-20ghz-96-threads"),
        ("../é\n", 4, "unknown-4-threads"),
    ],
)
def test_results_are_named_by_processor_and_threads(cpu, threads, expected):
    assert slug(cpu, threads) == expected


def test_the_file_of_results_says_what_was_run_where_but_names_no_host(tmp_path):
    file = tmp_path / "results.json"
    flags = ("--benchmark-enable", f"--benchmark-json={file}")
    chosen = "benchmarks/suites", "-k", "forward-T5-B32-I10-H20-float32-eager"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *flags],
        cwd=ROOT,
        # pytest-benchmark times nothing in a worker of pytest-xdist, which this is none of.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(file.read_text())
    assert not {"node", "release"} & set(found["machine_info"])
    assert found["machine_info"]["versions"]["torch"] == torch.__version__
    (result,) = found["benchmarks"]
    assert result["group"] == "forward, T=5 B=32 I=10 H=20, float32"
    info = result["extra_info"]
    assert (info["backend"], info["flops"]) == ("eager", 2 * 5 * 32 * 20 * 30)
    peak = next(p for p in found["machine_info"]["peaks"] if p["dtype"] == "float32")
    speed = info["flops"] / result["stats"]["median"]
    assert info["share_of_peak"] == pytest.approx(speed / peak["flops"])
