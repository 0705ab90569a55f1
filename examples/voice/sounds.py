"""Sounds to train a voice-activity detector on: speech-like phrases in noise, all computed.

A phrase is a row of syllables. A vowel is a train of glottal pulses whose spectrum has the formants
of that vowel, a fricative is noise in a band. Background is noise of any colour that swells and
fades, hum, notes, and clicks. Nothing is recorded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.random import Generator

RATE = 16000
#: The frames in which sounds are shaped.
_FRAME, _HOP = 512, 128
_FREQUENCIES = np.fft.rfftfreq(_FRAME, 1 / RATE)
#: The first three formants of vowels, Hz (Peterson and Barney, "Control methods used in a study of
#: the vowels", JASA 24, 1952), and their bandwidths.
_VOWELS = np.array(
    [
        *((270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410)),
        *((730, 1090, 2440), (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240)),
        *((640, 1190, 2390), (490, 1350, 1690)),
    ]
)
_BANDWIDTHS = np.array([90, 120, 180])


class Clip(NamedTuple):
    """A sound.

    Attributes:
        samples: float64 in -1 to 1, `[samples]`.
        speech: whether somebody speaks, `[samples]`.
    """

    samples: np.ndarray
    speech: np.ndarray


def clip(source: Generator, seconds: float) -> Clip:
    """Speech in noise, or, one time in six, noise alone."""
    count = int(seconds * RATE)
    noise = background(source, count)
    voice, speech = np.zeros(count), np.zeros(count, bool)
    if source.random() < 5 / 6:
        voice, speech = phrases(source, count)
    level = 10 ** (source.uniform(0, 25) / 20)
    mixed = noise / _rms(noise) + level * voice / _rms(voice[speech])
    return Clip(mixed * 10 ** (source.uniform(-35, -6) / 20) / np.abs(mixed).max(), speech)


def demonstration() -> Clip:
    """The sound that the page comes with: phrases and pauses in 8 seconds of noise."""
    source = np.random.default_rng(2)
    while True:
        found = clip(source, 8.0)
        if 0.3 < found.speech.mean() < 0.7:
            return found


def phrases(source: Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Speech-like phrases with pauses between them, and where they are."""
    voiced, breath = np.zeros(count), np.zeros(count)
    formants, centres = np.full((count, 3), 500.0), np.full(count, 4000.0)
    speech, pitch = np.zeros(count, bool), source.uniform(85, 240)
    pitches, size = np.full(count, pitch), source.uniform(0.9, 1.2)
    at = _samples(source, 0.2, 1.2)
    while at < count:
        begin, end = at, at + _samples(source, 0.5, 2.0)
        lowered = pitch * source.uniform(0.9, 1.2)
        while at < min(end, count):
            if source.random() < 0.5:
                fricative = slice(at, at + _samples(source, 0.05, 0.12))
                breath[fricative] = source.uniform(0.05, 0.4)
                centres[fricative] = source.uniform(2500, 6500)
                at = fricative.stop
            vowel = slice(at, at + _samples(source, 0.08, 0.22))
            voiced[vowel], breath[vowel] = source.uniform(0.4, 1.0), 0.01
            formants[vowel] = size * source.choice(_VOWELS)
            lowered *= source.uniform(0.92, 1.05)
            pitches[vowel] = np.clip(lowered, 70, 320)
            at = vowel.stop + _samples(source, 0.0, 0.05)
        speech[begin : vowel.stop] = True
        at = vowel.stop + _samples(source, 0.3, 1.2)
    # The mouth moves within some hundredths of a second.
    smooth = _smooth(np.column_stack([voiced, breath, pitches, centres, formants]), 400)
    voiced, breath, pitches, centres, formants = *smooth.T[:4], smooth[:, 4:]
    pitches *= 1 + 0.01 * _smooth(source.standard_normal((count, 1)), 200)[:, 0] * 14
    turns = np.cumsum(pitches / RATE)
    pulses = np.diff(np.floor(turns), prepend=0.0) * np.sqrt(RATE / pitches) * voiced
    hiss = source.standard_normal(count) * breath
    own = _shaped(pulses, _vowel_envelope(formants[::_HOP]))
    own += _shaped(hiss, np.exp(-(((_FREQUENCIES - centres[::_HOP, None]) / 1500) ** 2)))
    return own, speech


def background(source: Generator, count: int) -> np.ndarray:
    """Noise of any colour, and often hum, notes or clicks."""
    spectrum = np.fft.rfft(source.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40)
    noise = np.fft.irfft(spectrum * frequencies ** -source.uniform(0, 1.2), count)
    swell = _smooth(source.standard_normal((count, 1)), RATE // 2)[:, 0]
    total = noise / _rms(noise) * 10 ** (swell / _rms(swell) * source.uniform(0, 5) / 20)
    for other in (_hum, _notes, _clicks):
        if source.random() < 0.4:
            sound = other(source, count)
            total += sound / _rms(sound) * 10 ** (source.uniform(-20, 6) / 20)
    return total


def _hum(source: Generator, count: int) -> np.ndarray:
    """A machine: a steady tone with overtones."""
    turns = np.arange(count) / RATE * source.uniform(45, 400)
    overtones = range(1, 9)
    return sum(
        source.random() / k * np.sin(2 * np.pi * (k * turns + source.random())) for k in overtones
    )


def _notes(source: Generator, count: int) -> np.ndarray:
    """Music: notes that begin at once and fade."""
    total = np.zeros(count)
    for start in np.cumsum(source.uniform(0.1, 0.5, int(3 * count / RATE) + 1)) * RATE:
        time = np.arange(max(count - int(start), 0)) / RATE
        turns = time * 440 * 2 ** (source.integers(-24, 18) / 12)
        fading = np.exp(-time * source.uniform(2, 8)) * source.uniform(0.3, 1)
        note = sum(np.sin(2 * np.pi * k * turns) / k**1.5 for k in range(1, 6))
        total[count - len(time) :] += note * fading
    return total


def _clicks(source: Generator, count: int) -> np.ndarray:
    """Keys and steps: short resonances."""
    total, time = np.zeros(count + RATE), np.arange(RATE // 5) / RATE
    for start in source.integers(0, count, int(source.uniform(2, 8) * count / RATE)):
        ring = np.sin(2 * np.pi * source.uniform(100, 4000) * time)
        decay = np.exp(-time * source.uniform(40, 300))
        total[start : start + len(time)] += ring * decay * source.uniform(0.2, 1)
    return total[:count] + 1e-9


def _vowel_envelope(formants: np.ndarray) -> np.ndarray:
    """The spectrum `[frames, frequencies]` of vowels with formants `[frames, 3]`."""
    distance = (_FREQUENCIES[None, :, None] - formants[:, None, :]) / _BANDWIDTHS
    peaks = (1 / (1 + distance**2)) @ np.array([1.0, 0.6, 0.3])
    return (peaks + 0.003) / (1 + _FREQUENCIES / 1000)


def _shaped(sound: np.ndarray, envelope: np.ndarray) -> np.ndarray:
    """A sound with an envelope `[frames, frequencies]`, by overlapped frames."""
    window, parts = np.hanning(_FRAME + 1)[:-1], _FRAME // _HOP
    padded = np.pad(sound, (_FRAME // 2, _FRAME + _HOP))
    frames = sliding_window_view(padded, _FRAME)[::_HOP][: len(envelope)] * window
    shaped = np.fft.irfft(np.fft.rfft(frames) * envelope) * window
    blocks = shaped.reshape(len(envelope), parts, _HOP)
    total = np.zeros((len(envelope) + parts, _HOP))
    for part in range(parts):
        total[part : part + len(envelope)] += blocks[:, part]
    return total.reshape(-1)[_FRAME // 2 :][: len(sound)]


def _smooth(columns: np.ndarray, width: int) -> np.ndarray:
    """The running mean of each column over `width` samples."""
    padded = np.pad(columns, ((width // 2 + 1, width - width // 2 - 1), (0, 0)), mode="reflect")
    total = np.cumsum(padded, axis=0)
    means = (total[width:] - total[:-width]) / width
    return np.vstack([means, means[-1:]])[: len(columns)]


def _samples(source: Generator, low: float, high: float) -> int:
    """A random time, in samples, of so many seconds."""
    return int(source.uniform(low, high) * RATE)


def _rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound)))) + 1e-12 if len(sound) else 1.0
