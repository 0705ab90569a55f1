"""What nn.RNN and its gradients may come out as for a call, in ranges (see `fuzz.ranges`)."""

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

    def __init__(self, module: nn.RNN, layer: int, direction: int) -> None:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        self.names = [name for name in dict(module.named_parameters()) if name.endswith(suffix)]
        self.weights = {
            name.removesuffix(suffix): Range.exactly(getattr(module, name)) for name in self.names
        }
        self.suffix, self.cell, self.reverse = suffix, module.nonlinearity, direction == 1

    def steps(self, T: int) -> range:
        """The steps in the order of the forward pass."""
        return range(T - 1, -1, -1) if self.reverse else range(T)

    def forward(self, math: Arithmetic, x: Range, h0: Range, valid: torch.Tensor) -> Range:
        """The states `[T, B, H]`; rows that are not valid keep the state before them."""
        T = x.lo.shape[0]
        self.x, self.h0, self.valid = x, h0, valid
        self.y, self.before = Range.zeros(T, *h0.lo.shape), Range.zeros(T, *h0.lo.shape)
        biases = [w[None, :, None] for name, w in self.weights.items() if name.startswith("bias")]
        h = h0
        for t in self.steps(T):
            self.before[t] = h
            inputs = math.times(x[t][:, None], self.weights["weight_ih"][None])
            states = math.times(h[:, None], self.weights["weight_hh"][None])
            z = math.total(beside([inputs, states, *biases], -1))
            h = _choose(valid[t], math.activate(self.cell, z), h)
            self.y[t] = h
        self.last = h
        return self.y

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
        grads = self._backward() if call.leaves() else {}
        self.ranges = states | {f"the gradient of {name}": r for name, r in grads.items()}
        self.peak = self._math.peak

    def _forward(self) -> dict[str, Range]:
        call, case = self._call, self._call.case
        x = self._steps_first(Range.exactly(call.x))
        states = case.num_layers * case.spec.num_directions
        if call.hx is None:
            h0 = Range.zeros(states, case.batch, case.hidden_size)
        else:
            (h0,) = call.hx
            h0 = Range.exactly(h0.unsqueeze(1) if case.unbatched else h0)[:, self._order]
        self._layers, last = [], []
        for layer in range(case.num_layers):
            pair = [Layer(call.module, layer, d) for d in range(case.spec.num_directions)]
            outputs = []
            for one in pair:
                outputs.append(one.forward(self._math, x, h0[len(last)], self._valid))
                last.append(one.last[None])
            x = beside(outputs, -1)
            self._layers.append(pair)
        return {"y": self._as_given(x), "h_n": self._states(beside(last, 0))}

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


def _choose(valid: torch.Tensor, a: Range, b: Range) -> Range:
    mask = valid.view(*valid.shape, *[1] * (a.lo.dim() - valid.dim()))
    parts = ((getattr(a, n), getattr(b, n)) for n in ("lo", "hi", "nan", "num"))
    return Range(*(torch.where(mask, x, y) for x, y in parts))
