"""Protects use of a torch without a private name that rnnjit needs: correct or declined."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import ROOT, SUPPORT
from torch import nn

import rnnjit
from rnnjit.dispatch import choice
from rnnjit.reference import EagerBackend
from rnnjit.runtime import torch_private
from rnnjit.testing import RecomputeBackend

# What tells whether a transform or a mode is active.
SEEING = (
    "torch._C._functorch.peek_interpreter_stack",
    "torch.autograd.forward_ad._current_level",
    "torch._C._len_torch_dispatch_stack",
)
AUTOGRAD = (
    "torch._C._ForceDispatchKeyGuard",
    "torch._C.DispatchKey",
    "torch._C._dispatch_tls_local_include_set",
    "torch._C._dispatch_tls_local_exclude_set",
)
X = torch.randn(4, 2, 3)


def complaints(name, said):
    """What is wrong with what became of rnnjit without a name."""
    if "absent" in said:  # in this torch anyway
        return []
    if "wrong" in said:
        return [said["wrong"]]
    found = []
    if name in SEEING:
        words = f"lacks {name}, which rnnjit needs to detect transforms and modes"
        if said["chosen"] != "torch" or words not in said["note"]:
            found.append(f"{said['chosen']} was chosen: {said['note']}")
    elif said["chosen"] not in rnnjit.backends():
        found.append(f"{said['chosen']} was chosen")
    declines = {"inductor"} if name in torch_private._INDUCTOR else set()
    if said["declined"].keys() != declines:
        found.append(f"{set(said['declined'])} declined")
    for words in said["declined"].values():
        if f"lacks {name}" not in words and f", {name}" not in words:
            found.append(words)
    return found


@pytest.mark.full
def test_a_torch_without_one_of_them():
    """One test for all names, since importing torch for each would take most of its time."""
    script = SUPPORT / "without_private_names.py"
    done = subprocess.run(
        [sys.executable, script, *torch_private.NAMES],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == list(torch_private.NAMES)
    assert any("absent" not in line for line in lines)
    wrong = {line["name"]: complaints(line["name"], line) for line in lines}
    assert not any(wrong.values()), "\n".join(
        f"without {name}: {each}" for name, found in wrong.items() for each in found
    )


@pytest.fixture(params=AUTOGRAD)
def _lacking(request, monkeypatch):
    find = torch_private.find
    monkeypatch.setattr(
        torch_private, "find", lambda path: None if path == request.param else find(path)
    )
    torch._dynamo.reset()


def traced(backend):
    rnn = nn.RNN(3, 4)
    return rnn, torch.compile(rnnjit.compile(rnn, backend=backend), backend="aot_eager")


@pytest.mark.usefixtures("_lacking")
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # torch's own
def test_a_traced_backward_pass_of_a_differentiable_backend_says_what_it_lacks():
    rnn, fast = traced("eager")
    y, _ = fast(X)
    torch.testing.assert_close(y, rnn(X)[0])
    with pytest.raises(
        RuntimeError, match="lacks what a traced backward pass needs: run the model"
    ):
        y.sum().backward()


class ByHand(RecomputeBackend):
    """Its backward pass is no recorded operation: it does what autograd allows it anywhere."""

    name = "by-hand"

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        assert not torch.is_grad_enabled()
        zeros = [torch.zeros_like(weight) for weight in weights]
        return rnnjit.LayerGrads(None, (None,), tuple(zeros))


@pytest.mark.usefixtures("_lacking")
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # torch's own
def test_a_traced_backward_pass_of_compiled_kernels_needs_none_of_it():
    rnn, fast = traced(ByHand())
    fast(X)[0].sum().backward()
    assert all(not weight.grad.any() for weight in rnn.parameters())


def test_a_transform_is_named_where_it_is_seen(monkeypatch):
    assert choice.special_context(X) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert choice.special_context(X) == "autocast is enabled"
        monkeypatch.setattr(choice, "UNSEEN", SEEING[:1])
        assert choice.special_context(X) == "autocast is enabled"
    said = choice.special_context(X)
    lacking = f"torch {torch.__version__} lacks {SEEING[0]}"
    assert said == f"{lacking}, which rnnjit needs to detect transforms and modes"
    fast = rnnjit.compile(nn.RNN(3, 4), backend=EagerBackend())
    assert rnnjit.explain(fast, X).calls[0].note.endswith(said)


def private_names(path):
    """The dotted names below torch in a module, and what it imports of it, that are private."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
        else:
            continue
        if parts[0] == "torch" and any(
            part.startswith("_") for part in parts if part != "__version__"
        ):
            yield ".".join(parts)


def test_one_module_alone_uses_private_names_of_torch():
    own = Path(torch_private.__file__)
    paths = [path for folder in ("rnnjit", "backends") for path in (ROOT / folder).rglob("*.py")]
    found = {
        str(path.relative_to(ROOT)): names
        for path in paths
        if path != own and (names := sorted(set(private_names(path))))
    }
    assert found == {}
