"""Protects training in two gloo processes: as one eager process on the whole batch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from covered import in_full
from eager_pair import CLOSE
from folders import ROOT, SUPPORT
from layer_kinds import KINDS
from trained_pair import Tagger, batch, loss_of

import rnnjit

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)
WORKER = Path(__file__).parent / "distributed_worker.py"
EXAMPLE = ROOT / "examples" / "ddp_digits.py"
SECONDS = 240
STEPS = 3
# gloo asks for the address of the machine's own name where it is not told an interface.
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def both(way, kind, folder):
    """What each of two processes wrote."""
    results = [folder / f"{rank}.pt" for rank in range(2)]
    path = {"PYTHONPATH": str(SUPPORT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", WORKER, way, kind, str(rank), folder / "store", result],
            env=ENVIRONMENT | path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, result in enumerate(results)
    ]
    try:
        printed = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    return [torch.load(result, weights_only=True) for result in results]


def alone(make):
    """The same training by eager, in one process, on whole batches."""
    torch.manual_seed(0)
    model = Tagger(make).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, batch(step)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        optimizer.step()
    return gradients, {name: p.detach() for name, p in model.named_parameters()}


def torchrun(*flags):
    """Run the example as its page says, on addresses of this machine alone."""
    launch = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(*launch, "--local-addr", "127.0.0.1", EXAMPLE, *flags),
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=SECONDS,
    )


WAYS = {
    "ddp": ["plain", "static graph", "bucket views", "unused parameters", "accumulated"],
    "fsdp": ["whole", "modules", "kept"],
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("projected", "ddp"),
        *in_full(["RNN", "GRU"], ["ddp"]),
        *in_full(["LSTM", "projected"], ["fsdp"]),
    ],
)
def test_two_processes_train_as_one_on_the_whole_batch(kind, way, tmp_path):
    expected = alone(KINDS[kind])
    compiled = rnnjit.compile(Tagger(KINDS[kind]).double())
    backend = rnnjit.explain(compiled, batch(0)).calls[0].chosen
    for results in both(way, kind, tmp_path):
        assert list(results) == WAYS[way]
        for gradients, final, ranges in results.values():
            torch.testing.assert_close(gradients, expected[0], **CLOSE)
            torch.testing.assert_close(final, expected[1], **CLOSE)
            assert ranges == [f"rnnjit: layer {index} on {backend}" for index in range(2)]


@pytest.mark.full
def test_torchrun_trains_the_example():
    done = torchrun("--epochs", "15")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks, 16 of 32 images of a batch each" in done.stdout
    assert "weights equal on all ranks: yes" in done.stdout
    difference = re.search(r"one eager process: (\S+)", done.stdout)
    assert float(difference[1]) < 1e-3
    assert float(re.search(r"accuracy: ([\d.]+)%", done.stdout)[1]) > 95


def test_the_command_on_the_page_is_the_examples_own():
    (command,) = re.findall(r"torchrun .*ddp_digits.py", EXAMPLE.read_text())
    assert command in (ROOT / "docs" / "examples.md").read_text()


@pytest.mark.full
def test_the_example_without_torchrun_says_how_to_run_it():
    done = subprocess.run(
        [sys.executable, EXAMPLE], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 2
    assert "torchrun --standalone --nproc-per-node 2" in done.stderr
    assert "Traceback" not in done.stderr
