"""What a layer's results and nn.RNN's gradients may come out as, in ranges (see `fuzz.ranges`)."""

from __future__ import annotations

import torch
from fuzz.ranges import Arithmetic, Range, beside
from torch import nn

from rnnjit.testing.calls import Call


class Layer:
    """One layer in one direction over a padded batch.

    Attributes:
        weights: by kind, such as "weight_ih".
    """

    def __init__(self, module: nn.RNNBase, layer: int, direction: int) -> None:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        self.names = [name for name in dict(module.named_parameters()) if name.endswith(suffix)]
        self.weights = {
            name.removesuffix(suffix): Range.exactly(getattr(module, name)) for name in self.names
        }
        self.suffix, self.reverse = suffix, direction == 1
        self.cell = getattr(module, "nonlinearity", "")
        self._step = {nn.RNN: self._rnn, nn.LSTM: self._lstm, nn.GRU: self._gru}[type(module)]

    def steps(self, T: int) -> range:
        """The steps in the order of the forward pass."""
        return range(T - 1, -1, -1) if self.reverse else range(T)

    def forward(
        self, math: Arithmetic, x: Range, start: tuple[Range, ...], valid: torch.Tensor
    ) -> Range:
        """The states `[T, B, H]`; rows that are not valid keep the states before them."""
        T, (h0, *_) = x.lo.shape[0], start
        self.x, self.valid = x, valid
        self.y, self.before = Range.zeros(T, *h0.lo.shape), Range.zeros(T, *h0.lo.shape)
        states = start
        for t in self.steps(T):
            self.before[t] = states[0]
            found = self._step(math, x[t], *states)
            states = tuple(
                _choose(valid[t], new, old) for new, old in zip(found, states, strict=True)
            )
            self.y[t] = states[0]
        self.last = states
        return self.y

    def _terms(self, math: Arithmetic, value: Range, part: str) -> Range:
        """The terms `[B, G*H, terms]` of `W value + b`; `part` is "ih" or "hh"."""
        terms = math.times(value[:, None], self.weights[f"weight_{part}"][None])
        bias = self.weights.get(f"bias_{part}")
        return terms if bias is None else beside([terms, bias[None, :, None]], -1)

    def _rnn(self, math: Arithmetic, x: Range, h: Range) -> tuple[Range, ...]:
        terms = [self._terms(math, x, "ih"), self._terms(math, h, "hh")]
        return (math.activate(self.cell, math.total(beside(terms, -1))),)

    def _lstm(self, math: Arithmetic, x: Range, h: Range, c: Range) -> tuple[Range, ...]:
        terms = [self._terms(math, x, "ih"), self._terms(math, h, "hh")]
        i, f, g, o = _gates(math.total(beside(terms, -1)), 4)
        i, f, o = map(math.sigmoid, (i, f, o))
        kept = [math.times(f, c), math.times(i, math.activate("tanh", g))]
        c = math.total(_side_by_side(kept))
        return math.product(o, math.activate("tanh", c)), c

    def _gru(self, math: Arithmetic, x: Range, h: Range) -> tuple[Range, ...]:
        of_x = _gates(self._terms(math, x, "ih"), 3)
        of_h = _gates(self._terms(math, h, "hh"), 3)
        r, z = (
            math.sigmoid(math.total(beside(pair, -1))) for pair in zip(of_x[:2], of_h, strict=False)
        )
        gated = math.times(r, math.total(of_h[2]))._map(lambda tensor: tensor.unsqueeze(-1))
        n = math.activate("tanh", math.total(beside([of_x[2], gated], -1)))
        # As `(1 - z) * n + z * h`, or as `n + z * (h - n)`.
        return (math.total(_side_by_side([n, math.times(z, h), math.times(z, n.negated())])),)

    def backward(self, math: Arithmetic, grad_y: Range, grad_last: Range) -> None:
        """Fills `terms_x`, the terms of x's gradient, and `found`, gradients by name."""
        T = grad_y.lo.shape[0]
        self.dz = Range.zeros(*grad_y.lo.shape)
        carried = grad_last[..., None]
        w_hh = self.weights["weight_hh"]
        for t in reversed(self.steps(T)):
            grad = math.total(beside([carried, grad_y[t][..., None]], -1))
            dz = math.activation_gradient(self.cell, grad, self.y[t])
            self.dz[t] = _choose(self.valid[t], dz, Range.zeros(*dz.lo.shape))
            passed = math.times(dz[:, None], w_hh._map(torch.t)[None])
            count = passed.lo.shape[-1]
            held = Range.zeros(*carried.lo.shape[:-1], count)
            held[..., : carried.lo.shape[-1]] = carried[..., :count]
            carried = _choose(self.valid[t], passed, held)
        self.terms_x = math.times(
            self.dz[:, :, None], self.weights["weight_ih"]._map(torch.t)[None, None]
        )
        self.grad_h0 = math.total(carried)
        rows = self.dz[self.valid]
        self.found = {
            f"weight_ih{self.suffix}": _outer(math, rows, self.x[self.valid]),
            f"weight_hh{self.suffix}": _outer(math, rows, self.before[self.valid]),
            f"bias_ih{self.suffix}": math.total(rows, 0),
            f"bias_hh{self.suffix}": math.total(rows, 0),
        }


class Possible:
    """Ranges of the outputs and gradients of a call, by the names that the kit gives them.

    Attributes:
        ranges: by name.
        peak: the largest magnitude that anything finite may have had on the way.
    """

    def __init__(self, call: Call) -> None:
        case = call.case
        self._call = call
        self._math = Arithmetic(case.dtype)
        lengths = [case.steps] * case.batch if case.lengths is None else list(case.lengths)
        # Packed rows lie step by step, the longest sequence first, as `sorted` leaves ties.
        order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
        given = call.arguments()[0]
        if case.lengths is not None and given.sorted_indices is not None:
            order = given.sorted_indices.tolist()
        self._order = torch.tensor(order, dtype=torch.long)
        steps = torch.arange(case.steps)[:, None]
        self._valid = steps < torch.tensor(lengths)[self._order][None]
        states = self._forward()
        # Of the other layers the results alone: their gradients are products of many factors.
        grads = self._backward() if call.leaves() and type(call.module) is nn.RNN else {}
        self.ranges = states | {f"the gradient of {name}": r for name, r in grads.items()}
        self.peak = self._math.peak

    def _forward(self) -> dict[str, Range]:
        call, case = self._call, self._call.case
        x = self._steps_first(Range.exactly(call.x))
        count, H = case.num_layers * case.spec.num_directions, case.hidden_size
        start = [Range.zeros(count, case.batch, H) for _ in case.states]
        if call.hx is not None:
            given = [state.unsqueeze(1) if case.unbatched else state for state in call.hx]
            start = [Range.exactly(state)[:, self._order] for state in given]
        self._layers, last = [], []
        for layer in range(case.num_layers):
            pair = [Layer(call.module, layer, d) for d in range(case.spec.num_directions)]
            outputs = []
            for one in pair:
                before = tuple(state[len(last)] for state in start)
                outputs.append(one.forward(self._math, x, before, self._valid))
                last.append(one.last)
            x = beside(outputs, -1)
            self._layers.append(pair)
        found = {"y": self._as_given(x)}
        for name, states in zip(case.states, zip(*last, strict=True), strict=True):
            found[f"{name}_n"] = self._states(beside([state[None] for state in states], 0))
        return found

    def _backward(self) -> dict[str, Range]:
        call, case, math = self._call, self._call.case, self._math
        through_y, through_h_n = case.loss != "h_n", case.loss != "y"
        one = torch.ones((), dtype=case.dtype)
        seeds = (one.expand(case.y_shape), one.expand(*case.state_shapes))
        if case.loss != "sum":
            seeds = (call.grad_y, *call.grad_h_n)
        H, D = case.hidden_size, case.spec.num_directions
        grad_y = Range.zeros(case.steps, case.batch, D * H)
        grad_h_n = Range.zeros(case.num_layers * D, case.batch, H)
        if through_y:
            given = Range.exactly(seeds[0])
            if case.lengths is not None:
                grad_y[self._valid] = given
            else:
                grad_y = self._steps_first(given)
        if through_h_n:
            given = Range.exactly(seeds[1].unsqueeze(1) if case.unbatched else seeds[1])
            grad_h_n = given[:, self._order]
        found, grad_h0 = {}, []
        for layer in reversed(range(case.num_layers)):
            pair = self._layers[layer]
            for d, one in enumerate(pair):
                own = slice(d * H, (d + 1) * H)
                one.backward(math, grad_y[..., own], grad_h_n[layer * D + d])
                found |= {n: r for n, r in one.found.items() if n in one.names}
            grad_h0 = [one.grad_h0[None] for one in pair] + grad_h0
            grad_y = math.total(beside([one.terms_x for one in pair], -1))
            # An infinite weight times the zeros of the padding is nothing that anyone computes.
            grad_y = _choose(self._valid, grad_y, Range.zeros(*grad_y.lo.shape))
        found["x"] = self._inputs(grad_y)
        if call.hx is not None:
            found["h0"] = self._states(beside(grad_h0, 0))
        return {name: found[name] for name in call.leaves()}

    def _steps_first(self, given: Range) -> Range:
        """`[T, B, ...]`, the sequences in the order of packed rows."""
        case = self._call.case
        if case.unbatched:
            given = given[:, None]
        elif case.batch_first:
            given = given._map(lambda tensor: tensor.transpose(0, 1))
        return given[:, self._order]

    def _inputs(self, x: Range) -> Range:
        """The reverse of `_steps_first`."""
        case = self._call.case
        x = x[:, self._order.argsort()]
        if case.unbatched:
            return x[:, 0]
        return x._map(lambda tensor: tensor.transpose(0, 1)) if case.batch_first else x

    def _as_given(self, y: Range) -> Range:
        return self._inputs(y) if self._call.case.lengths is None else y[self._valid]

    def _states(self, states: Range) -> Range:
        states = states[:, self._order.argsort()]
        return states[:, 0] if self._call.case.unbatched else states


def _outer(math: Arithmetic, a: Range, b: Range) -> Range:
    """The sum over rows of a's columns times b's: `[columns of a, columns of b]`."""
    return math.total(math.times(a[:, :, None], b[:, None]), 0)


def _gates(range_: Range, count: int) -> list[Range]:
    """The parts `[B, H, ...]` of `[B, count * H, ...]`."""
    H = range_.lo.shape[1] // count
    return [range_[:, k * H : (k + 1) * H] for k in range(count)]


def _side_by_side(terms: list[Range]) -> Range:
    """Terms of equal shape along a new last dimension."""
    return beside([term._map(lambda tensor: tensor.unsqueeze(-1)) for term in terms], -1)


def _choose(valid: torch.Tensor, a: Range, b: Range) -> Range:
    mask = valid.view(*valid.shape, *[1] * (a.lo.dim() - valid.dim()))
    parts = ((getattr(a, n), getattr(b, n)) for n in ("lo", "hi", "nan", "num"))
    return Range(*(torch.where(mask, x, y) for x, y in parts))
