"""OpenVINO on the model that onnxruntime runs, too."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

from rnnjit.bench.contestant import Array, Arrays, Contestant, Ready
from rnnjit.bench.contestants import onnxgraph, plain
from rnnjit.bench.contestants.eager import bidirectional_stream
from rnnjit.bench.records import Case


class Openvino(Contestant):
    """One inference request on the CPU, for low latency, computing in float32 throughout."""

    name = "openvino"
    title = "OpenVINO"

    def absent(self) -> str:
        """What is not installed."""
        return plain.not_installed("onnx", "openvino")

    def versions(self) -> dict[str, str]:
        """Of what builds the graph and what runs it."""
        return {package: version(package) for package in ("onnx", "openvino")}

    def declines(self, case: Case) -> str:
        """Training and float64."""
        return plain.inference_only(case) or bidirectional_stream(case)

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The compiled model; its results are read where they are, not copied."""
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": case.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        model = core.read_model(onnxgraph.model(case, arrays))
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def step(frame: Array, state: Array) -> tuple[Array, Array]:
            # The next step may not read the state from where it writes it.
            outputs = request.infer({"x": frame, "h0": state}, share_inputs=True)
            return outputs["y"], outputs["h_n"]

        if case.mode == "streaming":
            return plain.streaming(plain.frames_of(arrays), arrays.h0, step)
        feeds = onnxgraph.feeds(arrays)

        def results() -> Mapping[str, Array]:
            outputs = request.infer(feeds, share_inputs=True)
            return {name: np.array(outputs[name]) for name in ("y", "h_n")}

        return Ready(lambda: request.infer(feeds, share_inputs=True, share_outputs=True), results)
