"""Protects the digits example, as a user runs it, and the command line on the model it writes."""

import json
import re
import subprocess
import sys

import pytest
import torch
from folders import ROOT
from torch import nn

from rnnjit.cli import main
from rnnjit.spec import RNNSpec
from rnnjit.tools.call import random_call

SCRIPT = ROOT / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder that a short run wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("digits") / "new"
    flags = ["--epochs", "15", "--rounds", "1", "--output", folder]
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *flags],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_both_trainings_agree_and_learn(digits):
    _, printed = digits
    difference = re.search(r"between the loss curves: (\S+)", printed)
    assert float(difference[1]) < 1e-3
    accuracies = re.search(r"eager ([\d.]+)%, compiled ([\d.]+)%", printed)
    assert min(float(accuracies[1]), float(accuracies[2])) > 95
    assert "equal predictions: 450 of 450 test images" in printed
    assert "nn.RNN:" in printed
    assert "eager:" in printed


def test_the_plot_is_a_picture(digits):
    folder, _ = digits
    assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_compares_the_trained_model(digits, tmp_path):
    folder, _ = digits
    file = tmp_path / "compare.json"
    model = str(folder / "digits.pt")
    status = main(
        ["compare", "--model", model, "--steps", "8", "--rounds", "1", "--json", f"{file}"]
    )
    assert status == 0
    (found,) = json.loads(file.read_text())["modules"]
    assert found["name"] == "rnn"
    assert (found["spec"]["input_size"], found["spec"]["hidden_size"]) == (8, 64)

    weights = torch.load(model, weights_only=True)
    rnn = nn.RNN(8, 64)
    rnn.load_state_dict({k[4:]: v for k, v in weights.items() if k.startswith("rnn.")})
    call = random_call(RNNSpec(8, 64), 8, 16)
    with torch.no_grad():
        (h0,) = call.hx
        y, h_n = rnn(call.x, h0)
        exact_y, exact_h_n = rnn.double()(call.x.double(), h0.double())
    error = max((y - exact_y).abs().max(), (h_n - exact_h_n).abs().max())
    assert found["results"][0]["values_error"] == pytest.approx(float(error))


def test_senseless_arguments_are_refused():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--epochs", "0"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr
    assert "Traceback" not in done.stderr
