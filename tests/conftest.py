import onednn
import pytest
from fuzzing import anew
from hypothesis import HealthCheck, settings

from rnnjit import Backend
from rnnjit.testing import run

pytest_plugins = ["pytester"]
# For type checkers to read, not to be run.
collect_ignore = ["project/typing_client", "support"]

# A slow or busy machine is no finding.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("rnnjit", derandomize=True, database=None, **PATIENT)
# What it finds is kept in .hypothesis, and printed as a blob to paste.
settings.register_profile("fuzz", derandomize=False, print_blob=True, **PATIENT)
settings.load_profile("fuzz" if anew() else "rnnjit")


@pytest.fixture
def failed_checks():
    """The names of the checks that a broken backend fails in the quick subset of the kit."""

    def failed(backend):
        report = run(backend, quick=True)
        assert not report.ok
        return {result.check for result in report.failures}

    return failed


@pytest.fixture
def onednn_where_it_runs():
    """Torch's own nn.LSTM runs under autocast on every processor."""
    with onednn.where_it_runs():
        yield


def pytest_make_parametrize_id(config, val, argname):
    """Backends are called by their classes, where a test does not say otherwise."""
    return type(val).__name__ if isinstance(val, Backend) else None
