"""The cases and contestants of the suites, and the facts of the machine that results contain."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import pytest
import torch
from covered import in_full, in_turn

import rnnjit
from rnnjit.bench.contestants import contestants
from rnnjit.bench.machine import measure_machine
from rnnjit.bench.records import Case, Machine
from rnnjit.bench.report.results import extras, layer_words
from rnnjit.dispatch.registry import lacking
from rnnjit.tools.environment import environment

_MEASURED = pytest.StashKey[Machine]()


def _enabled(config: pytest.Config) -> bool:
    return config.getoption("benchmark_enable") or not config.getoption("benchmark_disable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case on eager and every CPU backend.

    If nothing is timed, only each suite's first, on one of them in `make test`; a process from its
    start is for `make test-all`.
    """
    enabled = _enabled(metafunc.config)
    taking = [each for each in contestants() if each.kind != "peer" and _runs_here(each.name)]
    if "cache" in metafunc.fixturenames:
        if not enabled:  # others take long
            taking = [each for each in taking if each.name in ("eager", "numba")]
        first, values = "cache", ["empty", "filled"] if enabled else ["filled"]
    else:
        suites = metafunc.module.SUITES
        first = "case"
        values = [case for suite in suites for case in (suite if enabled else suite[:1])]
    # Marked only where nothing is timed: `make bench` runs all.
    rows = product if enabled else in_full if first == "cache" else in_turn
    metafunc.parametrize((first, "contestant"), list(rows(values, taking)), ids=_id)


def _id(value: Any) -> str:
    if isinstance(value, Case):
        return name_of(value)
    return value if isinstance(value, str) else value.name


def _runs_here(name: str) -> bool:
    backend = rnnjit.backends()[name]
    return not lacking(backend) and "cpu" in (backend.devices or ("cpu",))


def name_of(case: Case) -> str:
    """The name of a case in a test's id."""
    kind = [*layer_words(case.cell), case.dtype, *extras(case)]
    sizes = f"T{case.T}-B{case.B}-I{case.I}-H{case.H}"
    return "-".join([case.mode, sizes, *kind]).replace(" ", "-")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Ignore unused benchmark fixtures: a call with wrong values is not timed, and fails once."""
    item.add_marker(pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"))


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    """Restore the number of threads and autograd's mode, which contestants set."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Machine | None:
    """The peaks of the machine; None if nothing is timed."""
    if not _enabled(pytestconfig):
        return None
    pytestconfig.stash[_MEASURED] = measured = measure_machine(
        {torch.get_num_threads()}, quick=True
    )
    return measured


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Write the versions in use and the peaks, but not the machine's host name."""
    for name in ("node", "release"):
        machine_info.pop(name, None)
    here = environment()
    machine_info.update(versions=here.versions, threads=here.threads, cpus=here.cpus)
    measured = config.stash.get(_MEASURED, None)
    if measured is not None:
        found = msgspec.to_builtins(measured)
        machine_info.update({name: found[name] for name in ("isa", "peaks", "bandwidths")})


def pytest_benchmark_update_commit_info(commit_info: dict) -> None:
    """Write the commit, but not the names of the folder and the branch."""
    commit_info["project"] = "rnnjit"
    commit_info.pop("branch", None)


def pytest_benchmark_update_json(output_json: dict) -> None:
    """Keep quantiles instead of thousands of single times; the case is in `extra_info`."""
    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)
        each["params"] = {"contestant": each["extra_info"]["backend"]}
