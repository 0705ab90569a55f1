"""A voice-activity detector in a web page: trained here, compiled to WebAssembly.

It makes sounds (see `sounds`), trains three GRUs of RNNoise's sizes on the energies of their bands,
and prints how many frames of sounds held out are told right, beside what a threshold on the energy
would reach. Then it compiles the GRUs ahead of time and writes one HTML file that runs them on a
bundled sound and on the microphone. Run it with

    python examples/voice/main.py

The exit status is 1 if less is told right than is wanted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

import torch
from detector import Detector, accuracy, best_by_energy, make_data, train
from page import linker, make_page
from sounds import demonstration

import rnnjit

WANTED_ACCURACY = 0.93


def main() -> int:
    """Train, judge, write the page."""
    parser = argparse.ArgumentParser(description="A voice detector in a web page.")
    parser.add_argument("--clips", type=int, default=160, help="sounds to train on")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a sound, 1 or more")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "output")
    arguments = parser.parse_args()
    if min(arguments.clips, arguments.epochs) < 1 or not arguments.seconds >= 1:
        parser.error("--clips, --epochs and --seconds must be 1 or more")
    if linker() is None:
        parser.error("there is no wasm-ld, which links WebAssembly: install lld")
    arguments.output.mkdir(parents=True, exist_ok=True)

    start = perf_counter()
    data = make_data(0, arguments.clips, arguments.seconds)
    held_out = make_data(1, max(1, arguments.clips // 4), arguments.seconds)
    made = perf_counter()
    torch.manual_seed(0)
    model = rnnjit.compile(Detector())
    losses = train(model, data, arguments.epochs)
    trained = perf_counter()
    print("epoch   loss")
    for epoch in sorted({*range(0, len(losses), max(1, len(losses) // 6)), len(losses) - 1}):
        print(f"{epoch + 1:5}   {losses[epoch]:.4f}")
    print(f"\nsounds made in {made - start:.0f} s, trained in {trained - made:.0f} s")
    with torch.no_grad():
        right = accuracy(model(held_out.x), held_out.speech)
    print(f"frames of sounds held out: {right:.1%} right")
    print(f"by the best threshold on their energy: {best_by_energy(held_out):.1%}")

    page = make_page(model, demonstration())
    file = arguments.output / "voice.html"
    file.write_text(page, encoding="utf-8")
    torch.save(model.state_dict(), arguments.output / "voice.pt")
    print(f"\nwrote {file}, {len(page) / 1e3:.0f} KB, and voice.pt")
    return 0 if right > WANTED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
