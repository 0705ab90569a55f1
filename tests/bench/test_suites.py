"""What the pytest-benchmark suites share: names, shares, memory, and the judging of values."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from measures.pairs import Shape
from suites.cases import cases, for_kit
from suites.host import slug
from suites.memory import peak_growth
from suites.passes import backward, forward, streaming_step, training_step
from suites.timed import check, shares
from torch import nn

import rnnjit
from rnnjit.bench.records import Bandwidth, Case, Machine, Peak
from rnnjit.testing.calls import build

ROOT = Path(__file__).parents[2]
MACHINE = Machine(
    cpu="made up",
    system="none",
    cpus=2,
    isa="avx2",
    peaks=(Peak(dtype="float32", threads=2, flops=200e9),),
    bandwidths=(Bandwidth(level="memory", threads=2, capacity=0, rate=10e9),),
)
PASSES = [forward, backward, training_step, streaming_step]


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


def test_shares_by_hand():
    case = Case(T=100, B=64, I=512, H=512, threads=2)
    flops = 2 * 100 * 64 * 512 * 1024
    found = shares(case, 2 * flops / 200e9, MACHINE)
    read = (100 * 512 * 512 * 4 + 100 * 64 * 1024 * 4) / 10e9
    assert found.pop("share_of_bound") == pytest.approx(max(read, flops / 200e9) / (flops / 100e9))
    assert found == {"flops": flops, "share_of_peak": pytest.approx(0.5), "bound": "compute"}


def test_a_part_of_a_case_has_a_share_of_the_peak_but_no_roofline():
    found = shares(Case(T=9, B=9, I=9, H=9, threads=2), 1.0, MACHINE, flops=50e9)
    nothing = {"bound": None, "share_of_bound": None}
    assert found == {"flops": 50e9, "share_of_peak": 0.25, **nothing}
    unknown = shares(Case(T=1, B=1, I=1, H=1, threads=3), 1.0, MACHINE)
    assert unknown == {"flops": 4.0, "share_of_peak": None, **nothing}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an earlier peak")
def test_peak_memory_is_what_a_call_takes_even_where_it_was_taken_before():
    def call():
        blocks = [torch.ones(1 << 16) for _ in range(256)]  # 64 MiB in blocks that malloc keeps
        del blocks[:]

    call()
    for _ in range(2):
        assert 60 << 20 < peak_growth(call) < 80 << 20
    assert peak_growth(lambda: None) < 1 << 20


class Inexact(nn.RNN):
    """A thousandth off."""

    def forward(self, x, h0):
        y, h_n = super().forward(x, h0)
        return y * 1.001, h_n * 1.001


@pytest.mark.parametrize("prepare", PASSES)
def test_values_are_judged_and_left_as_they_were(prepare):
    (case,) = cases("training", (Shape(6, 3, 4, 5),))
    call = build(for_kit(case))
    before = [weight.detach().clone() for weight in call.module.parameters()]
    check(prepare, prepare(rnnjit.compile(call.module), call), for_kit(case))
    for weight, old in zip(call.module.parameters(), before, strict=True):
        assert torch.equal(weight, old)
    wrong = Inexact(4, 5)
    wrong.load_state_dict(call.module.state_dict())
    with pytest.raises(AssertionError, match="is off by"):
        check(prepare, prepare(wrong, call), for_kit(case))


def test_a_step_of_training_moves_the_weights_down_their_gradients():
    (case,) = cases("training", (Shape(6, 3, 4, 5),), "float64", packed=True)
    call = build(for_kit(case))
    before = {name: weight.detach().clone() for name, weight in call.module.named_parameters()}
    ready = training_step(call.module, call)
    values = ready.values()
    ready.run()
    for name, weight in call.module.named_parameters():
        moved = before[name] - 0.01 * values[f"the gradient of {name}"]
        torch.testing.assert_close(weight.detach(), moved)
        torch.testing.assert_close(values[f"{name} after it"], moved)


def test_the_file_of_results_says_what_was_run_where_but_names_no_host(tmp_path):
    file = tmp_path / "results.json"
    flags = ("--benchmark-enable", "--benchmark-max-time=0.01", f"--benchmark-json={file}")
    chosen = "benchmarks/suites/test_forward.py", "-k", "T5-B32 and float32 and nn.RNN"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *flags],
        cwd=ROOT,
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
    assert (info["backend"], info["flops"]) == ("nn.RNN", 2 * 5 * 32 * 20 * 30)
    peak = next(p for p in found["machine_info"]["peaks"] if p["dtype"] == "float32")
    speed = info["flops"] / result["stats"]["median"]
    assert info["share_of_peak"] == pytest.approx(speed / peak["flops"])
