"""What is run, by whom, and what is written of the machine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from rnnjit.bench.machine import measure_machine
from rnnjit.bench.records import Machine
from rnnjit.info import environment
from suites.contestants import contestants
from suites.timed import Timed

_MEASURED = pytest.StashKey[Machine]()


def _enabled(config: pytest.Config) -> bool:
    return config.getoption("benchmark_enable") or not config.getoption("benchmark_disable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the file by every contestant; the first case alone where nothing is timed."""
    enabled = _enabled(metafunc.config)
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES if enabled else metafunc.module.CASES[:1]
        metafunc.parametrize("case", cases, ids=name_of)
    if "cache" in metafunc.fixturenames:
        pairs = metafunc.module.pairs(timing=enabled)
        metafunc.parametrize(("contestant", "cache"), pairs)
    elif "contestant" in metafunc.fixturenames:
        metafunc.parametrize("contestant", contestants())


def pytest_itemcollected(item: pytest.Item) -> None:
    """A call whose values are wrong is not timed: that is one failure and not two."""
    item.add_marker(pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"))


def name_of(case: Any) -> str:
    """A case in a test's id and in the name of its group."""
    return f"T{case.T}-B{case.B}-I{case.I}-H{case.H}-{case.dtype}"


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Machine | None:
    """What this machine does at most; None where nothing is timed."""
    if not _enabled(pytestconfig):
        return None
    pytestconfig.stash[_MEASURED] = measured = measure_machine(
        {torch.get_num_threads()}, quick=True
    )
    return measured


@pytest.fixture
def timed(benchmark: Any, machine: Machine | None) -> Timed:
    """What checks, times and describes one call."""
    return Timed(benchmark, machine)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """The versions at work and the peaks, but not the machine's name in its network."""
    for name in ("node", "release"):
        machine_info.pop(name, None)
    here = environment()
    machine_info.update(versions=here.versions, threads=here.threads, cpus=here.cpus)
    measured = config.stash.get(_MEASURED, None)
    if measured is not None:
        machine_info["isa"] = measured.isa
        machine_info["peaks"] = msgspec.to_builtins(measured.peaks)
        machine_info["bandwidths"] = msgspec.to_builtins(measured.bandwidths)


def pytest_benchmark_update_commit_info(commit_info: dict) -> None:
    """The commit, whatever the folder and the branch are called where it was measured."""
    commit_info["project"] = "rnnjit"
    commit_info.pop("branch", None)


def pytest_benchmark_update_json(output_json: dict) -> None:
    """Quantiles are kept, and not thousands of single times; the case is in `extra_info`."""
    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)
        each["params"] = {k: v for k, v in each["params"].items() if k != "case"}
