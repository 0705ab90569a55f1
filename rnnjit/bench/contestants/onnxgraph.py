"""A case as an ONNX model: a graph of ONNX's own `RNN` operators, one for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnjit.bench.arrays import suffixes
from rnnjit.bench.contestant import Array, Arrays
from rnnjit.bench.records import Case

# The oldest that have all the operators: whatever reads ONNX reads them.
_OPSET, _IR_VERSION = 14, 7


def model(case: Case, arrays: Arrays) -> bytes:
    """The serialised model of a call.

    Its inputs are x `[T, B, I]`, h0 `[L*D, B, H]` and, of a packed case, lengths (int32 `[B]`); its
    outputs y `[T, B, D*H]` and h_n `[L*D, B, H]`. Shapes are fixed, weights are in it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    directions, steps = (2 if case.bidirectional else 1), case.T
    states = case.layers * directions
    constants = {
        "rows": np.array([steps, case.B, directions * case.H]),
        "split": np.full(case.layers, directions),
    }
    nodes = [helper.make_node("Split", ["h0", "split"], _names("h0", case.layers), axis=0)]
    for layer in range(case.layers):
        constants.update(_weights(case, arrays, layer))
        nodes += _layer(case, layer)
    nodes.append(helper.make_node("Concat", _names("h_n", case.layers), ["h_n"], axis=0))

    def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    state = (states, case.B, case.H)
    inputs = [value("x", steps, case.B, case.I), value("h0", *state)]
    if case.packed:
        inputs.append(value("lengths", case.B, kind=TensorProto.INT32))
    outputs = [value("y", steps, case.B, directions * case.H), value("h_n", *state)]
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "rnn", inputs, outputs, initial)
    opsets = [helper.make_opsetid("", _OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _names(name: str, layers: int) -> list[str]:
    return [f"{name} {layer}" for layer in range(layers)]


def _weights(case: Case, arrays: Arrays, layer: int) -> dict[str, Array]:
    """A layer's constants: of every direction, stacked."""

    def stacked(*parts: str) -> Array:
        rows = [
            np.concatenate([arrays.weights[f"{part}_{suffix}"] for part in parts])
            for suffix in suffixes(case, layer)
        ]
        return np.stack(rows)

    return {
        f"w_ih {layer}": stacked("weight_ih"),
        f"w_hh {layer}": stacked("weight_hh"),
        f"bias {layer}": stacked("bias_ih", "bias_hh"),
    }


def _layer(case: Case, layer: int) -> Sequence[Any]:
    """The operator, whose y is `[T, D, B, H]`, and what lays that out as `[T, B, D*H]`."""
    from onnx import helper

    directions = 2 if case.bidirectional else 1
    x = "x" if layer == 0 else f"y {layer - 1}"
    y = "y" if layer == case.layers - 1 else f"y {layer}"
    weights = [f"{name} {layer}" for name in ("w_ih", "w_hh", "bias")]
    rnn = helper.make_node(
        "RNN",
        [x, *weights, "lengths" if case.packed else "", f"h0 {layer}"],
        [f"by direction {layer}", f"h_n {layer}"],
        hidden_size=case.H,
        direction="bidirectional" if case.bidirectional else "forward",
        activations=[case.nonlinearity.capitalize()] * directions,
    )
    if directions == 1:
        return rnn, helper.make_node("Reshape", [f"by direction {layer}", "rows"], [y])
    turned = f"turned {layer}"
    return (
        rnn,
        helper.make_node("Transpose", [f"by direction {layer}"], [turned], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [turned, "rows"], [y]),
    )


def feeds(arrays: Arrays) -> dict[str, Any]:
    """The model's inputs by name."""
    found: dict[str, Any] = {"x": arrays.x, "h0": arrays.h0}
    if arrays.lengths is not None:
        found["lengths"] = arrays.lengths.astype(np.int32)
    return found
