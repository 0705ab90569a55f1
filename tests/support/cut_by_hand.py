"""Resets within sequences, by eager on sequences that are cut by hand."""

from itertools import pairwise

import torch
from layer_kinds import as_hx, states
from torch.func import functional_call


def cut_by_hand(rnn, x, hx, reset, to):
    """Each sequence cut where it is reset, its parts run by eager one after the other.

    Args:
        rnn: not batch_first.
        x: `[T, B, I]`.
        hx: each state `[L*D, B, P or H]`.
        reset: boolean `[T, B]`.
        to: each state as `[L, T, B, D * features]`.

    Returns:
        y, then each state of h_n.
    """
    D, (T, B, _), ys, lasts = (2 if rnn.bidirectional else 1), x.shape, [], []
    for b in range(B):
        cuts = [0, *(t for t in range(1, T) if reset[t, b]), T]
        parts, ends = [], []
        for start, stop in pairwise(cuts):
            starts = []
            for h, anew in zip(hx, to, strict=True):
                ways = [
                    h[0::D, b]
                    if start == 0 and not reset[0, b]
                    else anew[:, start, b].chunk(D, -1)[0],
                    h[D - 1 :: D, b] if stop == T else anew[:, stop, b].chunk(D, -1)[D - 1],
                ]
                starts.append(torch.stack(ways[:D], 1).flatten(0, 1))
            y, last = functional_call(
                rnn, dict(rnn.named_parameters()), (x[start:stop, b], as_hx(starts))
            )
            parts.append(y)
            ends.append(states(last))
        ys.append(torch.cat(parts))
        lasts.append([[e, s] for s, e in zip(ends[0], ends[-1], strict=True)])
    found = []
    for of_sequences in zip(*lasts, strict=True):
        last = torch.stack([end for end, _ in of_sequences], 1)
        first = torch.stack([start for _, start in of_sequences], 1)
        backward = torch.arange(len(last))[:, None, None] % D == 1
        found.append(torch.where(backward, first, last))
    return torch.stack(ys, 1), *found
