"""Recurrences of any cell and size: in each step, matrix products by torch and one kernel."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor

from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_cuda.cell_persistent import gradients_of_the_cell, strides_of_gradients
from rnnjit_cuda.kernels import blocks
from rnnjit_cuda.launch import Argument, Launcher, Shape
from rnnjit_cuda.per_step import Step, steps
from rnnjit_cuda.plan import Plan


class CellPerStep(Recurrence):
    """Recurrences with launches for each step; the host never waits for the device.

    The states before and after a step share memory: they are kept in h_n and, backwards, their
    gradients in grad_hx.

    Args:
        plan: what to launch.
        launcher: starts kernels.
    """

    def __init__(self, plan: Plan, launcher: Launcher) -> None:
        self._plan, self._launcher = plan, launcher

    def forward(self, call: Forward) -> None:
        """`out, s_t = step(z_t + h_{t-1} W_hh^T, s_{t-1})`, `h_t = out W_hr^T` for each step."""
        layer, keep = call.layer, bool(call.saved or call.states or call.out is not None)
        H, P, G = layer.hidden_size, layer.output_size, len(layer.cell.gates)
        product = layer.cell.has_product
        for end, first in zip(call.h_n, call.hx, strict=True):
            end.copy_(first)
        zh = call.z.new_empty((call.rows.B if product else 0, G * H))
        scratch = call.z.new_empty((call.rows.B, H if call.w_hr and call.out is None else 0))
        kept = [*call.states, *call.saved] if keep else [call.y] * _kept(call)
        for d, w_hh in enumerate(call.w_hh):
            own, units = slice(d * P, (d + 1) * P), slice(d * H, (d + 1) * H)
            ends = [end[d] for end in call.h_n]
            for step in steps(call.rows, backwards=d == 1):
                rows, h = slice(step.start, step.stop), ends[0][: step.size]
                if product:
                    _product(h, w_hh, call.b_hh[d] if call.b_hh else None, zh[: step.size])
                z = call.z[rows, d * G * H : (d + 1) * G * H]
                out = call.y[rows, own]
                if call.w_hr:
                    out = call.out[rows, units] if call.out is not None else scratch[: step.size]
                tensors = [z, out, *(each[rows, units] for each in kept), *ends, *ends, zh]
                tensors += _of_the_cell(call, d, rows)
                ld = layer.num_directions * H
                strides = [z.stride(0), out.stride(0), ld, int(keep), int(bool(call.w_hr))]
                self._launch(step, H, [*tensors, step.size, H, *strides, layer.features])
                if call.w_hr:
                    torch.mm(out, call.w_hr[d].t(), out=h)
                    call.y[rows, own].copy_(h)

    def backward(self, call: Backward) -> None:
        """`dz_t, ds_{t-1} = gradient(...)`, `dh_{t-1} += dz_t W_hh` for each step."""
        cell, H, P = call.layer.cell, call.layer.hidden_size, call.layer.output_size
        G, A = len(cell.gates), len(cell.accumulators)
        direct = cell.backward.outputs[A] is not None
        for grad, given in zip(call.grad_hx, call.grad_h_n, strict=True):
            grad.zero_() if given is None else grad.copy_(given)
        scratch = call.y.new_empty((call.rows.B, H)) if call.w_hr else None
        y = call.y if call.out is None else call.out
        for d, w_hh in enumerate(call.w_hh):
            own, units = slice(d * P, (d + 1) * P), slice(d * H, (d + 1) * H)
            grads, first = [grad[d] for grad in call.grad_hx], [state[d] for state in call.hx]
            order = list(steps(call.rows, backwards=d == 0))
            # The walk's next step is the recurrence's previous one; the last step has none.
            for step, former in zip_longest(order, order[1:]):
                rows, linked = slice(step.start, step.stop), 0
                for grad, given in zip(grads[1:], call.grad_states, strict=False):
                    if given is not None:
                        grad[: step.size].add_(given[rows, units])
                dz = call.dz[rows, d * A * H : (d + 1) * A * H]
                grad_h = grads[0][: step.size]
                grad_out = None if call.grad_y is None else call.grad_y[rows, own]
                if call.dh is not None and scratch is not None:
                    grad_out = self._through_projection(call, d, rows, grad_h, scratch)
                before = first
                if former is not None:
                    linked = min(former.size, step.size)
                    others = slice(former.start, former.stop)
                    before = [each[others, units] for each in (y, *call.states)]
                kept = [each[rows, units] for each in (y, *call.states, *call.saved)]
                grad_or_any = kept[0] if grad_out is None else grad_out
                tensors = [dz, *kept, *first, *grads, grad_or_any, *before]
                strides = [dz.stride(0), grad_or_any.stride(0), y.stride(0)]
                tensors += _of_the_cell(call, d, rows)
                flags = [int(grad_out is not None), int(bool(call.w_hr)), call.layer.features]
                tensors += _gradients(call, d, rows)
                flags += strides_of_gradients(call)
                self._launch(step, H, [*tensors, step.size, linked, H, *strides, *flags])
                if not cell.has_product:
                    if call.w_hr:
                        grad_h.zero_()
                elif direct and not call.w_hr:
                    grad_h.addmm_(dz[:, : G * H], w_hh)
                else:
                    torch.mm(dz[:, : G * H], w_hh, out=grad_h)

    def _through_projection(
        self, call: Backward, d: int, rows: slice, grad_h: Tensor, scratch: Tensor
    ) -> Tensor:
        """The gradient of `out`, from that of the state after the step and of y."""
        P = call.layer.output_size
        own = slice(d * P, (d + 1) * P)
        assert call.dh is not None, "a layer with a projection has dh"
        dh = call.dh[rows, own]
        if call.grad_y is None:
            dh.copy_(grad_h)
        else:
            torch.add(grad_h, call.grad_y[rows, own], out=dh)
        return torch.mm(dh, call.w_hr[d], out=scratch[: rows.stop - rows.start])

    def _launch(self, step: Step, H: int, arguments: list[Argument]) -> None:
        key = self._plan.key
        shape = Shape(blocks(key, 1, step.size, H), self._plan.threads)
        self._launcher(key, shape, arguments)


def _of_the_cell(call: Forward | Backward, d: int, rows: slice) -> list[Tensor]:
    """A direction's parameters, and its row inputs of a step."""
    found = list(call.parameters[d])
    if call.row_inputs is not None:
        found.append(call.row_inputs[rows, _columns(call, d, len(call.layer.cell.row_inputs))])
    return found


def _gradients(call: Backward, d: int, rows: slice) -> list[Tensor]:
    """The tensors for a step's gradients of what `_of_the_cell` gives."""
    cell, found = call.layer.cell, gradients_of_the_cell(call)
    counts = [len(each) for each in (cell.parameters, cell.row_inputs) if each]
    pairs = zip(found, counts, strict=True)
    return [each[rows, _columns(call, d, count)] for each, count in pairs]


def _columns(call: Forward | Backward, d: int, count: int) -> slice:
    """The columns of a direction's vectors, of which there are `count`."""
    H = call.layer.hidden_size
    return slice(d * count * H, (d + 1) * count * H)


def _kept(call: Forward) -> int:
    """The number of tensors that a kernel writes for the backward pass, besides y."""
    cell = call.layer.cell
    return len(cell.states) - 1 + len(cell.saved)


def _product(h: Tensor, w_hh: Tensor, b_hh: Tensor | None, out: Tensor) -> None:
    """`out = h W_hh^T + b_hh`."""
    if b_hh is None:
        torch.mm(h, w_hh.t(), out=out)
    else:
        torch.addmm(b_hh, h, w_hh.t(), out=out)
