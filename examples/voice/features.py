"""What a detector hears of a sound: the energies of bands, as in RNNoise.

Every `HOP` samples, the last `WINDOW` samples are weighted by a Hann window. The squared magnitudes
of their spectrum are summed in `BANDS` overlapping triangles, equally wide on the mel scale, and a
feature is the logarithm of such a sum. The page computes the same in JavaScript.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sounds import RATE

WINDOW, HOP, BANDS = 512, 160, 24
#: Below this energy everything is silence: the square of some steps of 16-bit samples.
FLOOR = 1e-7
LOWEST, HIGHEST = 60.0, 7600.0


def features(samples: np.ndarray) -> np.ndarray:
    """Float64 `[frames, BANDS]` of samples in -1 to 1."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = sliding_window_view(samples, WINDOW)[::HOP] * window
    power = np.abs(np.fft.rfft(frames)) ** 2 / WINDOW
    return np.log10(power @ _bands().T + FLOOR)


def labels(speech: np.ndarray) -> np.ndarray:
    """Whether somebody speaks in the middle of each frame."""
    return speech[WINDOW // 2 :: HOP][: (len(speech) - WINDOW) // HOP + 1]


def _bands() -> np.ndarray:
    """The triangles, `[BANDS, WINDOW // 2 + 1]`."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    corners = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (frequencies - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - frequencies) / np.diff(corners)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))
