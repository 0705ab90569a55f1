"""Tests keep compiled kernels, and choices that were tuned, apart from those of the user."""

import os
import tempfile

from rnnjit.codecache import DIRECTORY_VARIABLE


def pytest_configure(config):
    made = tempfile.TemporaryDirectory(prefix="rnnjit-tests-")
    config.add_cleanup(made.cleanup)
    os.environ[DIRECTORY_VARIABLE] = made.name
