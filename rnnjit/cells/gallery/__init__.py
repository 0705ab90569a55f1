"""Cells of the literature, written as users write theirs: subclasses of `rnnjit.Cell`.

    import rnnjit

    rnn = rnnjit.compile(rnnjit.Recurrent(rnnjit.cells.LeakyRNN(16, 128, sigma=0.1)))

Symbols, in all of them: x_t `[B, I]` is the input of step t, every other lower-case letter a vector
`[B, H]`, W `[H, I]` or `[H, H]` a weight, b `[H]` a bias, sigma the logistic function, and * the
product of elements. `x` and the states are batched, `[B, .]`, or all of one sequence, `[.]`.
"""

from __future__ import annotations

from rnnjit.cells.gallery.antisymmetric import AntisymmetricRNN
from rnnjit.cells.gallery.gated import JANET, MGU, UGRNN
from rnnjit.cells.gallery.independent import IndRNN
from rnnjit.cells.gallery.peephole import PeepholeLSTM
from rnnjit.cells.gallery.rate import DaleRNN, LeakyRNN, LowRankRNN
from rnnjit.cells.gallery.spiking import LIF

__all__ = [
    "JANET",
    "LIF",
    "MGU",
    "UGRNN",
    "AntisymmetricRNN",
    "DaleRNN",
    "IndRNN",
    "LeakyRNN",
    "LowRankRNN",
    "PeepholeLSTM",
]
