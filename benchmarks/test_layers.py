"""One call to an nn.RNN on every available backend, under pytest-benchmark.

    python -m pytest benchmarks --benchmark-enable --benchmark-group-by=group

Each group is one shape and one pass; `nn.RNN` is PyTorch's own layer. For figures to be quoted use
`eager_ratio.py`, which takes its samples in turns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit import RNNSpec
from rnnjit.bench import random_call

EAGER = "nn.RNN"
BACKENDS = (EAGER, *(name for name, backend in rnnjit.backends().items() if not backend.missing()))
SHAPES = (
    (5, 32, 10, 20),
    (100, 1, 64, 64),
    (100, 8, 128, 256),
    (100, 32, 128, 256),
    (100, 64, 512, 512),
    (1000, 16, 64, 128),
)


@pytest.fixture(params=SHAPES, ids=lambda shape: "T{}-B{}-I{}-H{}".format(*shape))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    """(T, B, I, H) of the call."""
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
def test_layer(benchmark: Any, shape: tuple[int, int, int, int], passes: str, backend: str) -> None:
    """Time one pass, and see that it gave what such a pass gives."""
    T, B, I, H = shape
    benchmark.group = f"{passes} T={T} B={B} I={I} H={H}"
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    module = rnn if backend == EAGER else rnnjit.compile(rnn, backend=backend)
    call = random_call(RNNSpec(I, H), T, B)
    if passes == "forward":
        module.eval()
        with torch.no_grad():
            y, h_n = benchmark(call.outputs, module)
        torch.testing.assert_close(y[-1], h_n[0])
    else:
        gradients = benchmark(call.gradients, module)
        assert [g.shape for g in gradients[2:]] == [p.shape for p in rnn.parameters()]
