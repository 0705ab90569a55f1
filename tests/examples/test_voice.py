"""Protects the example of the voice detector: what it learns, and its page in a real browser."""

import importlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from artifact_programs import needs
from chromium import PROGRAM, browser
from folders import ROOT

FOLDER = ROOT / "examples" / "voice"
#: A microphone that beeps, and leave to listen to it.
MICROPHONE = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)


def run(*flags):
    command = [sys.executable, "-W", "error", str(FOLDER / "main.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def modules(monkeypatch):
    """The modules of the example."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("sounds", "features", "detector", "page")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def until(page, expression):
    """Wait until an expression is true in the page."""
    for _ in range(150):
        if page.evaluate(f"!!({expression})"):
            return
        time.sleep(0.2)
    raise AssertionError(f"{expression} stays false: {page.errors}")


@pytest.mark.full
def test_it_learns_and_its_page_computes_what_eager_does(modules, tmp_path):
    needs("wasm-ld")
    done = run("--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    right, energy = (float(found) for found in re.findall(r": ([\d.]+)%", done.stdout[-400:]))
    assert right > 93
    assert right > energy + 10

    sound = modules["sounds"].demonstration()
    pcm = np.frombuffer(modules["page"].to_pcm(sound.samples), "<i2") / 32768
    model = modules["detector"].Detector()
    model.load_state_dict(torch.load(tmp_path / "voice.pt"))
    x = torch.tensor(modules["features"].features(pcm))[:, None]
    with torch.no_grad():
        expected = model.double()(x)[:, 0].sigmoid()
    truth = torch.tensor(modules["features"].labels(sound.speech))
    assert ((expected > 0.5) == truth).double().mean() > 0.8

    if PROGRAM is None:
        pytest.skip("there is no browser: apt-get install chromium")
    with browser(*MICROPHONE) as page:
        page.open(tmp_path / "voice.html", width=900, dark=False)
        until(page, "globalThis.voice")
        found = torch.tensor(page.evaluate("voice.probabilities"), dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert_drawn(page)
        page.evaluate("void voice.listen().then((detector) => { globalThis.ears = detector; })")
        until(page, "globalThis.ears?.heard.length > 50")
        heard = page.evaluate("ears.heard.map(({ probability }) => probability)")
        assert all(0 <= probability <= 1 for probability in heard)
        assert "The microphone" in page.evaluate("document.getElementById('status').textContent")
        assert page.errors == []
        assert page.requests == [url for url in page.requests if url.startswith(("file:", "data:"))]


def assert_drawn(page):
    """In the plot there are bands in grey above, and the colour of speech below."""
    place = page.evaluate(
        "(({ left, top, width, height }) => [left, top, width, height])"
        "(document.getElementById('plot').getBoundingClientRect())"
    )
    left, top, width, height = (int(page.scale * edge) for edge in place)
    plot = page.picture()[top : top + height, left : left + width].astype(int)
    above, below = plot[: height // 2], plot[int(0.6 * height) :]
    assert above.std() > 10
    green = (below[..., 1] - below[..., 0] > 60).mean()
    assert 0.1 < green < 0.9


def test_the_sounds_are_what_they_are_called(modules):
    """Speech has most of its energy where it is said to be, and noise is everywhere."""
    sounds, features = modules["sounds"], modules["features"]
    source = np.random.default_rng(5)
    voice, speech = sounds.phrases(source, 4 * sounds.RATE)
    assert np.square(voice[speech]).mean() > 100 * np.square(voice[~speech]).mean()
    clip = sounds.clip(source, 2.0)
    assert np.abs(clip.samples).max() <= 1
    x = features.features(clip.samples)
    assert x.shape == (len(features.labels(clip.speech)), features.BANDS)
    tone = features.features(np.sin(2 * np.pi * 1000 * np.arange(2048) / sounds.RATE))
    mel = 2595 * np.log10(1 + np.array([60, 1000, 7600]) / 700)
    band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * (features.BANDS + 1) - 1
    assert np.abs(tone.argmax(1) - band).max() <= 1


def test_senseless_arguments_are_refused():
    done = run("--epochs", "0")
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr
