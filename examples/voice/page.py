"""One web page of a detector: its GRUs compiled to WebAssembly, its weights, and a sound."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from detector import Detector
from features import BANDS, FLOOR, HIGHEST, HOP, LOWEST, WINDOW, labels
from sounds import RATE, Clip

import rnnjit

TEMPLATE = Path(__file__).with_name("page.html")
_FUNCTIONS = ("prepare", "step", "prepared_bytes", "step_scratch_bytes")


def linker() -> str | None:
    """The path of wasm-ld, which makes a module of object files; None if it is not installed."""
    return shutil.which("wasm-ld")


def make_page(model: Detector, sound: Clip) -> str:
    """The page, as HTML that needs no other file. The samples are rounded to 16 bits."""
    with tempfile.TemporaryDirectory() as made:
        places = [
            rnnjit.export_artifact(gru, Path(made) / f"gru{i}", target="wasm32", name=f"gru{i}")
            for i, gru in enumerate(model.grus)
        ]
        module = _link(places, Path(made) / "network.wasm")
        grus = [
            {
                "name": place.name,
                "units": gru.hidden_size,
                "weights": _text((place / "weights.bin").read_bytes()),
            }
            for place, gru in zip(places, model.grus, strict=True)
        ]
    weight, bias = model.head.weight.detach()[0].tolist(), model.head.bias.item()
    content = {
        "rate": RATE,
        "window": WINDOW,
        "hop": HOP,
        "bands": BANDS,
        "floor": FLOOR,
        "range": [LOWEST, HIGHEST],
        "wasm": _text(module),
        "grus": grus,
        "mean": model.mean.tolist(),
        "scale": model.scale.tolist(),
        "head": {"weight": weight, "bias": bias},
        "sound": _text(to_pcm(sound.samples)),
        "speech": labels(sound.speech).astype(int).tolist(),
    }
    return TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", json.dumps(content))


def to_pcm(samples: np.ndarray) -> bytes:
    """Samples in -1 to 1 as 16-bit integers, little-endian."""
    return np.round(samples * 32767).astype("<i2").tobytes()


def _link(places: list[Path], module: Path) -> bytes:
    """A module of the artifacts' object files."""
    objects = [str(place / f"{place.name}.o") for place in places]
    exported = [f"--export={place.name}_{each}" for place in places for each in _FUNCTIONS]
    command = [str(linker()), "--no-entry", "--export=__heap_base", "--strip-all"]
    subprocess.run([*command, *exported, *objects, "-o", str(module)], check=True)
    return module.read_bytes()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
