"""A layer of a gallery cell as a Python loop: sequence by sequence, step by step."""

from itertools import accumulate

import torch
from gallery_cells import DOUBLE


def steps_of(length, direction, reset=None):
    """The steps of a sequence in the order of a direction, and whether the state is new at each.

    A reset at step t cuts the sequence between t - 1 and t.
    """
    order = range(length - 1, -1, -1) if direction else range(length)
    for t in order:
        cut = t + 1 if direction else t
        yield t, reset is not None and cut < length and bool(reset[cut])


def drawn(cell, directions, sizes, hidden_size):
    """The normal numbers `[N, H]` of each direction, drawn as PyTorch's loop over steps would."""
    if not cell.noisy:
        return [None] * directions
    found = []
    for direction in range(directions):
        steps = reversed(sizes) if direction else sizes
        draws = [torch.randn(size, hidden_size, **DOUBLE) for size in steps]
        found.append(torch.cat(draws[::-1] if direction else draws))
    return found


def by_hand(cell, weights, sizes, x, initial, noise, reset=None, starts=None):
    """One layer.

    Args:
        cell: a `GalleryCell`.
        weights: for each direction the tensors of the cell by name.
        sizes: `batch_sizes`, the number of rows of each step.
        x: `[N, I]`.
        initial: the states, each `[D, B, H]`.
        noise: what `drawn` gives.
        reset: `[T, B]` or None.
        starts: the states after a reset, each `[D, H]`; None for zeros.

    Returns:
        The output `[N, D*H]` and the last states, each `[D, B, H]`.
    """
    firsts, y, last = list(accumulate(sizes, initial=0)), {}, []
    D, B = initial[0].shape[:2]
    for d in range(D):
        for b in range(B):
            states = tuple(state[d, b] for state in initial)
            length = sum(size > b for size in sizes)
            for t, new in steps_of(length, d, None if reset is None else reset[:, b]):
                if new:
                    states = tuple(
                        torch.zeros_like(state) if starts is None else starts[k][d]
                        for k, state in enumerate(states)
                    )
                row = firsts[t] + b
                xi = () if noise[d] is None else (noise[d][row],)
                y[d, row], states = cell.step(weights[d], x[row], *states, *xi)
            last.append(states)
    rows = [torch.cat([y[d, row] for d in range(D)]) for row in range(len(x))]
    out = torch.stack(rows) if rows else x.new_empty(0, D * initial[0].shape[2])
    if not last:
        return out, tuple(state.clone() for state in initial)
    return out, tuple(torch.stack(each).view(D, B, -1) for each in zip(*last, strict=True))
