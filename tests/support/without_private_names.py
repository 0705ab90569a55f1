"""Runs layers in a torch that lacks one of the private names that rnnjit uses, for each of them.

    python without_private_names.py NAME...

Each name has a process of its own, forked before rnnjit is imported. One line of JSON each says
what became of it: "absent" where this torch does not have the name in the first place, "wrong" for
a traceback, "declined" for what was declined in words.
"""

import importlib
import json
import os
import sys
import traceback

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

T, B, I, H = 5, 3, 4, 6
#: Names that torch reads itself, at every call of a module or in its compiler: they are
#: taken from rnnjit's sight alone, which looks for them as it is imported.
GIVEN_BACK = (
    "torch._C._get_tracing_state",
    "torch._C._are_functorch_transforms_active",
    "torch._C._dynamo.eval_frame.set_code_exec_strategy",
    "torch._C._dynamo.eval_frame._FrameExecStrategy",
    "torch._C._dynamo.eval_frame._FrameAction",
)


def held(path):
    """The object that holds what a dotted path leads to, and its name there."""
    parent, _, name = path.rpartition(".")
    try:
        return importlib.import_module(parent), name
    except ImportError:
        found = torch
        for part in parent.split(".")[1:]:
            found = getattr(found, part, None)
        return found, name


def results(module, x, grad):
    """Y, h_n and, if asked for, the gradients of a loss through both."""
    with torch.set_grad_enabled(grad):
        y, h_n = module(x)
    y = y.data if hasattr(y, "batch_sizes") else y
    if not grad:
        return [y, h_n]
    loss = (y * y.cos()).sum() + h_n.sum()
    return [y.detach(), h_n.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


def expect_close(got, expected):
    """Not by `torch.testing`, which imports much of torch that may need the name."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def check(rnn, fast, inputs):
    """Twice each, so that a fast path is taken where there is one."""
    for x in inputs:
        for grad in (True, True, False, False):
            expect_close(results(fast, x, grad), results(rnn, x, grad))


def try_all(inductor):
    """What is declined, by the backend that was asked for; raises what is wrong."""
    import rnnjit

    torch.manual_seed(0)
    rnn, x = nn.RNN(I, H, 2), torch.randn(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    declined = {}
    for backend in ("eager", "auto", *(["inductor"] if inductor else [])):
        fast = rnnjit.compile(rnn, backend=backend)
        try:
            check(rnn, fast, (x, packed))
        except rnnjit.UnsupportedError as error:
            declined[backend] = str(error)
    stream = rnnjit.Stream(rnn, B)
    with torch.no_grad():
        expect_close([torch.stack([stream.step(frame) for frame in x])], [rnn(x)[0]])
    # Of "auto", explain asks inductor, too, which imports torch's compiler: most of a child's time.
    asked = rnnjit.compile(rnn, backend="auto" if inductor else "numba")
    (report,) = rnnjit.explain(asked, x).calls
    return {"declined": declined, "chosen": report.chosen, "note": report.note}


def without(path):
    """What becomes of rnnjit in a torch that lacks a name."""
    holder, name = held(path)
    if not hasattr(holder, name):
        return {"absent": True}
    kept = getattr(holder, name)
    delattr(holder, name)
    from rnnjit.runtime import torch_private

    assert torch_private.find(path) is None
    if path in GIVEN_BACK:
        setattr(holder, name, kept)
    return try_all(inductor=path in torch_private._INDUCTOR)


def child(path, write):
    try:
        found = without(path)
    except Exception:  # noqa: BLE001 - to be told, whatever it is
        found = {"wrong": traceback.format_exc()}
    os.write(write, json.dumps({"name": path, **found}).encode() + b"\n")


def main(paths):
    for path in paths:
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            child(path, write)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as said:
            line = said.read()
        status = os.waitpid(process, 0)[1]
        sys.stdout.write(line or json.dumps({"name": path, "wrong": f"status {status}"}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
