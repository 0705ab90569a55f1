"""What a case gives to a backend, what the backend makes of it, and what eager makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from guarded.cases import Case, Kind
from guarded.memory import Guards
from rnnjit import Needs, Problem, RNNSpec, Rows
from rnnjit.artifact import weights as artifact_weights
from rnnjit.backend import States
from rnnjit.frontend.arguments import as_hx
from rnnjit.frontend.capture import torch_module
from rnnjit.reference import layer_forward
from rnnjit.testing.tolerances import Expected, errors_of, largest

Named = dict[str, Tensor]


class Given(NamedTuple):
    """The tensors of a call; `weights` in nn.RNN's order, `sizes` None if dense."""

    x: Tensor
    hx: States
    sizes: Tensor | None
    grad_y: Tensor
    grad_h_n: States
    weights: list[Tensor]

    def tensors(self) -> Iterator[Tensor]:
        """All of them that there are."""
        own = (self.x, *self.hx, self.sizes, self.grad_y, *self.grad_h_n, *self.weights)
        return (tensor for tensor in own if tensor is not None)

    def guarded(self, guards: Guards) -> Given:
        """Guarded copies, which can only be read."""
        sizes = None if self.sizes is None else guards.copy(self.sizes)
        return self._map(guards.copy)._replace(sizes=sizes)

    def nearby(self, seed: int, width: float = 1 / 64) -> Given:
        """The same call with every number changed at random, by up to half `width` of itself."""
        source = torch.Generator().manual_seed(seed)

        def change(tensor: Tensor) -> Tensor:
            noise = (torch.rand(tensor.shape, generator=source) - 0.5) * width
            # Numbers of float32, as all that are given.
            return (tensor * (1 + noise)).float().to(tensor.dtype)

        return self._map(change)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Given:
        x, hx, sizes, grad_y, grad_h_n, weights = self
        states, grads = tuple(map(change, hx)), tuple(map(change, grad_h_n))
        return Given(change(x), states, sizes, change(grad_y), grads, [*map(change, weights)])


def spec_of(case: Case) -> RNNSpec:
    options = (case.I, case.H, case.layers, case.cell, case.bias)
    return RNNSpec(*options, bidirectional=case.directions == 2, proj_size=case.P)


def given(case: Case) -> Given:
    source = torch.Generator().manual_seed(case.seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        # Numbers of float32, so that every dtype is given the same.
        return (scale * torch.randn(shape, generator=source)).to(case.dtype)

    spec, N = spec_of(case), sum(case.sizes)
    shapes = spec.state_shapes(len(case.lengths))
    hx = [random(*s) if case.state else torch.zeros(s, dtype=case.dtype) for s in shapes]
    weights = [random(*s, scale=0.6 * case.H**-0.5) for s in spec.weight_shapes]
    columns = spec.layer(0).features
    sizes = torch.tensor(case.sizes) if case.packed else None
    grad_y = random(N, case.directions * spec.layer(0).output_size)
    grad_h_n = tuple(random(*s) for s in shapes)
    return Given(random(N, columns), tuple(hx), sizes, grad_y, grad_h_n, weights)


def needs_of(case: Case) -> Needs:
    x, h0, w_ih, w_hh, b_ih, b_hh, w_hr, others = case.needs
    more = len(case.cell.parameters) + (1 if case.P else 0)
    own = (w_ih, w_hh, *((b_ih, b_hh) if case.bias else ()), *(w_hr,) * more)
    states = (h0, *(others,) * (len(case.cell.states) - 1))
    return Needs(x, states, own + (True,) * (len(own) * (case.directions - 1)))


def eager(case: Case, values: Given, dtype: torch.dtype) -> Named:
    """What torch makes of it in a dtype: y, last states and, of a layer, the gradients.

    It is torch's layer, or for a cell that torch has none for, the reference.
    """
    x, *hx = (tensor.to(dtype).requires_grad_() for tensor in (values.x, *values.hx))
    run = _layer_of_torch if Kind(case.cell).is_torchs else _reference
    y, last, weights = run(case, values, x, tuple(hx))
    found = _outputs(case, y.detach(), tuple(state.detach() for state in last))
    if not case.trains:
        return found
    needs = needs_of(case)
    leaves = _named(case, x, hx, weights)
    needed = _named(case, *needs)
    total = sum(
        (value * grad).sum()
        for value, grad in zip((y, *last), _incoming(case, values), strict=True)
        if grad is not None
    )
    wanted = {name: leaf for name, leaf in leaves.items() if needed[name]}
    grads = torch.autograd.grad(total, list(wanted.values()), materialize_grads=True)
    return found | dict(zip(wanted, grads, strict=True))


def _layer_of_torch(
    case: Case, values: Given, x: Tensor, hx: States
) -> tuple[Tensor, States, list[Tensor]]:
    """Y, the last states and the weights of torch's layer."""
    rnn = torch_module(spec_of(case), x.dtype)
    with torch.no_grad():
        for parameter, weight in zip(rnn._flat_weights, values.weights, strict=True):
            parameter.copy_(weight)
    state = as_hx(hx)
    if values.sizes is None:
        y, last = rnn(x.view(-1, len(case.lengths), case.I), state)
        y = y.flatten(0, 1)
    else:
        y, last = rnn(PackedSequence(x, values.sizes), state)
        y = y.data
    return y, last if isinstance(last, tuple) else (last,), rnn._flat_weights


def _reference(
    case: Case, values: Given, x: Tensor, hx: States
) -> tuple[Tensor, States, list[Tensor]]:
    """Y, the last states and the weights of a single layer."""
    weights = [weight.to(x.dtype).requires_grad_() for weight in values.weights]
    rows = Rows(case.lengths[0], len(case.lengths), len(x), values.sizes)
    return *layer_forward(spec_of(case).layer(0), rows, x, hx, weights), weights


def _incoming(case: Case, values: Given) -> list[Tensor | None]:
    """The gradients of y and of the last states, those that are given."""
    there = (*case.grads[:2], *case.grads[2:] * (len(values.hx) - 1))
    grads = (values.grad_y, *values.grad_h_n)
    return [grad if given else None for grad, given in zip(grads, there, strict=True)]


def expectations(case: Case, values: Given, draws: int = 1) -> dict[str, Expected]:
    """What a backend's results are held against, by name.

    Eager's own error is that of float32, in the units of the case's dtype, for each pass the
    largest of all its tensors: of one number alone it may be small by chance. Where it still is,
    more draws tell: each of them takes the error of values nearby into account.
    """
    exact = eager(case, values, torch.float64)
    relative = {"forward": 0.0, "backward": 0.0}
    for draw in range(draws):
        near = values.nearby(draw) if draw else values
        for which, error in _errors_of_eager(case, near).items():
            relative[which] = max(relative[which], error)
    return {
        name: Expected(
            *(truth.to(case.dtype), truth),
            *(relative[pass_of(name)] * largest(truth), largest(truth)),
        )
        for name, truth in exact.items()
    }


def _errors_of_eager(case: Case, values: Given) -> dict[str, float]:
    """Eager's largest relative error of each pass, in the units of the case's dtype."""
    narrow, exact = (eager(case, values, dtype) for dtype in (torch.float32, torch.float64))
    unit = torch.finfo(case.dtype).eps / torch.finfo(torch.float32).eps
    found = {"forward": 0.0, "backward": 0.0}
    for name, truth in exact.items():
        error = unit * largest(errors_of(narrow[name], truth)) / max(largest(truth), 1e-30)
        found[pass_of(name)] = max(found[pass_of(name)], error)
    return found


def is_at_kink(case: Case, values: Given) -> bool:
    """Whether numbers a few roundings away have quite other exact results.

    Then one of the cell's functions has its kink among the values, and which side of it a number is
    on is a matter of rounding.
    """
    exact = eager(case, values, torch.float64)
    for draw in range(1, 17):
        near = eager(case, values.nearby(draw, 2.0**-20), torch.float64)
        for name, truth in exact.items():
            if largest(near[name] - truth) > 2.0**-15 * largest(truth):
                return True
    return False


def pass_of(name: str) -> str:
    return "backward" if name.startswith("gradient") else "forward"


def run_layer(backend: Any, case: Case, own: Given, guards: Guards) -> Named:
    layer = spec_of(case).layer(0)
    rows = Rows(case.lengths[0], len(case.lengths), len(own.x), own.sizes)
    output = backend.forward(layer, rows, own.x, own.hx, own.weights, case.trains)
    if not case.trains:
        return _outputs(case, output.y, output.h_n)
    grad_y, *grad_h_n = _incoming(case, own)
    grads = backend.backward(
        *(layer, rows, own.x, own.hx, own.weights, output),
        *(grad_y, tuple(grad_h_n), needs_of(case)),
    )
    named = _named(case, *grads)
    found = _outputs(case, output.y, output.h_n)
    return found | {name: grad for name, grad in named.items() if grad is not None}


def run_shortcut(backend: Any, case: Case, own: Given, guards: Guards) -> Named:
    T, B, spec = case.lengths[0], len(case.lengths), spec_of(case)
    problem = Problem(case.dtype, "cpu", T, B, T * B, False, False)
    columns = case.directions * spec.layer(0).output_size
    run = backend.shortcut(spec, problem, (T, B, columns))
    y, h_n = run(own.x.view(T, B, case.I), own.hx, tuple(own.weights))
    return _outputs(case, y.flatten(0, 1), h_n)


def run_stream(backend: Any, case: Case, own: Given, guards: Guards) -> Named:
    B, spec = len(case.lengths), spec_of(case)
    step = backend.stepper(spec, case.dtype, B)
    before, steps = own.hx, []
    for x in own.x.split(B):
        after = tuple(torch.empty_like(state) for state in before)
        y = torch.empty(B, spec.layer(0).output_size, dtype=case.dtype)
        step(guards.copy(x), before, after, y, tuple(own.weights))
        before, steps = after, [*steps, y.clone()]
    return _outputs(case, torch.cat(steps), before)


def run_program(program: Any, case: Case, own: Given, guards: Guards) -> Named:
    rows = Rows(case.lengths[0], len(case.lengths), len(own.x), own.sizes)
    block = _weight_block(case, own, guards)
    return _outputs(case, *program(rows, own.x, own.hx if case.state else None, block))


def run_steps(steps: Any, case: Case, own: Given, guards: Guards) -> Named:
    x, width = own.x.view(-1, len(case.lengths), case.I), spec_of(case).layer(0).output_size
    block = _weight_block(case, own, guards)
    return _outputs(case, *steps.run(x, own.hx, width, block, guards.empty, guards.copy))


def _weight_block(case: Case, own: Given, guards: Guards) -> Tensor:
    content = bytearray(artifact_weights.pack(spec_of(case), own.weights))
    return guards.copy(torch.frombuffer(content, dtype=torch.uint8))


#: The ways to run a case on a backend, by `Case.how`; a program, or its functions for steps, stand
#: in a backend's place.
WAYS = {
    "layer": run_layer,
    "shortcut": run_shortcut,
    "stream": run_stream,
    "program": run_program,
    "steps": run_steps,
}


def _outputs(case: Case, y: Tensor, last: States) -> Named:
    names = (f"{state}_n" for state in case.cell.states)
    return {"y": y} | dict(zip(names, last, strict=True))


def _named(case: Case, x: Any, hx: Any, weights: Any) -> dict[str, Any]:
    states = (f"{state}0" for state in case.cell.states)
    names = ("x", *states, *(f"weight {i}" for i in range(len(weights))))
    values = zip(names, (x, *hx, *weights), strict=True)
    return {f"gradient of {name}": value for name, value in values}
