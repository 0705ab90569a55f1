"""What the kit asks of a backend: frozen `Case`s, each one layer and one call to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from rnnjit.frontend.capture import CELL_OF_NONLINEARITY
from rnnjit.spec import Problem, RNNSpec


@dataclass(frozen=True)
class Case:
    """One layer and one call, with everything that follows from them.

    The layer's options are nn.RNN's own. `rnnjit.testing.calls.build` makes the tensors.

    Attributes:
        id: what it is called in test ids; it also seeds the values.
        T: time steps of a dense input.
        B: batch size of a dense input.
        lengths: the sequences' lengths if the input is packed (then `T` and `B` do not count).
        enforce_sorted: as in `pack_padded_sequence`.
        unbatched: whether the input is one sequence `[T, I]`.
        h0: whether initial states are given.
        training: whether the module is in training mode.
        dtype: of all tensors.
        device: type of the device that all tensors are on.
        layout: how the input, the initial states and the weights lie in memory.
        values: "tiny" and "saturated" scale the input; "nan" and "inf" put some in.
        loss: what the gradients come from, h_n standing for every last state; "sum" is
            `y.sum() + h_n.sum()`, whose gradients reach the layer as expanded tensors, the others
            weigh each element differently.
        frozen: which of "x", "h0" (every initial state) and the weights need no gradient; "weights"
            stands for all.
        required: whether a backend may not decline it.
        quick: whether it belongs to the quick subset.
        thorough: whether the checks beyond values, gradients and refusal are run on it as well.

    Example:
        >>> Case("packed", lengths=(2, 3), enforce_sorted=False).problem(needs_grad=False).N
        5
    """

    id: str
    input_size: int = 6
    hidden_size: int = 20
    num_layers: int = 1
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    T: int = 7
    B: int = 5
    lengths: tuple[int, ...] | None = None
    enforce_sorted: bool = True
    unbatched: bool = False
    h0: bool = False
    training: bool = True
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    layout: Literal["contiguous", "transposed", "offset", "strided", "expanded"] = "contiguous"
    values: Literal["normal", "tiny", "saturated", "nan", "inf"] = "normal"
    loss: Literal["both", "y", "h_n", "sum"] = "both"
    frozen: frozenset[str] = frozenset()
    required: bool = True
    quick: bool = False
    thorough: bool = False

    @property
    def spec(self) -> RNNSpec:
        """The layer."""
        return RNNSpec(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            CELL_OF_NONLINEARITY[self.nonlinearity],
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
        )

    @property
    def steps(self) -> int:
        """Time steps: the longest sequence's if packed."""
        return self.T if self.lengths is None else max(self.lengths)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        if self.lengths is not None:
            return len(self.lengths)
        return 1 if self.unbatched else self.B

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the output, or of its `data` if packed."""
        spec = self.spec
        features = spec.num_directions * spec.layer(0).output_size
        if self.lengths is not None:
            return (sum(self.lengths), features)
        if self.unbatched:
            return (self.T, features)
        return (self.B, self.T, features) if self.batch_first else (self.T, self.B, features)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each state, the initial and the last."""
        shapes = self.spec.state_shapes(self.batch)
        return tuple((count, size) for count, _, size in shapes) if self.unbatched else shapes

    def problem(self, *, needs_grad: bool) -> Problem:
        """The facts that a backend accepts or declines the call by."""
        rows = sum(self.lengths) if self.lengths is not None else self.steps * self.batch
        packed = self.lengths is not None
        return Problem(self.dtype, self.device, self.steps, self.batch, rows, packed, needs_grad)


_F64 = torch.float64
_UNEVEN = (3, 7, 1, 5, 7)
_SORTED = (6, 4, 4, 1)

_THOROUGH = (
    Case("tanh", quick=True, thorough=True),
    Case("relu-f64", nonlinearity="relu", dtype=_F64, h0=True, quick=True, thorough=True),
    Case(
        "packed-bidirectional-2-layers",
        hidden_size=9,
        num_layers=2,
        bidirectional=True,
        lengths=_UNEVEN,
        enforce_sorted=False,
        h0=True,
        quick=True,
        thorough=True,
    ),
    Case(
        "packed-bidirectional-f64",
        hidden_size=5,
        num_layers=2,
        bidirectional=True,
        lengths=_UNEVEN,
        enforce_sorted=False,
        h0=True,
        dtype=_F64,
        thorough=True,
    ),
    Case("hidden-130", input_size=37, hidden_size=130, T=9, B=17, thorough=True),
    Case("batch-first-no-bias", batch_first=True, bias=False, h0=True, thorough=True),
    Case("single", T=1, B=1, input_size=1, hidden_size=1, h0=True, thorough=True),
)

_SIZES = (
    Case("relu", nonlinearity="relu", quick=True),
    Case("steps-1", T=1, h0=True),
    Case("batch-1", B=1, hidden_size=33, h0=True, quick=True),
    Case("batch-1-hidden-257", B=1, hidden_size=257, T=11),
    Case("batch-2", B=2, hidden_size=64, bidirectional=True),
    Case("batch-3", B=3, hidden_size=16, nonlinearity="relu"),
    Case("batch-7", B=7, hidden_size=70, num_layers=2),
    Case("batch-8", B=8, hidden_size=32, input_size=64, h0=True),
    Case("batch-9", B=9, hidden_size=33, bidirectional=True, h0=True),
    Case("batch-33", B=33, hidden_size=65, T=4, nonlinearity="relu", h0=True),
    Case("hidden-1", hidden_size=1, num_layers=2),
    Case("hidden-257", hidden_size=257, input_size=130, T=4, B=9, h0=True),
    Case("input-1", input_size=1, B=4),
    Case("large", input_size=260, hidden_size=300, T=12, B=65, h0=True),
    Case("many-rows", input_size=3, hidden_size=9, T=64, B=40, loss="sum", h0=True),
    Case("large-relu", input_size=96, hidden_size=192, T=6, B=20, nonlinearity="relu"),
    Case("input-100", input_size=100, hidden_size=3),
    Case("long", T=200, B=4, hidden_size=33),
    Case("long-batch-1-bidirectional", T=220, B=1, hidden_size=24, bidirectional=True, loss="h_n"),
)

_OPTIONS = (
    Case("h0", h0=True),
    Case("no-bias-relu", bias=False, nonlinearity="relu"),
    Case("bidirectional", bidirectional=True, h0=True, quick=True),
    Case("bidirectional-relu-no-bias", bidirectional=True, nonlinearity="relu", bias=False),
    Case("2-layers", num_layers=2, h0=True),
    Case("3-layers-bidirectional", num_layers=3, bidirectional=True, hidden_size=8, h0=True),
    Case("batch-first-bidirectional", batch_first=True, bidirectional=True, B=3),
    Case("unbatched", unbatched=True),
    Case("unbatched-2-layers-h0", unbatched=True, num_layers=2, h0=True, batch_first=True),
    Case("dropout", num_layers=3, dropout=0.4, hidden_size=16),
    Case("dropout-batch-first", num_layers=2, dropout=0.3, batch_first=True, bidirectional=True),
    Case("dropout-packed", num_layers=2, dropout=0.5, lengths=_SORTED, h0=True),
    Case("dropout-eval", num_layers=2, dropout=0.5, training=False),
    Case("batch-0", B=0, required=False),
)

_PACKED = (
    Case("packed", lengths=_SORTED, quick=True),
    Case("packed-relu-h0", lengths=_SORTED, nonlinearity="relu", h0=True),
    Case("packed-unsorted", lengths=_UNEVEN, enforce_sorted=False, h0=True),
    Case("packed-bidirectional", lengths=_SORTED, bidirectional=True),
    Case("packed-equal", lengths=(4, 4, 4), bidirectional=True, h0=True),
    Case("packed-ones", lengths=(1, 1, 1, 1)),
    Case("packed-one-sequence", lengths=(6,), hidden_size=33),
    Case("packed-batch-first", lengths=_UNEVEN, enforce_sorted=False, batch_first=True),
    Case("packed-batch-19", lengths=(*(9,) * 10, 5, 5, 5, *(2,) * 5, 1), hidden_size=70, h0=True),
    Case("packed-staircase", lengths=tuple(range(9, 0, -1)), bidirectional=True, hidden_size=33),
    Case("packed-no-bias-f64", lengths=_SORTED, bias=False, h0=True, dtype=_F64),
)

_VALUES = (
    Case("tiny", values="tiny", bias=False),
    Case("saturated", values="saturated", h0=True),
    Case("nan", values="nan", quick=True),
    Case("nan-relu", values="nan", nonlinearity="relu", quick=True),
    Case("nan-packed", values="nan", lengths=_UNEVEN, enforce_sorted=False, bidirectional=True),
    Case("inf", values="inf"),
    Case("inf-relu", values="inf", nonlinearity="relu", num_layers=2),
    Case("inf-bidirectional-f64", values="inf", bidirectional=True, dtype=_F64),
)

_LAYOUTS = (
    Case("transposed", layout="transposed", h0=True, quick=True),
    Case("offset", layout="offset", h0=True, hidden_size=33),
    Case("strided", layout="strided", h0=True, batch_first=True, nonlinearity="relu"),
    Case("expanded", layout="expanded", h0=True),
    Case("packed-strided", layout="strided", lengths=_SORTED, h0=True),
    Case("unbatched-transposed", layout="transposed", unbatched=True, h0=True),
)

_WEIGHTS_2 = frozenset({"weight_hh_l0", "bias_ih_l0", "weight_ih_l1", "bias_hh_l1"})

_GRADIENTS = (
    Case("through-y", loss="y", h0=True, quick=True),
    Case("through-h_n", loss="h_n", h0=True, quick=True),
    Case("through-sum", loss="sum", h0=True, bidirectional=True),
    Case("through-y-2-layers", loss="y", num_layers=2, bidirectional=True, h0=True),
    Case("through-h_n-2-layers", loss="h_n", num_layers=2, bidirectional=True, h0=True),
    Case("through-y-packed", loss="y", lengths=_SORTED, h0=True),
    Case("through-h_n-packed", loss="h_n", lengths=_SORTED, bidirectional=True, h0=True),
    Case("through-sum-packed", loss="sum", lengths=_UNEVEN, enforce_sorted=False),
    Case("frozen-x", frozen=frozenset({"x"}), h0=True),
    Case("frozen-weights", frozen=frozenset({"weights"}), h0=True),
    Case("frozen-all-but-h0", frozen=frozenset({"weights", "x"}), h0=True, bidirectional=True),
    Case("frozen-all-but-x", frozen=frozenset({"weights", "h0"}), h0=True, num_layers=2),
    Case("frozen-some", frozen=_WEIGHTS_2, num_layers=2),
)

_DTYPES = (
    Case("tanh-f64", dtype=_F64, hidden_size=33),
    Case("hidden-130-f64", dtype=_F64, hidden_size=130, B=9, h0=True),
    Case("2-layers-bidirectional-f64", dtype=_F64, num_layers=2, bidirectional=True, h0=True),
    Case("tanh-bf16", dtype=torch.bfloat16, h0=True, required=False),
    Case("relu-bf16", dtype=torch.bfloat16, nonlinearity="relu", required=False),
    Case("tanh-f16", dtype=torch.float16, bidirectional=True, required=False),
)

CASES: tuple[Case, ...] = (
    *_THOROUGH,
    *_SIZES,
    *_OPTIONS,
    *_PACKED,
    *_VALUES,
    *_LAYOUTS,
    *_GRADIENTS,
    *_DTYPES,
)
