"""Protects the specs of layers and stacks: shapes, identity, copies."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rnnjit.frontend.capture import capture, torch_module
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec
from rnnjit.spec import LayerSpec, RNNSpec

STACKS = [
    RNNSpec(3, 5),
    RNNSpec(3, 5, 2, RNN_RELU, bias=False, bidirectional=True),
    RNNSpec(3, 5, 3, LSTM, batch_first=True, dropout=0.5),
    RNNSpec(3, 5, 2, LSTM, bidirectional=True, proj_size=2),
    RNNSpec(3, 5, 1, LSTM, bias=False, proj_size=4),
    RNNSpec(3, 5, 2, GRU, bidirectional=True),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("spec", STACKS, ids=lambda spec: spec.cell.name)
def test_shapes_are_those_of_torch_s_own_layer(spec):
    module = torch_module(spec, torch.float32)
    assert capture(module) == spec
    assert list(spec.weight_shapes) == [weight.shape for weight in module.parameters()]
    assert [
        shape for layer in spec.layers for shape in layer.weight_shapes * spec.num_directions
    ] == [*spec.weight_shapes]
    y, last = module(torch.zeros(2, 4, 3))
    states = last if isinstance(last, tuple) else (last,)
    assert [tuple(state.shape) for state in states] == [
        shape if not spec.batch_first else (shape[0], 2, shape[2]) for shape in spec.state_shapes(4)
    ]
    for layer in spec.layers:
        assert layer.weights_per_direction == len(layer.weight_shapes)
        assert layer.state_sizes == tuple(shape[2] for shape in spec.state_shapes(4))
        assert y.shape[2] == spec.num_directions * layer.output_size


def test_parameters_of_a_cell_come_last():
    leaky = CellSpec.trace(
        lambda zx, zh, h, tau: [h + tau * (zx[0] + zh[0] - h)] * 2,
        name="leaky",
        gates=["z"],
        states=["h"],
        parameters=["tau"],
    )
    layer = LayerSpec(leaky, 2, 3, 1, bias=True)
    assert layer.weight_shapes == ((3, 2), (3, 3), (3,), (3,), (3,))
    assert layer.weights_per_direction == 5


def test_what_is_equal_is_one_key():
    layer, other = (RNNSpec(3, 5, 2, LSTM, proj_size=2).layer(1) for _ in range(2))
    assert layer is not other
    assert {layer: 1}[other] == 1
    for name, value in {
        "cell": RNN_TANH,
        "input_size": 4,
        "hidden_size": 4,
        "num_directions": 2,
        "bias": False,
        "proj_size": 0,
    }.items():
        changed = replace(layer, **{name: value})
        assert changed != layer
        assert changed not in {layer}


@pytest.mark.parametrize("spec", STACKS, ids=lambda spec: spec.cell.name)
def test_copies_are_equal(spec):
    hash(spec.layer(0))
    for again in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert again == spec
        assert again.layers == spec.layers
        assert again.weight_shapes == spec.weight_shapes
        assert {spec: 1, spec.layer(0): 2}[again.layer(0)] == 2


def test_a_pickle_is_a_key_in_another_process():
    spec = STACKS[3]
    hash(spec), hash(spec.layer(0))
    code = (
        "import pickle, sys\n"
        "from rnnjit.ir import LSTM\n"
        "from rnnjit.spec import RNNSpec\n"
        "read = pickle.loads(sys.stdin.buffer.read())\n"
        "own = RNNSpec(3, 5, 2, LSTM, bidirectional=True, proj_size=2)\n"
        "assert {own: 1}[read] == {own.layer(0): 1}[read.layer(0)] == 1\n"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(spec),
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            timeout=300,
        )
