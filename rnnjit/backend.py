"""The contract between the core and a backend, and the semantics of a layer.

A backend computes one layer, all its directions, over time-major rows (`rnnjit.spec.Rows`). For
every row of a direction, in this order:

    zx = W_ih x_t + b_ih                       G gates of H columns
    zh = W_hh s_1 + b_hh                       s_1: of the step before; W_hh has no columns, and zh
                                               is not used, if not `CellSpec.has_product`
    out, s_1, ..., s_S = program(zx, zh, s_1, ..., s_S, p_1, ..., p_P, r_1, ..., r_R)
                                               pointwise, `rnnjit.ir`
    h = W_hr out                               where there is a projection: s_1, P wide

A cell is in normal form (`rnnjit.ir.normal_form`): its operand and its output are its first state.
Its parameters p `[H]` are among the weights. Its row inputs r `[H]` of each row are columns of x:
the rows of x are `[I + D*R*H]`, the input x_t, then for each direction its row inputs one by one.

In direction 0, the previous states are those of the previous step of the same sequence, or `hx` at
step 0. Direction 1 runs each sequence from its own last step, where it starts from `hx`, to step 0.
`y` holds the outputs of all steps (projected if there is a projection), direction 0 in columns
`[0, P)` and direction 1 in `[P, 2P)`, with P = H without a projection; `h_n` holds each direction's
last computed states. Stacking, dropout, batch_first, unbatched input and the sorting of packed
sequences are done by the core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rnnjit.ir import CellSpec
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class LayerOutput(NamedTuple):
    """The result of a layer's forward pass.

    Attributes:
        y: `[N, D*P]`, newly allocated, contiguous.
        h_n: the last value of each state, `[D, B, P or H]`, newly allocated, sharing no memory with
            `y`.
        saved: other tensors to keep for the backward pass; `y` and the inputs are kept anyway.
        states: (of `Backend.forward_states`) each state after the first, after every step:
            `[N, D*H]`, direction d in columns `[d*H, (d+1)*H)`, newly allocated, contiguous,
            sharing no memory with the others. They are kept for the backward pass, too.
    """

    y: Tensor
    h_n: tuple[Tensor, ...]
    saved: tuple[Tensor, ...] = ()
    states: tuple[Tensor, ...] = ()


class Needs(NamedTuple):
    """Which gradients a backward pass must compute.

    Attributes:
        x: whether that of the input rows.
        hx: for each initial state, whether its gradient.
        weights: for each weight, in the order of the weights, whether its gradient.
    """

    x: bool
    hx: tuple[bool, ...]
    weights: tuple[bool, ...]


class LayerGrads(NamedTuple):
    """The result of a layer's backward pass: a gradient, or None where none is needed.

    Attributes:
        x: `[N, I + D*R*H]` or None.
        hx: for each state `[D, B, P or H]` or None.
        weights: for each weight, in the order of the weights, a gradient of its shape or None.
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


#: `(x, hx, weights) -> (y, h_n)` of one layer, or `(y, h_n, saved)`, see `Backend.training`.
LayerForward = Callable[[Tensor, States, tuple[Tensor, ...]], tuple[Any, ...]]

#: `(x, hx, weights, kept, grad_y, grad_h_n) -> gradients` of one layer, see `Backend.training`.
LayerBackward = Callable[
    [
        Tensor,
        States,
        Sequence[Tensor],
        tuple[Tensor, ...],
        Tensor | None,
        tuple[Tensor | None, ...],
    ],
    LayerGrads,
]


class Training(NamedTuple):
    """The two passes of recorded calls of one layer, see `Backend.training`.

    Attributes:
        forward: the forward pass.
        backward: the backward pass.
    """

    forward: LayerForward
    backward: LayerBackward


class Program(NamedTuple):
    """A stack compiled ahead of time, see `Backend.build`.

    Attributes:
        files: file contents by name: the code, and what a caller needs (such as a C header).
        machine: what it needs to run; the backend checks it on loading, and people read it.
        versions: versions of the compilers that built it.
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

    A backend declares what it supports as data: `devices`, `dtypes` and `operations`. Calls outside
    of these never reach it.

    Class attributes:
        name: the name that users pass as `backend`; the entry point has the same name.
        priority: `auto` tries backends from the highest to the lowest, and those that defer last.
        automatic: False to keep `auto` from choosing it; it then runs only for users who name it.
        devices: device types that it runs on; None for all. The conformance kit compares it with
            eager on the first one, or on the CPU for None.
        dtypes: dtypes that it computes in; None for all.
        operations: names of the operations of `rnnjit.ir` that it lowers; None for all.
        sizes_matter: False if `why_not` and `defers` do not depend on N of the problem, and on T
            and B only by the powers of two between which they are: 1, 2, 3 to 4, 5 to 8, and so
            on. It is then asked once for all such sizes: real batches seldom repeat a sum of
            lengths.
        under_autocast: True if calls under `torch.autocast` on the CPU may run on it, too. It gets
            them in autocast's dtype, which it has to accept; the core casts. Where False, torch's
            own layers run such calls, even if the user names the backend.
        quantized: whether it runs layers of int8 matrices (`LayerSpec.quantized`), in float32 and
            without gradients, as `rnnjit.quantization` says. Other backends never get them.
        resets_in_kernel: True if layers with resets run as layers of a cell that resets its own
            states (`rnnjit.ir.with_resets`), on devices that the host should not wait for. It
            needs row inputs and `records_states`. Where False, the core cuts sequences at their
            resets into a packed batch, whose sizes it has to read from the device.
        differentiable: True if `forward` consists of differentiable torch operations. The core then
            lets autograd record it and never calls `backward`.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0
    automatic: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...] | None] = ("cpu",)
    dtypes: ClassVar[tuple[torch.dtype, ...] | None] = None
    operations: ClassVar[frozenset[str] | None] = None
    sizes_matter: ClassVar[bool] = True
    under_autocast: ClassVar[bool] = False
    quantized: ClassVar[bool] = False
    resets_in_kernel: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def missing(self) -> list[str]:
        """Why this backend cannot run on this machine at all; empty if it can."""
        return []

    def why_not_cell(self, cell: CellSpec) -> list[str]:
        """Why this backend cannot compute a cell although it lowers its operations (optional).

        The answer must depend only on the cell.
        """
        return []

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Why this backend declines the call; empty if it accepts.

        The answer is cached, so it must depend only on the arguments and the machine. It need not
        repeat what `missing`, `why_not_cell` and the class attributes say.
        """
        return []

    def defers(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Why `auto` should prefer other backends for a call that this one accepts (optional).

        Empty if it should not. A backend gives reasons for the calls on which others are faster. It
        still runs such a call if the user names it, if no other backend accepts the call, or if
        `rnnjit.tune` measured that it is the fastest. The answer must depend only on the arguments.
        """
        return []

    def compile_seconds(self, spec: RNNSpec, problem: Problem) -> float:
        """About how long the first call like this one compiles for, with empty caches (optional).

        Tools that call every backend leave those of 10 seconds and more for the end, and say so
        before they wait.
        """
        return 0.0

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
        """Compute the layer. It must not write to its inputs.

        Args:
            layer: what the layer is.
            rows: how the rows of `x` are laid over time.
            x: `[N, I + D*R*H]`, contiguous: `LayerSpec.features` columns.
            hx: each state `[D, B, P or H]` (`LayerSpec.state_sizes`), contiguous.
            weights: direction by direction, of the shapes `LayerSpec.weight_shapes`; any strides.
            keep: whether a backward pass may follow; if not, `saved` may stay empty.

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
        """Compute the gradients of `sum(y * grad_y)`, plus `sum(h_n * grad_h_n)` for each state.

        Args:
            layer: as given to `forward`.
            rows: as given to `forward`.
            x: as given to `forward`.
            hx: as given to `forward`.
            weights: as given to `forward`.
            output: what `forward` returned, except that `h_n` may hold any tensors.
            grad_y: `[N, D*P]`, any strides, or None for zero.
            grad_h_n: for each state `[D, B, P or H]`, any strides, or None for zero.
            needs: which gradients to compute.

        It must not write to its inputs. Not called if `differentiable`.

        Raises:
            NotImplementedError: the backend does not override this method.
        """
        raise NotImplementedError(f"backend {self.name!r} has no backward pass")

    def records_states(self, layer: LayerSpec, problem: Problem) -> bool:
        """Whether `forward_states` and `backward_states` compute such calls (optional).

        They serve calls with `return_states`, of cells with several states. Where they do not, the
        reference runs the layer. The answer must depend only on the arguments.
        """
        return False

    def forward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """Compute the layer as `forward` does, with the `states` of the output.

        Raises:
            NotImplementedError: the backend does not override this method.
        """
        raise NotImplementedError(f"backend {self.name!r} does not record states")

    def backward_states(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        grad_states: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """Compute the gradients as `backward` does, plus those of `sum(states * grad_states)`.

        Args:
            layer: as given to `forward_states`.
            rows: as given to `forward_states`.
            x: as given to `forward_states`.
            hx: as given to `forward_states`.
            weights: as given to `forward_states`; it may read them and all other inputs.
            output: what `forward_states` returned, except that `h_n` may hold any tensors.
            grad_y: as in `backward`.
            grad_h_n: as in `backward`.
            grad_states: for each state after the first `[N, D*H]`, any strides, or None for zero.
            needs: which gradients to compute.

        Not called if `differentiable`: autograd then records `forward_states`.

        Raises:
            NotImplementedError: the backend does not override this method.
        """
        raise NotImplementedError(f"backend {self.name!r} does not record states")

    def backward_reads(
        self, layer: LayerSpec, rows: Rows, output: LayerOutput, needed: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Which inputs `backward` reads the values of (optional; by default all of them).

        The user may change the others in place between the two passes, as in eager.

        Args:
            layer: as given to `forward`.
            rows: as given to `forward`.
            output: what `forward` returned.
            needed: for x, each state and each weight, whether its gradient is needed.

        Returns:
            For x, each state and each weight, whether `backward` reads it.
        """
        return (True,) * len(needed)

    def carried_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the states but the first between parts of a sequence (optional).

        By default it is `dtype`. A backend that computes these states with more bits than tensors
        of `dtype` have returns a wider one. It then takes hx of which all states but the first have
        this dtype, too, and returns h_n and the gradients of hx in the dtypes of hx, so that a
        sequence in parts has the bits of the whole one.

        Args:
            dtype: of x and the weights.
        """
        return dtype

    def rebuilds_output(self, layer: LayerSpec) -> bool:
        """Whether `rebuilt_output` computes the y of this layer (optional; by default not).

        The y that the user gets is then not copied for the backward pass.
        """
        return False

    def rebuilt_output(
        self, layer: LayerSpec, saved: tuple[Tensor, ...], dtype: torch.dtype
    ) -> Tensor:
        """Compute the y of `forward`, bit for bit, from what it saved.

        Args:
            layer: as given to `forward`.
            saved: `LayerOutput.saved` of its result.
            dtype: of y.

        Returns:
            `[N, D*P]`, contiguous, newly allocated.

        Raises:
            NotImplementedError: the backend does not override this method.
        """
        raise NotImplementedError(f"backend {self.name!r} does not rebuild the output")

    def __deepcopy__(self, memo: object) -> Backend:
        # Copies of a module that holds a backend share it: there is one compiler in a process.
        return self

    def shortcut(
        self, spec: RNNSpec, problem: Problem, y_shape: tuple[int, int, int]
    ) -> Shortcut | None:
        """A function that runs a whole stack for calls like `problem`, or None (optional).

        It serves dense calls without dropout, and has less overhead than calling `forward` layer by
        layer. It may rely on the shapes and dtypes of `problem`, which the backend has accepted,
        and on all tensors being contiguous. If `problem` needs gradients, autograd must be able to
        differentiate it, twice as well.

        Args:
            spec: the whole stack.
            problem: the shapes, dtype and device of the calls.
            y_shape: shape of y: `[T, B, D*P]`. It is `[B, T, D*P]` if `spec.batch_first`, which is
                so only if T or B is 1 or if `problem` needs gradients.

        Returns:
            A function of x (T*B*I elements), hx (each state `[L*D, B, P or H]`) and the weights of
            all layers in nn.RNN's flat order, which returns y and h_n, all newly allocated.
        """
        return None

    def cell_shortcut(self, spec: RNNSpec, problem: Problem) -> Shortcut | None:
        """`shortcut` for one step of a layer, without the dimension of time (optional).

        It serves compiled cells, for calls without gradients, and those of a `differentiable`
        backend for others, too.

        Args:
            spec: one layer, unidirectional.
            problem: the shapes, dtype and device of the calls; T is 1.

        Returns:
            A function of x `[B, I]`, hx (each state `[B, H]`) and the weights, all contiguous,
            which returns y and the new states, of these shapes and newly allocated; y, which is
            `[B, H]`, may be the first of the states.
        """
        return None

    def training(self, layer: LayerSpec, problem: Problem, needs: Needs) -> Training | None:
        """Functions that run a layer and its backward pass for calls like `problem` (optional).

        They compute what `forward` and `backward` do, with less overhead, for dense calls of the
        only layer of a stack. They may rely on the shapes and dtypes of `problem`, which the
        backend has accepted, and on x, hx and the weights being contiguous. `backward_reads` holds
        for the backward pass.

        Args:
            layer: what the layer is.
            problem: the shapes, dtype and device of the calls.
            needs: which gradients the backward pass computes.

        Returns:
            `forward`, a function of x `[T, B, I]`, hx and the weights, which returns y
            `[T, B, D*P]` and h_n and, where it saves any, the saved tensors, all newly allocated;
            and `backward`, a function of x, hx, the weights, y followed by the saved tensors, and
            the gradients of y and h_n (any strides, None for zero), which returns the gradients.
            Those of x and y have three dimensions, too.
        """
        return None

    def stepper(self, spec: RNNSpec, dtype: torch.dtype, batch: int) -> Stepper | None:
        """A function that runs one step of a stack into memory of the caller, or None (optional).

        It serves one stream of calls, one at a time, and should not allocate. It may keep buffers
        from step to step, but not the weights. All its tensor arguments are contiguous.

        Args:
            spec: the stack, unidirectional.
            dtype: dtype of all tensors, which are on the backend's device, but of the states after
                the first, whose dtype is `carried_dtype(dtype)`.
            batch: B, at least 1.

        Returns:
            A function of x `[B, I]`, hx and h_n (each state `[L, B, P or H]`), y `[B, P]` and the
            weights of all layers in nn.RNN's flat order. It writes h_n and y.
        """
        return None

    def choices(self) -> dict[str, str]:
        """What the backend has measured on this machine and chosen by it (optional).

        The keys name what is chosen, the values say what and why. `rnnjit info` shows them; asking
        measures nothing.
        """
        return {}

    def targets(self) -> Sequence[str]:
        """Names of the targets that `build` can compile for in this installation (optional)."""
        return ()

    def why_not_build(self, cell: CellSpec) -> list[str]:
        """Why `build` cannot compile a cell that this backend computes itself (optional)."""
        return []

    def build(self, spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
        """Compile the forward pass of a stack for a target, ahead of time (optional).

        Args:
            spec: the stack, without dropout.
            dtype: dtype of all tensors.
            target: one of `targets()`.
            name: a C identifier, the prefix of symbols and file names.

        Raises:
            NotImplementedError: the backend has no targets.
        """
        raise NotImplementedError(f"backend {self.name!r} has no targets to build for")

    def load(self, program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
        """Load a program that `build` made into this process (optional).

        Args:
            program: the program; the caller has verified the checksums of its files.
            spec: as given to `build`.
            dtype: as given to `build`.
            name: as given to `build`.

        Raises:
            ArtifactError: it is for another machine, or cannot be called from Python.
            NotImplementedError: the backend has no targets.
        """
        raise NotImplementedError(f"backend {self.name!r} cannot load programs")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


@lru_cache(maxsize=1024)
def values_read(
    layer: LayerSpec, several_steps: bool, needed: tuple[bool, ...]
) -> tuple[bool, ...]:
    """The `Backend.backward_reads` of a backend that recomputes nothing of the forward pass.

    Args:
        layer: the configuration of the layer.
        several_steps: whether T > 1: a gradient then passes through W_hh.
        needed: for x, each state and each weight, whether its gradient is needed.

    x is read for dW_ih and for its row inputs, W_ih for dX, h_0 for dW_hh. The gradient of the step
    itself may read the states, the parameters and the row inputs. Biases are never read.
    """
    cell, count = layer.cell, layer.weights_per_direction
    states, read = len(cell.states), cell.backward.used
    of_hx, of_weights = needed[1 : states + 1], needed[states + 1 :]
    own = [True] * count
    own[0], own[1] = needed[0], several_steps or any(of_hx)
    if layer.bias:
        own[2] = own[3] = False
    first = count - len(cell.parameters)
    own[first:] = [name in read for name in cell.parameters]
    read_hx = [name in read for name in cell.states]
    read_hx[0] |= any(of_weights[1::count])
    read_x = any(of_weights[::count]) or any(name in read for name in cell.row_inputs)
    return (read_x, *read_hx, *own * layer.num_directions)
