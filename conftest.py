"""Tests keep compiled kernels, and choices that were tuned, apart from those of the user."""

import os
import signal
import tempfile

from rnnjit.runtime.object_cache import DIRECTORY_VARIABLE


def pytest_configure(config):
    made = tempfile.TemporaryDirectory(prefix="rnnjit-tests-")
    config.add_cleanup(made.cleanup)
    os.environ[DIRECTORY_VARIABLE] = made.name
    # A shell has Ctrl-C ignored by what it runs in the background, and so by all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
