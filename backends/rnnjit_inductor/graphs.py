"""What is compiled: a few steps of a recurrence, unrolled, on plain tensors.

    forward    out, s_t = step(z_t + h W_hh^T, s),  h = out W_hr^T        for t = 0 ... K - 1
    backward   dz_t, d_t = backward((g + grad_y_t) W_hr, ...),
               g = d_t + dz_t W_hh                                        for t = K - 1 ... 0

`step` and `backward` are the cell's own programs, s its states, of which h is the first. Every gate
has its own tensor of z and of W_hh: z = (z_1 .. z_G), W_hh = (W_1 .. W_G). g are the gradients of
the states after step t, and d_t the parts of the gradients of the states before it that bypass the
products. Without a projection, W_hr, h is out. Without a recurrent product its terms are not
there. What is the same in all rows, `programs.Split.fixed`, is computed before.

On the CPU, Inductor makes one C++ function of a whole chunk, products included, if they are written
as sums over k of products that broadcast:

    (h W)[b, p, l] = sum_k h[b, k] panel[p, k, l]        panel[p, k, l] = W[k, p * L + l]

A loop over k then adds a vector of L columns, times one element of a row. R rows and G gates are
written as R * G reductions that read the same vectors and elements, so that Inductor fuses them
into loops with several accumulators: register tiles, as in Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008. All reductions read one tensor with
all rows of the previous step; otherwise Inductor would fuse different steps of different rows
instead. The sum runs over the true features only, so that a NaN in a padding column has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.ir import Accumulator, CellSpec
from rnnjit_inductor.plan import Tile
from rnnjit_inductor.pointwise import evaluate_like
from rnnjit_inductor.programs import backward_of, read_by_backward, step_of, with_gradients


class Product(NamedTuple):
    """A form of the products with a matrix `[G*H, P]`, which is cut into its G gates or is not.

    Attributes:
        cut: whether the functions take a tensor for each gate, from `panels`, or the matrix alone.
        forward: `x W^T` of each gate, from x and the tensors; the last argument is G.
        backward: the sum over the gates of `dz W`, from each gate's dz or None, and the tensors.
    """

    cut: bool
    forward: Callable[[Tensor, Sequence[Tensor], int], list[Tensor]]
    backward: Callable[[Sequence[Tensor | None], Sequence[Tensor]], Tensor | None]

    def tensors(self, gates: int) -> int:
        """How many tensors a matrix is."""
        return gates if self.cut else 1


class Form(NamedTuple):
    """What a chunk computes.

    Attributes:
        cell: what a step computes.
        steps: K.
        product: the form of the products.
        projected: whether outputs are projected.
        recorded: whether the states after every step have gradients.
    """

    cell: CellSpec
    steps: int
    product: Product
    projected: bool
    recorded: bool

    @property
    def matrices(self) -> int:
        """How many tensors W_hh is."""
        return self.product.tensors(len(self.cell.gates)) if self.cell.has_product else 0


def biased(cell: CellSpec) -> list[int]:
    """The gates whose zh the cell uses apart from zx, which have a bias of their own."""
    return [each.gate for each in cell.accumulators if each.part == "hidden"]


def forward_chunk(form: Form) -> Callable[..., tuple[Tensor, ...]]:
    """A function of z, row inputs, states, W_hh, W_hr, b_hh of the gates `biased`, fixed values.

    Each z and row input is `[K, R, q, C, L]`, each state `[R, q, C, L]`, each b_hh and fixed value
    `[C, L]`. Padded to C * L, these are H columns, or P for h. There is a W_hh if the cell has a
    recurrent product, and a W_hr if there is a projection. It returns h, the outputs if they are
    projected, the other states, and each saved value, each `[K, R, q, C, L]`.
    """
    cell = form.cell
    program, G, S, apart = step_of(cell, True).rows, len(cell.gates), len(cell.states), biased(cell)
    parts = (G, len(cell.row_inputs), S, form.matrices, int(form.projected), len(apart))

    def chunk(*tensors: Tensor) -> tuple[Tensor, ...]:
        gates, row_inputs, states, w_hh, w_hr, biases, fixed = _divided(tensors, parts)
        bias, found = dict(zip(apart, biases, strict=True)), []
        for t in range(form.steps):
            hidden = form.product.forward(states[0], w_hh, G) if cell.has_product else gates
            inputs = [
                _accumulated(each, gates[each.gate][t], hidden[each.gate], bias)
                for each in cell.accumulators
            ]
            inputs = [*fixed, *inputs, *states, *(each[t] for each in row_inputs)]
            values = _present(evaluate_like(gates[0], program, inputs))
            out, *others = [v if v.ndim == 4 else v.expand_as(gates[0][t]) for v in values]
            h = form.product.forward(out, w_hr, 1)[0] if form.projected else out
            states = [h, *others[: S - 1]]
            found.append([h, *([out] if form.projected else []), *others])
        return tuple(map(torch.stack, zip(*found, strict=True)))

    return chunk


def _accumulated(
    accumulator: Accumulator, z: Tensor, hidden: Tensor, bias: Mapping[int, Tensor]
) -> Tensor:
    """What a step takes for an accumulator."""
    if accumulator.part == "sum":
        return z + hidden
    return hidden + bias[accumulator.gate] if accumulator.part == "hidden" else z


def backward_chunk(form: Form) -> Callable[..., tuple[Tensor, ...]]:
    """A function of `read_by_backward`, the gradients of y and of recorded states, g, W_hh, W_hr.

    Fixed values follow. What is read and the gradients are `[K, R, q, C, L]`, g of each state is
    `[R, q, C, L]`. It returns each accumulator's dz, the gradients of parameters and row inputs
    that have one, dh if there is a projection, the g of the states but h before each step, and
    those of h if `has_share(cell)`; all `[K, R, q, C, L]`. Without a share, the last is the g of h
    before the chunk.
    """
    cell = form.cell
    S, A, program = len(cell.states), len(cell.accumulators), backward_of(cell, True, True).rows
    hidden = [k for k, each in enumerate(cell.accumulators) if each.has_hidden]
    written = A + sum(map(len, with_gradients(cell)))
    recorded = S - 1 if form.recorded else 0
    parts = (len(read_by_backward(cell)), 1, recorded, S, form.matrices, int(form.projected))

    def chunk(*tensors: Tensor) -> tuple[Tensor, ...]:
        read, (grad_y,), grad_states, grads, w_hh, w_hr, fixed = _divided(tensors, parts)
        found = []
        for t in reversed(range(form.steps)):
            for k, each in enumerate(grad_states, 1):
                grads[k] = grads[k] + each[t]
            given, dh = [grad_y[t], grads[0]], []
            if form.projected:
                dh = [grad_y[t] + grads[0]]
                of_out = _present([form.product.backward(dh, w_hr)])
                given = [torch.zeros_like(of_out[0]), *of_out]
            inputs = [*fixed, *(block[t] for block in read), *given, *grads[1:]]
            outputs = evaluate_like(grad_y, program, inputs)
            dz, (share, *shares) = outputs[:written], outputs[written:]
            product = None
            if cell.has_product:
                product = form.product.backward([dz[k] for k in hidden], w_hh)
            terms = _present([product, share])
            others = [_filled(own, grad) for own, grad in zip(shares, grads[1:], strict=True)]
            grads = [sum(terms[1:], terms[0]) if terms else torch.zeros_like(grads[0]), *others]
            found.append([*(_filled(each, given[1]) for each in dz), *dh, *others, grads[0]])
        *stacked, of_h = zip(*found, strict=True)
        results = [torch.stack(own[::-1]) for own in stacked]
        return *results, torch.stack(of_h[::-1]) if has_share(cell) else grads[0]

    return chunk


def _divided(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Groups of these sizes, one after the other, and what is left."""
    found, rest = [], list(tensors)
    for size in sizes:
        found.append(rest[:size])
        rest = rest[size:]
    return [*found, rest]


def _filled(value: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, or zeros if there is none."""
    return torch.zeros_like(like) if value is None else value


def has_share(cell: CellSpec) -> bool:
    """Whether a part of the first previous state's gradient bypasses the product."""
    return cell.backward.outputs[len(cell.accumulators)] is not None


def _present(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]


def _tile(x: Tensor, panels: Tensor) -> Tensor:
    """The product of rows `[R, q, P, L]` and panels `[P, H, L]`, as a register tile."""
    rows = x.flatten(2).narrow(2, 0, panels.shape[1])[:, :, None, :, None]
    return torch.stack([(row * panels).sum(2) for row in rows])


def _tile_forward(x: Tensor, gates: Sequence[Tensor], count: int) -> list[Tensor]:
    return [_tile(x, panels) for panels in gates]


def _tile_backward(dz: Sequence[Tensor | None], gates: Sequence[Tensor]) -> Tensor | None:
    pairs = zip(dz, gates, strict=True)
    terms = [_tile(each, panels) for each, panels in pairs if each is not None]
    return sum(terms[1:], terms[0]) if terms else None


#: The products as register tiles, of rows `[R, q, P, L]`.
TILE_PRODUCT = Product(True, _tile_forward, _tile_backward)


def _matrix_forward(x: Tensor, matrices: Sequence[Tensor], count: int) -> list[Tensor]:
    (matrix,), q = matrices, x.shape[1]
    found = torch.mm(x.view(q, -1), matrix.t()).view(q, count, matrix.shape[0] // count)
    return [found[:, gate][None, :, :, None] for gate in range(count)]


def _matrix_backward(dz: Sequence[Tensor | None], matrices: Sequence[Tensor]) -> Tensor | None:
    present = _present(dz)
    if not present:
        return None
    rows = [_filled(each, present[0]).view(present[0].shape[1], -1) for each in dz]
    return torch.mm(torch.cat(rows, 1), matrices[0])[None, :, :, None]


#: The products by torch's own operator, of rows `[1, q, H, 1]`.
MATRIX_PRODUCT = Product(False, _matrix_forward, _matrix_backward)


def panels(matrix: Tensor, tile: Tile) -> Tensor:
    """`[P, rows, L]` of a matrix `[rows, columns]`, with zeros for padding."""
    own = matrix.shape[1]
    columns = tile.padded(own)
    padded = torch.nn.functional.pad(matrix, (0, columns - own)) if columns > own else matrix
    return padded.reshape(-1, columns // tile.lanes, tile.lanes).transpose(0, 1).contiguous()
