"""What a case gives to a backend, what the backend makes of it, and what eager makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from guarded.cases import Case
from guarded.memory import Guards
from rnnjit import LayerOutput, Needs, Problem, RNNSpec, Rows
from rnnjit.artifact import weights as artifact_weights
from rnnjit.testing.tolerances import Expected, errors_of, largest

Named = dict[str, Tensor]


class Given(NamedTuple):
    """The tensors of a call; `weights` in nn.RNN's order, `sizes` None if dense."""

    x: Tensor
    h0: Tensor
    sizes: Tensor | None
    grad_y: Tensor
    grad_h_n: Tensor
    weights: list[Tensor]

    def tensors(self) -> Iterator[Tensor]:
        """All of them that there are."""
        own = (self.x, self.h0, self.sizes, self.grad_y, self.grad_h_n, *self.weights)
        return (tensor for tensor in own if tensor is not None)

    def guarded(self, guards: Guards) -> Given:
        """Guarded copies, which can only be read."""
        weights = [guards.copy(weight) for weight in self.weights]
        own = [None if tensor is None else guards.copy(tensor) for tensor in self[:-1]]
        return Given(*own, weights)


def spec_of(case: Case) -> RNNSpec:
    options = (case.I, case.H, case.layers, case.cell, case.bias)
    return RNNSpec(*options, bidirectional=case.directions == 2)


def given(case: Case) -> Given:
    source = torch.Generator().manual_seed(case.seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        # Numbers of float32, so that every dtype is given the same.
        return (scale * torch.randn(shape, generator=source)).to(case.dtype)

    N, D = sum(case.sizes), case.directions
    states = (case.layers * D, len(case.lengths), case.H)
    h0 = random(*states) if case.state else torch.zeros(states, dtype=case.dtype)
    weights = [random(*s, scale=0.6 * case.H**-0.5) for s in spec_of(case).weight_shapes]
    sizes = torch.tensor(case.sizes) if case.packed else None
    return Given(random(N, case.I), h0, sizes, random(N, D * case.H), random(*states), weights)


def needs_of(case: Case) -> Needs:
    own = case.needs[2:] if case.bias else case.needs[2:4]
    x, h0, *_ = case.needs
    return Needs(x, (h0,), own + (True,) * (len(own) * (case.directions - 1)))


def eager(case: Case, values: Given, dtype: torch.dtype) -> Named:
    """What nn.RNN makes of it in a dtype: y, h_n and, of a layer, the gradients needed."""
    options = (case.I, case.H, case.layers, case.cell.name, case.bias)
    rnn = nn.RNN(*options, bidirectional=case.directions == 2, dtype=dtype)
    with torch.no_grad():
        for parameter, weight in zip(rnn._flat_weights, values.weights, strict=True):
            parameter.copy_(weight)
    x, h0 = (tensor.to(dtype).requires_grad_() for tensor in (values.x, values.h0))
    if values.sizes is None:
        y, h_n = rnn(x.view(-1, len(case.lengths), case.I), h0)
        y = y.flatten(0, 1)
    else:
        y, h_n = rnn(PackedSequence(x, values.sizes), h0)
        y = y.data
    found = {"y": y.detach(), "h_n": h_n.detach()}
    if case.how != "layer":
        return found
    needs = needs_of(case)
    leaves = _named(x, h0, rnn._flat_weights)
    needed = _named(needs.x, *needs.hx, needs.weights)
    grads = (values.grad_y, values.grad_h_n)
    pairs = [
        pair
        for pair, given in zip(zip((y, h_n), grads, strict=True), case.grads, strict=True)
        if given
    ]
    wanted = {name: leaf for name, leaf in leaves.items() if needed[name]}
    total = sum((value * grad).sum() for value, grad in pairs)
    return found | dict(zip(wanted, torch.autograd.grad(total, list(wanted.values())), strict=True))


def expectations(case: Case, values: Given) -> dict[str, Expected]:
    """What a backend's results are held against, by name.

    Eager's own error is that of float32, in the units of the case's dtype, for each pass the
    largest of all its tensors: of one number alone it may be small by chance.
    """
    narrow, exact = (eager(case, values, dtype) for dtype in (torch.float32, torch.float64))
    unit = torch.finfo(case.dtype).eps / torch.finfo(torch.float32).eps
    relative = {"forward": 0.0, "backward": 0.0}
    for name, truth in exact.items():
        error = largest(errors_of(narrow[name], truth)) / max(largest(truth), 1e-30)
        relative[pass_of(name)] = max(relative[pass_of(name)], unit * error)
    return {
        name: Expected(
            *(truth.to(case.dtype), truth),
            *(relative[pass_of(name)] * largest(truth), largest(truth)),
        )
        for name, truth in exact.items()
    }


def pass_of(name: str) -> str:
    return "backward" if name.startswith("gradient") else "forward"


def run_layer(backend: Any, case: Case, own: Given, guards: Guards) -> Named:
    layer = spec_of(case).layer(0)
    rows = Rows(case.lengths[0], len(case.lengths), len(own.x), own.sizes)
    y, (h_n,), saved = backend.forward(layer, rows, own.x, (own.h0,), own.weights, True)
    given = zip((own.grad_y, own.grad_h_n), case.grads, strict=True)
    grad_y, grad_h_n = (grad if there else None for grad, there in given)
    grads = backend.backward(
        *(layer, rows, own.x, (own.h0,), own.weights, LayerOutput(y, (h_n,), saved)),
        *(grad_y, (grad_h_n,), needs_of(case)),
    )
    named = _named(grads.x, *grads.hx, grads.weights)
    return {"y": y, "h_n": h_n} | {name: g for name, g in named.items() if g is not None}


def run_shortcut(backend: Any, case: Case, own: Given, guards: Guards) -> Named:
    T, B = case.lengths[0], len(case.lengths)
    problem = Problem(case.dtype, "cpu", T, B, T * B, False, False)
    run = backend.shortcut(spec_of(case), problem, (T, B, case.directions * case.H))
    y, (h_n,) = run(own.x.view(T, B, case.I), (own.h0,), tuple(own.weights))
    return {"y": y.flatten(0, 1), "h_n": h_n}


def run_stream(backend: Any, case: Case, own: Given, guards: Guards) -> Named:
    B = len(case.lengths)
    step = backend.stepper(spec_of(case), case.dtype, B)
    before, steps = own.h0, []
    for x in own.x.split(B):
        after, y = torch.empty_like(before), torch.empty(B, case.H, dtype=case.dtype)
        step(guards.copy(x), (before,), (after,), y, tuple(own.weights))
        before, steps = after, [*steps, y.clone()]
    return {"y": torch.cat(steps), "h_n": before}


def run_program(program: Any, case: Case, own: Given, guards: Guards) -> Named:
    rows = Rows(case.lengths[0], len(case.lengths), len(own.x), own.sizes)
    content = bytearray(artifact_weights.pack(spec_of(case), own.weights))
    block = guards.copy(torch.frombuffer(content, dtype=torch.uint8))
    y, (h_n,) = program(rows, own.x, (own.h0,) if case.state else None, block)
    return {"y": y, "h_n": h_n}


#: The ways to run a case on a backend, by `Case.how`; a program stands in a backend's place.
WAYS = {
    "layer": run_layer,
    "shortcut": run_shortcut,
    "stream": run_stream,
    "program": run_program,
}


def _named(x: Any, h0: Any, weights: Any) -> dict[str, Any]:
    names = ("x", "h0", *(f"weight {i}" for i in range(len(weights))))
    values = zip(names, (x, h0, *weights), strict=True)
    return {f"gradient of {name}": value for name, value in values}
