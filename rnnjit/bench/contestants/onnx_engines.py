"""onnxruntime and OpenVINO, on a graph with one ONNX `RNN`, `LSTM` or `GRU` for each layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from rnnjit.bench.arrays import Array, Arrays, in_float32, stored, suffixes
from rnnjit.bench.contestants.base import Contestant, Ready, streaming
from rnnjit.bench.kinds import KINDS, kind_of
from rnnjit.bench.records import Case

#: A function from the model's inputs, by name, to y and the last states.
Infer = Callable[[Mapping[str, Any]], tuple[Array, ...]]

# The oldest versions that have all operators, for the widest support by engines.
_OPSET, _IR_VERSION = 14, 7


class _Engine(Contestant):
    """Runs the graph of a case, forward only.

    Its tensors are float32. An engine may compute in another dtype, to which the numbers of such a
    case are rounded already.

    Class attributes:
        dtypes: of the cases that it computes.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def declines(self, case: Case) -> str:
        """Declines training, and dtypes and projections that the operators do not support."""
        if case.trains:
            return "it only infers: there is no backward pass"
        if case.dtype == "int8" and self.quantizes and kind_of(case).layer != "LSTM":
            layer = kind_of(case).layer
            return f"its quantize_dynamic leaves {layer} in float32: LSTM is all that it quantizes"
        if case.dtype not in self.dtypes:
            return f"its {kind_of(case).layer} is written for float32, not {case.dtype}"
        if case.proj_size:
            return "the ONNX operator has no projection"
        return super().declines(case)

    @abstractmethod
    def load(self, model: bytes, outputs: Sequence[str], case: Case, copy: bool) -> Infer:
        """Load a model.

        Args:
            model: the serialised model.
            outputs: the names of its outputs.
            case: how many threads it may use, and the dtype to compute in.
            copy: whether the results must stay valid after the next call.
        """

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The loaded model with its inputs; its results are rounded to the case's dtype."""
        ready = self._prepared(case, in_float32(arrays))

        def results() -> Mapping[str, Array]:
            return {name: stored(each, case.dtype) for name, each in ready.results().items()}

        return ready._replace(results=results)

    def _prepared(self, case: Case, arrays: Arrays) -> Ready:
        stream, states = case.mode == "streaming", kind_of(case).states
        outputs = ("y", *(f"{name}_n" for name in states))
        # A step must not write its states to the memory from which it reads them.
        infer = self.load(_model(case, arrays), outputs, case, copy=stream)

        def given(x: Array, hx: Sequence[Array]) -> dict[str, Any]:
            return {"x": x} | {f"{name}0": state for name, state in zip(states, hx, strict=True)}

        if stream:
            frames = list(arrays.x[:, None])
            return streaming(frames, arrays.hx, states, lambda x, hx: infer(given(x, hx)))
        feeds = given(arrays.x, arrays.hx)
        if arrays.lengths is not None:
            feeds["lengths"] = arrays.lengths.astype(np.int32)

        def results() -> Mapping[str, Array]:
            return dict(zip(outputs, map(np.array, infer(feeds)), strict=True))

        return Ready(lambda: infer(feeds), results)


class Onnxruntime(_Engine):
    """An InferenceSession with default settings, except for the number of threads.

    In int8 it runs what `onnxruntime.quantization.quantize_dynamic` makes of the model.
    """

    name = title = "onnxruntime"
    packages = ("onnx", "onnxruntime")
    dtypes = ("float32", "int8")
    quantizes = True

    def load(self, model: bytes, outputs: Sequence[str], case: Case, copy: bool) -> Infer:
        """Create a session, which allocates new results in every call."""
        import onnxruntime

        if case.dtype == "int8":
            model = _quantized(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(model, options, providers=providers)
        return lambda feeds: tuple(session.run(outputs, feeds))


class Openvino(_Engine):
    """One inference request on the CPU, optimised for latency, computed in the case's dtype."""

    name = "openvino"
    title = "OpenVINO"
    packages = ("onnx", "openvino")
    dtypes = ("float32", "bfloat16")

    def load(self, model: bytes, outputs: Sequence[str], case: Case, copy: bool) -> Infer:
        """Create a request; without `copy` its results share the memory of the request."""
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": case.threads,
            "INFERENCE_PRECISION_HINT": "f32" if case.dtype == "float32" else "bf16",
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

        def infer(feeds: Mapping[str, Any]) -> tuple[Array, ...]:
            found = request.infer(feeds, share_inputs=True, share_outputs=not copy)
            return tuple([found[name] for name in outputs])

        return infer


def _quantized(model: bytes) -> bytes:
    """The model with int8 matrices, by onnxruntime's defaults but for `reduce_range`.

    Without it sums of two products overflow 16 bits on processors with AVX2 or AVX-512 but no VNNI.

    Raises:
        RuntimeError: it left an operator in float32.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        quantize_dynamic(onnx.load_from_string(model), path, reduce_range=True)
        found = path.read_bytes()
    left = [node.op_type for node in onnx.load_from_string(found).graph.node]
    if any(kind.layer in left for kind in KINDS.values()):
        raise RuntimeError(f"quantize_dynamic left an operator in float32: {', '.join(left)}")
    return found


def _model(case: Case, arrays: Arrays) -> bytes:
    """The serialised model of a call.

    Its inputs are x `[T, B, I]`, h0 `[L*D, B, H]` (and c0) and, if the case is packed, lengths
    (int32 `[B]`); its outputs are y `[T, B, D*H]` and h_n `[L*D, B, H]` (and c_n). Shapes are
    fixed, and the weights are constants of the model.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    directions, steps, states = case.directions, case.T, kind_of(case).states
    constants = {
        "rows": np.array([steps, case.B, directions * case.H]),
        "split": np.full(case.layers, directions),
    }
    nodes = [
        helper.make_node("Split", [f"{name}0", "split"], _names(f"{name}0", case.layers), axis=0)
        for name in states
    ]
    for layer in range(case.layers):
        constants.update(_weights(case, arrays, layer))
        nodes += _layer(case, layer)
    for name in (f"{name}_n" for name in states):
        nodes.append(helper.make_node("Concat", _names(name, case.layers), [name], axis=0))

    def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    state = (case.layers * directions, case.B, case.H)
    inputs = [value("x", steps, case.B, case.I), *(value(f"{name}0", *state) for name in states)]
    if case.packed:
        inputs.append(value("lengths", case.B, kind=TensorProto.INT32))
    outputs = [value("y", steps, case.B, directions * case.H)]
    outputs += [value(f"{name}_n", *state) for name in states]
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "rnn", inputs, outputs, initial)
    opsets = [helper.make_opsetid("", _OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _names(name: str, layers: int) -> list[str]:
    return [f"{name} {layer}" for layer in range(layers)]


def _weights(case: Case, arrays: Arrays, layer: int) -> dict[str, Array]:
    """A layer's constants, with the directions stacked and the gates in the operator's order."""
    kind = kind_of(case)

    def gates(name: str) -> Array:
        """The weight with the rows of its gates in the operator's order."""
        by_gate = dict(
            zip(kind.gates, np.split(arrays.weights[name], len(kind.gates)), strict=True)
        )
        return np.concatenate([by_gate[gate] for gate in kind.onnx_gates])

    def stacked(*parts: str) -> Array:
        rows = [
            np.concatenate([gates(f"{part}_{suffix}") for part in parts])
            for suffix in suffixes(case, layer)
        ]
        return np.stack(rows)

    return {
        f"w_ih {layer}": stacked("weight_ih"),
        f"w_hh {layer}": stacked("weight_hh"),
        f"bias {layer}": stacked("bias_ih", "bias_hh"),
    }


def _layer(case: Case, layer: int) -> Sequence[Any]:
    """The layer's operator, whose y is `[T, D, B, H]`, and nodes that make it `[T, B, D*H]`."""
    from onnx import helper

    kind = kind_of(case)
    x = "x" if layer == 0 else f"y {layer - 1}"
    y = "y" if layer == case.layers - 1 else f"y {layer}"
    weights = [f"{name} {layer}" for name in ("w_ih", "w_hh", "bias")]
    options = dict(kind.onnx_options)
    if kind.nonlinear:
        options["activations"] = [case.nonlinearity.capitalize()] * case.directions
    operator = helper.make_node(
        kind.layer,
        [
            *(x, *weights, "lengths" if case.packed else ""),
            *(f"{name}0 {layer}" for name in kind.states),
        ],
        [f"by direction {layer}", *(f"{name}_n {layer}" for name in kind.states)],
        hidden_size=case.H,
        direction="bidirectional" if case.bidirectional else "forward",
        **options,
    )
    if case.directions == 1:
        return operator, helper.make_node("Reshape", [f"by direction {layer}", "rows"], [y])
    turned = f"turned {layer}"
    return (
        operator,
        helper.make_node("Transpose", [f"by direction {layer}"], [turned], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [turned, "rows"], [y]),
    )
