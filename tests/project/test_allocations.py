"""Protects that ambient defaults decide no allocation: each names its device and its dtype.

`torch.device(...)` as a context, `torch.set_default_device` and `torch.set_default_dtype` are the
caller's, for the caller's own tensors. Kernels that write through a pointer of a tensor on another
device end the process.
"""

import ast
from pathlib import Path

import pytest

import rnnjit

ROOT = Path(rnnjit.__file__).parents[1]
SOURCES = sorted([*ROOT.joinpath("rnnjit").rglob("*.py"), *ROOT.joinpath("backends").rglob("*.py")])
#: What makes a tensor from shapes, numbers or lists.
FACTORIES = {
    *("empty", "empty_strided", "empty_permuted", "zeros", "ones", "full", "eye", "arange"),
    *("linspace", "logspace", "rand", "randn", "randint", "randperm", "normal", "tensor"),
    *("as_tensor", "asarray", "scalar_tensor", "sparse_coo_tensor", "range", "tril_indices"),
    *("triu_indices", "hann_window", "bartlett_window", "blackman_window"),
}
#: Old constructors, which take the default dtype and device and cannot be told others.
CONSTRUCTORS = {"Tensor", "FloatTensor", "DoubleTensor", "LongTensor", "IntTensor", "BoolTensor"}
#: Modules of torch's whose parameters are made when they are.
LAYERS = {"RNNBase", "RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell", "Linear"}


def lacking(call):
    """What a call that allocates does not name."""
    function = call.func
    if not isinstance(function, ast.Attribute):
        return set()
    owner, name = ast.unparse(function.value), function.attr
    given = {keyword.arg for keyword in call.keywords}
    if owner == "torch" and name in CONSTRUCTORS:
        return {"device", "dtype"}
    if owner == "torch" and name == "Generator":
        return set() if call.args else {"device"} - given
    if owner == "torch" and name == "frombuffer":
        return {"dtype"} - given
    if (owner == "torch" and name in FACTORIES) or (owner in ("nn", "torch.nn") and name in LAYERS):
        return {"device", "dtype"} - given
    return set()


def found_in(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        f"line {call.lineno}: {ast.unparse(call.func)}": missing
        for call in calls
        if (missing := lacking(call))
    }


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_every_allocation_names_device_and_dtype(path):
    assert not found_in(path.read_text(encoding="utf-8"))


def test_no_factory_is_called_by_another_name():
    """Such as `from torch import zeros` or `make = torch.zeros`, which the test above overlooks."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert not FACTORIES & {alias.name for alias in node.names}, path
            if isinstance(node, ast.Attribute) and id(node) not in called:
                other = node.attr in FACTORIES and ast.unparse(node.value) == "torch"
                assert not other, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "line",
    [
        "torch.empty(3, dtype=dtype)",
        "torch.tensor([1, 2], device=device)",
        "torch.Generator()",
        "torch.FloatTensor(3)",
        "torch.frombuffer(content)",
        "nn.RNN(3, 4, dtype=dtype)",
    ],
)
def test_the_test_sees(line):
    assert found_in(line)
