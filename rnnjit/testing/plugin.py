"""The kit's pytest plugin: `--rnnjit-quick`. Every pytest run imports it, so it imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_MARKER = "rnnjit_thorough"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that leaves only the quick subset of the kit."""
    parser.getgroup("rnnjit").addoption(
        "--rnnjit-quick",
        action="store_true",
        help="of rnnjit's conformance kit, run only the quick subset",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the kit's other tests."""
    config.addinivalue_line(
        "markers", f"{_MARKER}: a test of rnnjit's conformance kit beyond its quick subset"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is not in the quick subset, if only that was asked for."""
    if not config.getoption("--rnnjit-quick"):
        return
    left_out = [item for item in items if item.get_closest_marker(_MARKER)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(_MARKER)]
