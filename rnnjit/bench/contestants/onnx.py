"""onnxruntime on a graph of ONNX's own `RNN` operators."""

from __future__ import annotations

from importlib.metadata import version

from rnnjit.bench.contestant import Array, Arrays, Contestant, Ready
from rnnjit.bench.contestants import onnxgraph, plain
from rnnjit.bench.contestants.eager import bidirectional_stream
from rnnjit.bench.records import Case


class Onnxruntime(Contestant):
    """An InferenceSession with its defaults, but for the number of threads."""

    name = "onnxruntime"
    title = "onnxruntime"

    def absent(self) -> str:
        """What is not installed."""
        return plain.not_installed("onnx", "onnxruntime")

    def versions(self) -> dict[str, str]:
        """Of what builds the graph and what runs it."""
        return {package: version(package) for package in ("onnx", "onnxruntime")}

    def declines(self, case: Case) -> str:
        """Training, and float64, which the operator is not written for."""
        return plain.inference_only(case) or bidirectional_stream(case)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """A session for the graph."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            onnxgraph.model(case, arrays), options, providers=["CPUExecutionProvider"]
        )

        def step(frame: Array, state: Array) -> tuple[Array, Array]:
            y, after = session.run(None, {"x": frame, "h0": state})
            return y, after

        if case.mode == "streaming":
            return plain.streaming(plain.frames_of(arrays), arrays.h0, step)
        feeds = onnxgraph.feeds(arrays)
        return Ready(
            lambda: session.run(None, feeds),
            lambda: dict(zip(("y", "h_n"), session.run(None, feeds), strict=True)),
        )
