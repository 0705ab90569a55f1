"""Protects the command line: its output, its files and its refusals."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from covered import in_full
from torch import nn

import rnnjit
from rnnjit.cli import main
from rnnjit.dispatch.registry import BrokenBackend
from rnnjit.ir import GRU
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime.packages import install
from rnnjit.testing.user_cells import USER_CELLS
from rnnjit.tools.call import random_call

SMALL = ("--input-size", "3", "--hidden-size", "5", "--steps", "4", "--batch", "2", "--rounds", "1")


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "rnnjit", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.fixture
def installed(monkeypatch):
    """Only the backends that a test names are installed."""

    def install(*backends):
        found = {backend.name: backend for backend in backends}
        monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)

    return install


@pytest.fixture(autouse=True)
def threads():
    """`--threads` is for the process: put the number back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def compared(tmp_path, *arguments):
    """The modules in the JSON file that `rnnjit compare` writes."""
    file = tmp_path / "compare.json"
    assert main(["compare", "--rounds", "1", "--json", str(file), *arguments]) == 0
    return json.loads(file.read_text())["modules"]


def test_the_installed_command_is_the_module():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"rnnjit {rnnjit.__version__}\n")


# info


def test_info_tells_of_versions_and_of_a_backend_that_is_not_available(installed, capsys):
    eager = rnnjit.backends()["eager"]
    installed(BrokenBackend("tvm", f"tvm is not installed: {install('tvm')}"), eager)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert str(torch.__version__) in printed
    assert version("numba") in printed
    assert "pip install 'apache-tvm-ffi>=" in printed
    assert "available" in printed


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["numpy"] == version("numpy")
    assert found["threads"] == torch.get_num_threads()
    assert found["capability"] == torch.backends.cpu.get_cpu_capability()
    assert [b["name"] for b in found["backends"]] == list(rnnjit.backends())


def test_info_does_not_import_a_compiler_of_its_own_accord():
    script = "import sys, rnnjit.cli, rnnjit.tools.environment; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == 0


# compare: results


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--packed",),
        ("--num-layers", "2", "--bidirectional", "--dropout", "0.5", "--no-bias"),
        ("--batch-first", "--nonlinearity", "relu"),
        ("--dtype", "float64", "--threads", "1"),
    ],
)
def test_compare_has_a_row_for_every_backend(tmp_path, capsys, flags):
    (found,) = compared(tmp_path, *SMALL, *flags)
    rows = {row["backend"]: row for row in found["results"]}
    assert list(rows) == ["nn.RNN", *(name for name in rnnjit.backends() if name != "eager")]
    numba = rows["numba"]
    assert rows["nn.RNN"]["values_error"] <= 1e-6
    assert numba["times_faster"]["forward"] == pytest.approx(
        rows["nn.RNN"]["forward"]["least"] / numba["forward"]["least"]
    )
    assert found["auto"]["forward"] in rows
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    assert "auto picks" in printed


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("flags", "title"),
    [
        (("--cell", "lstm", "--proj-size", "2", "--packed"), "LSTM(3, 5), proj_size 2; T=4"),
        (("--cell", "gru", "--bidirectional"), "GRU(3, 5), bidirectional; T=4"),
    ],
)
def test_compare_runs_other_layers(tmp_path, capsys, flags, title):
    (found,) = compared(tmp_path, *SMALL, *flags, "--backends", "eager")
    (baseline,) = found["results"]
    kind = title.partition("(")[0]
    assert baseline["backend"] == f"nn.{kind}"
    assert found["spec"]["cell"] == kind.lower()
    assert 0 < baseline["values_error"] < 1e-6
    printed = capsys.readouterr().out
    assert title in printed
    assert f"x nn.{kind}" in printed


def test_compare_takes_only_the_backends_that_are_named(tmp_path, capsys):
    (found,) = compared(tmp_path, *SMALL, "--backends", "numba")
    assert [row["backend"] for row in found["results"]] == ["nn.RNN", "numba"]
    assert capsys.readouterr().err == ""


def test_compare_says_before_it_waits_and_how_to_leave_it_out(installed, capsys):
    class Patient(ReferenceBackend):
        name = "patient"

        def compile_seconds(self, spec, problem):
            return 240.0

    installed(Patient(), rnnjit.backends()["eager"])
    assert main(["compare", *SMALL]) == 0
    said = "patient may compile for 4 min or longer; --backends chooses what takes part"
    assert capsys.readouterr().err == f"rnnjit compare: {said}\n"


def test_errors_are_those_of_an_independent_computation(tmp_path):
    (found,) = compared(tmp_path, *SMALL, "--seed", "3")
    torch.manual_seed(3)
    rnn = nn.RNN(3, 5)
    call = random_call(rnnjit.RNNSpec(3, 5), 4, 2, seed=3)

    def everything(dtype):
        x, h0 = (t.detach().to(dtype).requires_grad_() for t in (call.x, *call.hx))
        rnn.to(dtype).zero_grad()
        y, h_n = rnn(x, h0)
        (y * call.grad_y.to(dtype)).sum().add((h_n * call.grad_h_n[0].to(dtype)).sum()).backward()
        gradients = [t.grad.clone() for t in (x, h0, *rnn.parameters())]
        return [y.detach(), h_n.detach()], gradients

    single, double = everything(torch.float32), everything(torch.float64)
    largest = [
        max(float((a.double() - b).abs().max()) for a, b in zip(*pair, strict=True))
        for pair in zip(single, double, strict=True)
    ]
    baseline = found["results"][0]
    # Other ways to add up the loss round differently, by a unit in the last place.
    assert baseline["values_error"] == pytest.approx(largest[0])
    assert baseline["gradients_error"] == pytest.approx(largest[1], rel=0.5)


def test_a_declining_backend_is_a_row_with_its_reasons(tmp_path, installed, capsys):
    installed(BrokenBackend("tvm", "tvm is not installed"), rnnjit.backends()["eager"])
    (found,) = compared(tmp_path, *SMALL)
    declined = next(row for row in found["results"] if row["backend"] == "tvm")
    assert declined["declined"] == ["tvm is not installed"]
    assert declined["forward"] is None
    printed = capsys.readouterr().out
    assert "tvm declines: tvm is not installed" in printed
    assert "auto picks eager (row nn.RNN)" in printed


def test_a_crashing_backend_is_a_row_too_and_fails_the_command(installed, capsys):
    class Crashing(ReferenceBackend):
        name = "crashing"

        def forward(self, *args):
            raise ZeroDivisionError("in the kernel")

    installed(Crashing(), rnnjit.backends()["eager"])
    assert main(["compare", *SMALL]) == 1
    assert "crashing failed: ZeroDivisionError: in the kernel" in capsys.readouterr().out


def test_a_packed_call_has_fewer_rows_than_a_dense_one(tmp_path):
    (found,) = compared(tmp_path, *SMALL, "--packed", "--batch", "8")
    assert found["call"]["packed"]
    assert 8 * 1 < found["call"]["rows"] < 4 * 8


def test_json_to_standard_output_is_all_there_is(capsys):
    assert main(["compare", *SMALL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"][0]["name"] == ""


# compare: saved models


class Mixed(nn.Sequential):
    """Not PyTorch's own class, so that a file with it has to be trusted."""


def checkpoint():
    rnn = nn.RNN(3, 5, num_layers=2, bidirectional=True)
    return {"epoch": 3, "model": {f"encoder.{k}": v for k, v in rnn.state_dict().items()}}


def shared():
    rnn = nn.RNN(3, 5)
    return nn.ModuleDict({"a": rnn, "b": nn.RNN(5, 4), "c": rnn, "embed": nn.Embedding(9, 3)})


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda: nn.RNN(3, 5), [""]),
        (lambda: nn.RNN(3, 5, dropout=0.0, bias=False).double(), [""]),
        (lambda: rnnjit.compile(nn.RNN(3, 5)), [""]),
        (lambda: rnnjit.compile(nn.Sequential(nn.Linear(2, 3), nn.RNN(3, 5))), ["1"]),
        (shared, ["a", "b"]),
        (lambda: nn.ModuleList([nn.LSTM(2, 3), nn.RNNCell(2, 3), nn.RNN(3, 5)]), ["0", "2"]),
        (lambda: rnnjit.compile(nn.GRU(3, 5), backend="eager"), [""]),
        (lambda: nn.RNN(3, 5, nonlinearity="relu").state_dict(), [""]),
        (checkpoint, ["model.encoder"]),
        (lambda: nn.ModuleList([nn.RNN(3, 5), nn.GRU(3, 5)]).state_dict(), ["0", "1"]),
        (lambda: {"net": nn.RNN(3, 5)}, ["net"]),
    ],
)
def test_every_rnn_in_a_file_is_compared(tmp_path, content, names):
    model = tmp_path / "model.pt"
    torch.save(content(), model)
    found = compared(tmp_path, "--model", str(model), "--steps", "3", "--batch", "2")
    assert [module["name"] for module in found] == names
    for module in found:
        assert module["results"][0]["values_error"] < 1e-6


def test_a_saved_model_brings_its_configuration_and_its_weights(tmp_path):
    model = tmp_path / "model.pt"
    rnn = nn.RNN(3, 5, num_layers=2, nonlinearity="relu", batch_first=True, bidirectional=True)
    for parameter in rnn.parameters():
        nn.init.constant_(parameter, 1e30)
    torch.save(rnn, model)
    (found,) = compared(tmp_path, "--model", str(model), "--steps", "5", "--batch", "2")
    assert found["spec"] == {
        "input_size": 3,
        "hidden_size": 5,
        "num_layers": 2,
        "cell": "relu",
        "bias": True,
        "batch_first": True,
        "dropout": 0.0,
        "bidirectional": True,
        "proj_size": 0,
        "quantized": False,
    }
    # Weights of 1e30 leave the range of float32 after one step, and only they would.
    assert found["results"][0]["values_error"] in ("inf", "nan")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("layer", "cell", "proj_size"),
    [
        (nn.LSTM(3, 5, 2, proj_size=2, bidirectional=True, bias=False), "lstm", 2),
        (nn.LSTM(3, 1), "lstm", 0),
        (nn.GRU(3, 4), "gru", 0),
    ],
)
def test_a_state_dict_tells_its_cell_by_its_rows(tmp_path, capsys, layer, cell, proj_size):
    model = tmp_path / "model.pt"
    torch.save(layer.state_dict(), model)
    arguments = ("--model", str(model), "--steps", "3", "--backends", "eager")
    (found,) = compared(tmp_path, *arguments)
    spec = found["spec"]
    assert (spec["cell"], spec["proj_size"]) == (cell, proj_size)
    assert (spec["input_size"], spec["hidden_size"]) == (3, layer.hidden_size)
    assert (spec["bias"], spec["num_layers"]) == (layer.bias, layer.num_layers)
    assert "assumed" not in capsys.readouterr().err
    line = refusal(capsys, "compare", "--model", str(model), "--nonlinearity", "relu")
    assert "nn.LSTM and nn.GRU have no choice" in line


def test_a_state_dict_says_that_tanh_is_assumed(tmp_path, capsys):
    model = tmp_path / "model.pt"
    torch.save(nn.RNN(3, 5).state_dict(), model)
    arguments = ("--model", str(model), "--steps", "3")
    (found,) = compared(tmp_path, *arguments)
    assert "tanh assumed" in capsys.readouterr().err
    assert found["spec"]["cell"] == "tanh"
    (found,) = compared(tmp_path, *arguments, "--nonlinearity", "relu")
    assert "assumed" not in capsys.readouterr().err
    assert found["spec"]["cell"] == "relu"


def test_a_model_of_another_dtype_can_be_converted(tmp_path):
    model = tmp_path / "model.pt"
    torch.save(nn.RNN(3, 5).double(), model)
    (found,) = compared(tmp_path, "--model", str(model), "--steps", "3")
    assert found["call"]["dtype"] == "float64"
    (found,) = compared(tmp_path, "--model", str(model), "--steps", "3", "--dtype", "bfloat16")
    assert found["call"]["dtype"] == "bfloat16"


def test_a_class_of_the_users_own_is_named_and_imported_only_when_trusted(tmp_path):
    (tmp_path / "mymodel.py").write_text(
        "import pathlib\n"
        "from torch import nn\n"
        "pathlib.Path('imported').touch()\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.rnn = nn.RNN(3, 5)\n"
    )
    save = "import torch, mymodel; torch.save(mymodel.Net(), 'net.pt')"
    subprocess.run([sys.executable, "-c", save], cwd=tmp_path, check=True, timeout=300)
    (tmp_path / "imported").unlink()

    refused = run("compare", "--model", "net.pt", cwd=tmp_path)
    assert refused.returncode == 2
    assert "mymodel.Net" in refused.stderr
    assert "--trust" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "imported").exists()

    trusted = run(
        "compare", "--model", "net.pt", "--trust", "--steps", "4", "--rounds", "1", cwd=tmp_path
    )
    assert trusted.returncode == 0, trusted.stderr
    assert "trusting what 'net.pt' names: mymodel.Net" in trusted.stderr
    assert "rnn: RNN(3, 5)" in trusted.stdout


class Payload:
    """Runs a command when unpickled by a reader that trusts it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.canary}",)


def test_the_format_before_pytorch_1_6(tmp_path, capsys):
    model = tmp_path / "model.pt"
    rnn = nn.RNN(3, 5)
    torch.save(rnn.state_dict(), model, _use_new_zipfile_serialization=False)
    (found,) = compared(tmp_path, "--model", str(model), "--steps", "3")
    assert found["spec"]["hidden_size"] == 5
    capsys.readouterr()
    torch.save(rnn, model, _use_new_zipfile_serialization=False)
    line = refusal(capsys, "compare", "--model", str(model))
    assert "before PyTorch 1.6" in line
    assert "state_dict() instead" in line


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("flags", [(), ("--trust",)])
def test_a_file_that_runs_a_command_does_not_run_it(tmp_path, capsys, zipped, flags):
    canary, model = tmp_path / "canary", tmp_path / "model.pt"
    torch.save([Payload(canary)], model, _use_new_zipfile_serialization=zipped)
    assert "system" in refusal(capsys, "compare", "--model", str(model), *flags)
    assert not canary.exists()


# refusals


def refusal(capsys, *arguments):
    """The one line that a command refused with."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *notes, line = captured.err.splitlines()
    assert all(note.startswith("rnnjit compare: trusting") for note in notes)
    assert line.startswith("rnnjit")
    assert ": error: " in line
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "required: COMMAND"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("compare", "--frobnicate"), "unrecognized arguments: --frobnicate"),
        (("compare", "--hidden", "3"), "unrecognized arguments: --hidden"),
        (("compare", "--hidden-size", "-3"), "a whole number from 1 to 2147483647, got '-3'"),
        (("compare", "--batch", "0"), "a whole number from 1 to 2147483647, got '0'"),
        (("compare", "--steps", "many"), "a whole number from 1 to 2147483647, got 'many'"),
        (("compare", "--dtype", "int8"), "invalid choice: 'int8'"),
        (("compare", "--dropout", "1.5"), "a number between 0 and 1, got '1.5'"),
        (("compare", "--dropout", "nan"), "a number between 0 and 1, got 'nan'"),
        (("compare", "--dropout", "0.5"), "--num-layers 2 or more"),
        (("compare", "--cell", "lstms"), "invalid choice: 'lstms'"),
        (("compare", "--cell", "gru", "--nonlinearity", "tanh"), "--cell gru has no choice"),
        (("compare", "--cell", "gru", "--proj-size", "2"), "this module cannot be made: proj_size"),
        (("compare", "--model", "x.pt", "--cell", "gru"), "--cell cannot be given with --model"),
        (("compare", "--seed", "1" + "0" * 30), "a whole number from 0 to 2147483647, got"),
        (("compare", "--trust"), "only with --model"),
        (("compare", "--backends", "nubma"), "'nubma' is not installed; expected one of 'auto'"),
        (("compare", "--backends", "auto"), "'auto' in backends is no backend but a choice"),
        (("compare", "--backends", ","), "backends must name a backend at least"),
        (("compare", "--hidden-size", "1" + "0" * 30), "a whole number from 1 to 2147483647, got"),
        (("compare", "--hidden-size", "2000000000"), "this module cannot be made"),
        (("compare", "--steps", "2000000000", "--batch", "2000000000"), "this call cannot be made"),
        (("compare", "--json", "/nowhere/at/all.json"), "there is no folder '/nowhere/at'"),
        (("compare", "--json", "/"), "is a folder"),
        (("compare", "--model", "/nowhere.pt"), "cannot be opened: No such file"),
        (("compare", "--model", "/"), "cannot be opened: Is a directory"),
        (("compare", "--model", "x.pt", "--no-bias", "--hidden-size", "3"), "--hidden-size, --no"),
        (("check",), "required: NAME"),
        (("check", "nonsense"), "'nonsense' is not installed; expected one of 'auto'"),
        (("check", "auto"), "'auto' is no backend"),
    ],
)
def test_arguments_that_make_no_sense_get_one_line(capsys, arguments, says):
    assert says in refusal(capsys, *arguments)


def broken_rnn():
    rnn = nn.RNN(3, 5)
    rnn.num_layers = "two"
    return rnn


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (nn.Linear(2, 3), "it is a Linear without one"),
        (nn.ModuleList([nn.LSTMCell(2, 3), nn.RNNCell(2, 3)]), "it has 1 LSTMCell, 1 RNNCell"),
        (nn.LSTMCell(2, 3).state_dict(), "a dict without a module or the weights of one"),
        ([1, 2], "it is a list"),
        (torch.ones(3), "it is a Tensor"),
        ({"weight_hh_l0": torch.ones(2, 2)}, "cannot be rebuilt"),
        ({"weight_hh_l0": torch.ones(2, 2), "weight_ih_l0": torch.ones(3, 2)}, "cannot be rebuilt"),
        (broken_rnn(), "cannot be rebuilt"),
        (Mixed(nn.RNN(3, 5)), "Mixed, which can run code of their own"),
    ],
)
def test_a_file_without_a_usable_rnn_gets_one_line(tmp_path, capsys, content, says):
    model = tmp_path / "model.pt"
    torch.save(content, model)
    assert says in refusal(capsys, "compare", "--model", str(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "garbled", "script"])
def test_a_damaged_file_gets_one_line(tmp_path, capsys, kind):
    model = tmp_path / "model.pt"
    torch.save(nn.RNN(3, 5), model)
    whole = model.read_bytes()
    if kind == "script":
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), model)
    else:
        damaged = {
            "empty": b"",
            "text": b"not a model\nat all\n",
            "truncated": whole[: len(whole) // 2],
            "garbled": whole[:100] + b"\xff" * 200 + whole[300:],
        }
        model.write_bytes(damaged[kind])
    assert "not a file that torch.save wrote" in refusal(capsys, "compare", "--model", str(model))


def test_a_nonlinearity_is_refused_for_a_module_that_has_one(tmp_path, capsys):
    model = tmp_path / "model.pt"
    torch.save(nn.RNN(3, 5), model)
    line = refusal(capsys, "compare", "--model", str(model), "--nonlinearity", "relu")
    assert "knows its own" in line


def test_a_model_of_a_script_cannot_be_found_and_says_what_to_save(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nclass Net(torch.nn.Module):\n    pass\ntorch.save(Net(), 'net.pt')\n"
    )
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=300)
    done = run("compare", "--model", "net.pt", "--trust", cwd=tmp_path)
    assert done.returncode == 2
    assert "save the model's state_dict() instead" in done.stderr
    assert done.stderr.count("\n") == 1


# check


def test_check_passes_a_sound_backend(capsys):
    assert main(["check", "eager", "--quick"]) == 0
    assert " 0 failed" in capsys.readouterr().out


def test_check_lists_what_a_wrong_backend_fails(installed, capsys):
    class Wrong(ReferenceBackend):
        name = "wrong"

        def forward(self, *args):
            output = super().forward(*args)
            return output._replace(y=output.y + 1)

    installed(Wrong(), rnnjit.backends()["eager"])
    assert main(["check", "wrong", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED wrong-" in printed
    assert " 0 failed" not in printed


def test_check_reports_by_cell(installed, capsys):
    class NoGRU(ReferenceBackend):
        name = "no-gru"

        def why_not_cell(self, cell):
            return ["nn.GRU is not done yet"] if cell == GRU else []

    installed(NoGRU(), rnnjit.backends()["eager"])
    assert main(["check", "no-gru", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "declined plain-gru, packed-bidirectional-gru: nn.GRU is not done yet" in lines
    found = [line.split(":")[0] for line in lines if line.startswith("  ")]
    assert found[:4] == ["  tanh", "  relu", "  lstm", "  gru"]
    int8 = [f"{cell} int8" for cell in ("tanh", "lstm", "gru", "leaky")]
    assert found[4:] == [f"  {cell}" for cell in (*USER_CELLS, *int8)]
    assert any(line.startswith("  gru: 2 passed, 0 failed, ") for line in lines)


def test_check_needs_a_backend_that_can_run(installed, capsys):
    installed(BrokenBackend("tvm", "tvm is not installed"))
    assert "cannot run here: tvm is not installed" in refusal(capsys, "check", "tvm")


# endings


def test_interrupting_gives_130_and_no_traceback(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("rnnjit.tools.comparison.interleave", interrupt)
    assert main(["compare", *SMALL]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("info",), *in_full([("info", "--json"), ("compare", *SMALL)])]
)
def test_a_reader_that_goes_away_is_no_traceback(arguments):
    command = [sys.executable, "-m", "rnnjit", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(timeout=300) == 141
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
