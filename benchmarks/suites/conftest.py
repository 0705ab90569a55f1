"""What is run by whom, and what is written of the machine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

import rnnjit
from rnnjit.bench.contestants import contestants
from rnnjit.bench.machine import measure_machine
from rnnjit.bench.records import Case, Machine
from rnnjit.dispatch.registry import lacking
from rnnjit.tools.environment import environment

_MEASURED = pytest.StashKey[Machine]()


def _enabled(config: pytest.Config) -> bool:
    return config.getoption("benchmark_enable") or not config.getoption("benchmark_disable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case by eager and every backend for CPUs; each suite's first where nothing is timed."""
    enabled = _enabled(metafunc.config)
    taking = [each for each in contestants() if each.kind != "peer" and _runs_here(each.name)]
    if "cache" in metafunc.fixturenames:
        if not enabled:  # others take long
            taking = [each for each in taking if each.name in ("eager", "numba")]
        caches = ("empty", "filled") if enabled else ("filled",)
        metafunc.parametrize("cache", caches)
    else:
        suites = metafunc.module.SUITES
        cases = [case for suite in suites for case in (suite if enabled else suite[:1])]
        metafunc.parametrize("case", cases, ids=name_of)
    metafunc.parametrize("contestant", taking, ids=lambda each: each.name)


def _runs_here(name: str) -> bool:
    backend = rnnjit.backends()[name]
    return not lacking(backend) and "cpu" in (backend.devices or ("cpu",))


def name_of(case: Case) -> str:
    """A case in a test's id."""
    kind = f"{case.dtype}{'-packed' if case.packed else ''}"
    return f"{case.mode}-T{case.T}-B{case.B}-I{case.I}-H{case.H}-{kind}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """A call whose values are wrong is not timed: that is one failure and not two."""
    item.add_marker(pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"))


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    """Contestants set threads and autograd for a process of their own."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Machine | None:
    """What this machine does at most; None where nothing is timed."""
    if not _enabled(pytestconfig):
        return None
    pytestconfig.stash[_MEASURED] = measured = measure_machine(
        {torch.get_num_threads()}, quick=True
    )
    return measured


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """The versions at work and the peaks, but not the machine's name in its network."""
    for name in ("node", "release"):
        machine_info.pop(name, None)
    here = environment()
    machine_info.update(versions=here.versions, threads=here.threads, cpus=here.cpus)
    measured = config.stash.get(_MEASURED, None)
    if measured is not None:
        found = msgspec.to_builtins(measured)
        machine_info.update({name: found[name] for name in ("isa", "peaks", "bandwidths")})


def pytest_benchmark_update_commit_info(commit_info: dict) -> None:
    """The commit, whatever the folder and the branch are called where it was measured."""
    commit_info["project"] = "rnnjit"
    commit_info.pop("branch", None)


def pytest_benchmark_update_json(output_json: dict) -> None:
    """Quantiles are kept, and not thousands of single times; the case is in `extra_info`."""
    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)
        each["params"] = {"contestant": each["extra_info"]["backend"]}
