"""The contract between the core and a backend, and the layer's semantics in words.

A backend computes one layer, all its directions, over time-major rows (`rnnjit.spec.Rows`). For
every row of a direction, in this order:

    zx = W_ih x_t + b_ih                       G gates of H columns
    zh = W_hh a_{t-1} + b_hh                   a: the cell's operand, the first state by default
    out, s_1, ..., s_S = program(zx, zh, s_1, ..., s_S, p_1, ..., p_P)     pointwise, `rnnjit.cells`
    h = W_hr out                               where there is a projection: s_1, P wide

For direction 0 the states before are those of the previous step of the same sequence, or `hx` at
step 0. Direction 1 walks each sequence from its own last step to step 0 and starts at `hx` there.
`y` holds the outputs of all steps (projected if there is a projection), direction 0 in columns
`[0, P)` and direction 1 in `[P, 2P)`, with P = H without a projection; `h_n` holds each direction's
last computed states. Stacking, dropout, batch_first, unbatched input and the sorting of packed
sequences are the core's work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rnnjit.cells import Cell
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class LayerOutput(NamedTuple):
    """What a layer's forward pass gives.

    Attributes:
        y: `[N, D*P]`, newly allocated, contiguous.
        h_n: of each state `[D, B, P or H]`, newly allocated, sharing no memory with `y`.
        saved: whatever else the backward pass wants kept; `y` and the inputs are kept anyway.
    """

    y: Tensor
    h_n: tuple[Tensor, ...]
    saved: tuple[Tensor, ...] = ()


class Needs(NamedTuple):
    """Which gradients are wanted.

    Attributes:
        x: of the input rows.
        hx: of each initial state.
        weights: of each weight, in the order in which the weights were given.
    """

    x: bool
    hx: tuple[bool, ...]
    weights: tuple[bool, ...]


class LayerGrads(NamedTuple):
    """What a layer's backward pass gives: a gradient, or None where none was needed.

    Attributes:
        x: `[N, I]` or None.
        hx: for each state `[D, B, P or H]` or None.
        weights: a gradient or None for each weight, in the order of the weights.
    """

    x: Tensor | None
    hx: tuple[Tensor | None, ...]
    weights: tuple[Tensor | None, ...]


#: One tensor for each state of a cell, in its order.
States = tuple[Tensor, ...]

#: `(x, hx, weights) -> (y, h_n)` for a whole stack, see `Backend.shortcut`.
Shortcut = Callable[[Tensor, States, tuple[Tensor, ...]], tuple[Tensor, States]]

#: `(x [B, I], hx, h_n, y [B, P], weights)`: writes h_n and y, see `Backend.stepper`.
Stepper = Callable[[Tensor, States, States, Tensor, tuple[Tensor, ...]], None]


class Program(NamedTuple):
    """A stack compiled ahead of time, see `Backend.build`.

    Attributes:
        files: contents by name: code, and what is needed to call it.
        machine: what it needs to run, for the backend to check and for people to read.
        versions: of the compilers that took part.
    """

    files: Mapping[str, bytes]
    machine: Mapping[str, str]
    versions: Mapping[str, str]


#: `(rows, x [N, I], hx or None, weights) -> (y [N, D*P], h_n)` for a whole stack, each state
#: `[L*D, B, P or H]`, without gradients; the tensors are contiguous, `weights` as
#: `rnnjit.artifact.weights` lays them out.
Runner = Callable[[Rows, Tensor, States | None, Tensor], tuple[Tensor, States]]


class Backend(ABC):
    """One way to compute a layer.

    An installed backend is found through the entry-point group `rnnjit.backends`, whose value is an
    instance. Importing the module that holds it must be cheap: import heavy libraries on first use.

    What a backend takes it says as data: `devices`, `dtypes` and `operations`. A call to which they
    do not apply never reaches it.

    Class attributes:
        name: how users ask for it; the entry point has the same name.
        priority: `auto` tries backends from the highest to the lowest, last those that defer.
        automatic: False if `auto` is to leave it out, so that it runs for those alone who name it.
        devices: types of device that it runs on; None for every. The first is the one on which the
            conformance kit holds it against eager, the CPU if there is none.
        dtypes: that it computes in; None for every.
        operations: names of the operations of `rnnjit.cells` that it lowers; None for all.
        differentiable: True if `forward` is made of differentiable torch operations, which the core
            then lets autograd record; `backward` is never called.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0
    automatic: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...] | None] = ("cpu",)
    dtypes: ClassVar[tuple[torch.dtype, ...] | None] = None
    operations: ClassVar[frozenset[str] | None] = None
    differentiable: ClassVar[bool] = False

    def missing(self) -> list[str]:
        """Why this backend cannot run on this machine at all; empty if it can."""
        return []

    def why_not_cell(self, cell: Cell) -> list[str]:
        """Why this backend computes no layer of a cell whose operations it lowers (optional).

        The answer must depend on nothing but the cell.
        """
        return []

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Why this backend declines the call for yet another reason; empty if it accepts.

        The answer must depend on nothing but the arguments (and the machine), since it is cached.
        It need not repeat what `missing`, `why_not_cell` and the class attributes say.
        """
        return []

    def defers(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Why `auto` had better leave a call that is accepted to others; empty if not (optional).

        A backend says here where others are quicker. It runs such calls for those who name it,
        where no other takes them, and where `rnnjit.tune` measured that it is the quickest after
        all. The answer must depend on nothing but the arguments.
        """
        return []

    @abstractmethod
    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """Compute the layer. None of the inputs may be written to.

        Args:
            layer: what the layer is.
            rows: how the rows of `x` are laid over time.
            x: `[N, I]`, contiguous.
            hx: each state `[D, B, P or H]` (`LayerSpec.state_sizes`), contiguous.
            weights: for each direction those of `LayerSpec.weight_shapes`; any strides.
            keep: whether a backward pass may follow, so that `saved` is worth filling.

        All tensors have one dtype and one device.
        """

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """Compute the gradients of `sum(y * grad_y)` plus `sum(h_n * grad_h_n)` of each state.

        Args:
            layer: as given to `forward`.
            rows: as given to `forward`.
            x: as given to `forward`.
            hx: as given to `forward`.
            weights: as given to `forward`.
            output: what `forward` returned, but for `h_n`, in whose place are any tensors.
            grad_y: `[N, D*P]`, any strides, or None for zero.
            grad_h_n: for each state `[D, B, P or H]`, any strides, or None for zero.
            needs: which gradients to compute.

        None of the inputs may be written to. Not called when `differentiable`.
        """
        raise NotImplementedError(f"backend {self.name!r} has no backward pass")

    def __deepcopy__(self, memo: object) -> Backend:
        # A module that holds a backend may be copied; the compiler behind it is one.
        return self

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """A function for calls like `problem`, which it has accepted, or None (optional).

        It serves dense calls without dropout, and exists to spend less time around the kernels than
        `forward` does, layer by layer. It may rely on the shapes and dtypes of `problem`, and on
        all tensors being contiguous. Where `problem` needs gradients, it must be differentiable by
        autograd, twice too.

        Args:
            spec: the whole stack.
            problem: what the calls are.
            y_shape: of y: `[T, B, D*P]`, or `[B, T, D*P]` where that is the same memory.

        Returns:
            A function of x (T*B*I elements), hx (each state `[L*D, B, P or H]`) and the weights of
            all layers in nn.RNN's flat order, which returns y and h_n, all newly allocated.
        """
        return None

    def stepper(self, spec: RNNSpec, dtype: torch.dtype, batch: int) -> Stepper | None:
        """A function that runs one step of a stack into memory that the caller gives (optional).

        It serves one stream of calls, one at a time, and should allocate nothing; it may keep what
        it needs from step to step, but not the weights. All tensors that it gets are contiguous.

        Args:
            spec: the stack, of one direction.
            dtype: of all tensors, which are on the backend's device; the backend has accepted it.
            batch: B, at least 1.
        """
        return None

    def targets(self) -> Sequence[str]:
        """The names of what `build` can compile for, in this installation (optional)."""
        return ()

    def build(self, spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
        """Compile the forward pass of a stack for a target, ahead of time (optional).

        Args:
            spec: the stack, without dropout.
            dtype: of all tensors.
            target: one of `targets()`.
            name: a C identifier, with which symbols and file names begin.
        """
        raise NotImplementedError(f"backend {self.name!r} builds for no target")

    def load(self, program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
        """Load what `build` made, into this process (optional).

        Args:
            program: its files have been checked to be those that `build` made.
            spec: as given to `build`.
            dtype: as given to `build`.
            name: as given to `build`.

        Raises:
            ArtifactError: it is for another machine, or not to be called from Python.
        """
        raise NotImplementedError(f"backend {self.name!r} loads no programs")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
