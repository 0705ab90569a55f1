"""Programs in processes of their own: there a hang is a failure, with the stacks of all threads."""

from __future__ import annotations

import os
import subprocess
import sys

from folders import SUPPORT

#: Far beyond what a program takes, on a busy machine too.
SECONDS = 240
_PRELUDE = f"""
import faulthandler
faulthandler.dump_traceback_later({SECONDS}, exit=True)
from crowds import *
"""


def program(source, *arguments, prefix=(), **environment):
    """Run Python source, which finds what `crowds` has, and return the finished process."""
    path = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", _PRELUDE + source, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )


def assert_well(done, said=""):
    """The program ended by itself, said what it should, and nothing else."""
    found = (done.returncode, done.stdout.strip(), done.stderr.strip())
    assert found == (0, said, ""), f"{done.args[5:]}: {found[:2]}\n{done.stderr}"
