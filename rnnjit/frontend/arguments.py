"""Converts the arguments of a call to rows and results back, with the checks of nn.RNN."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.execution.stack import dense_output
from rnnjit.frontend.packed import (
    check_batch_sizes,
    check_order,
    check_sizes_tensor,
    first_size,
    permute_state,
)
from rnnjit.ir import CellSpec
from rnnjit.runtime.torch_private import any_autocast
from rnnjit.spec import RNNSpec, Rows

#: What a layer returns: y in the form of the input, and the last state or a tuple of states.
Result = tuple[Tensor | PackedSequence, Tensor | States]

#: For each layer its states after every step, each in the form of y.
AllStates = tuple[tuple[Tensor | PackedSequence, ...], ...]

#: The layouts that `to_dense` converts, and that torch takes in some places.
SPARSE = frozenset(
    {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
)


class StateDtypeError(RuntimeError):
    """A state other than the first has another dtype than the weights; nothing else is wrong.

    Such a state meets no weight, and torch takes some of these calls, see `promoted`.
    """


class Prepared(NamedTuple):
    """The checked arguments of a call, laid out as rows.

    Attributes:
        x: contiguous rows, `[N, I]`, or `[T, B, I]` for a dense batch.
        hx: each state `[L*D, B, P or H]`, in the order of the rows, or None for zeros.
        rows: how the rows are laid over time.
        packed: the PackedSequence that the caller gave, or None.
        batched: False for a single sequence given without a batch dimension.
    """

    x: Tensor
    hx: States | None
    rows: Rows
    packed: PackedSequence | None
    batched: bool


def prepare(spec: RNNSpec, weight: Tensor, x: Any, hx: Any) -> Prepared:
    """Check the arguments of a call as nn.RNN does, in its order, and lay them out as rows.

    Args:
        spec: the configuration of the module.
        weight: `RNNSpec.typed_weight`; the arguments must have its dtype and device.
        x: a Tensor `[T, B, I]`, `[B, T, I]` if batch_first, `[T, I]`, or a PackedSequence.
        hx: the initial state `[L*D, B, H]` (`[L*D, H]` if unbatched), a tuple or list of states if
            the cell has several, or None for zeros.

    Raises:
        AttributeError: an argument is not a tensor.
        ValueError: wrong rank, or a dtype other than the weights'.
        RuntimeError: any other wrong shape, dtype or device. It is the subclass NotImplementedError
            for kinds of tensor that torch itself has no operators for.
        StateDtypeError: see there.
        IndexError: a PackedSequence without time steps.
        TypeError: the `batch_sizes` of a PackedSequence are not integers, or `batch_first` is not a
            bool.
    """
    packed = x if isinstance(x, PackedSequence) else None
    if packed is not None:
        return _prepare_packed(spec, weight, packed, hx)
    _expect_tensor("input", x)
    rank = x.dim()
    if rank not in (2, 3):
        raise ValueError(f"input must be 2-D (unbatched) or 3-D (batched), got {rank}-D: {_of(x)}")
    if spec.batch_first is None:
        raise AttributeError("the module has no attribute 'batch_first', which dense input needs")
    states = as_states(spec, hx, indexed=rank == 2)
    for name, state in _named(states):
        if state.dim() != rank:
            kind = "batched" if rank == 3 else "unbatched"
            raise RuntimeError(
                f"{name} must be {rank}-D like the {kind} input, got {state.dim()}-D: {_of(state)}"
            )
    states = states and dense_states(spec.cell, states)
    _check_input(spec, weight, x, given_state=states is not None)
    unbatched = rank == 2
    time_major = x.transpose(0, 1) if spec.batch_first and not unbatched else x
    steps, batch = time_major.shape[0], 1 if unbatched else time_major.shape[1]
    if states is not None and unbatched:
        states = tuple([state.unsqueeze(1) for state in states])
    _check_shapes(spec, states, batch, unbatched=unbatched)
    if type(spec.batch_first) is not bool:
        raise TypeError(f"batch_first must be a bool, got {spec.batch_first!r}")
    _check_devices(weight, x, states)
    if steps == 0:
        raise RuntimeError(f"input must have at least one time step, got none: {_of(x)}")
    _check_dtypes(weight, states)
    rows = Rows(steps, batch, steps * batch)
    return Prepared(time_major.contiguous(), states, rows, None, rank == 3)


def as_states(spec: RNNSpec, hx: Any, *, indexed: bool = False) -> States | None:
    """Convert `hx` from the form of nn.RNN's argument to a tuple of states, or None.

    Args:
        spec: the configuration of the module.
        hx: as for `states_of`, or None.
        indexed: as for `states_of`.

    Raises:
        AttributeError, TypeError, RuntimeError, IndexError: as for `states_of`.
    """
    return None if hx is None else states_of(spec.cell.states, hx, indexed=indexed)


def states_of(names: tuple[str, ...], hx: Any, *, indexed: bool) -> States:
    """Convert states in the form of an argument of torch's modules to a tuple.

    Args:
        names: the names of the states.
        hx: a tensor, or a tuple or list of tensors if there are several states.
        indexed: whether torch reads several states one by one, as it does for unbatched input: it
            then takes them stacked in a tensor as well, and leaves out what follows them.

    Raises:
        AttributeError: a state is not a tensor, and it is the only one, or `indexed`.
        TypeError: a state is not a tensor elsewhere, or `hx` is neither a tuple nor a list.
        IndexError: there are too few states, and `indexed`.
        RuntimeError: there are too few or too many states elsewhere.
    """
    count = len(names)
    if count == 1:
        _expect_tensor("hx", hx)
        return (hx,)
    if indexed and isinstance(hx, (tuple, list, Tensor)):
        hx = tuple(hx[:count])
    expected = f"hx must be a tuple of {count} states"
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"{expected} ({', '.join(names)}), got {type(hx).__name__}")
    for index, state in enumerate(hx):
        if not isinstance(state, Tensor):
            kind = AttributeError if indexed else TypeError
            raise kind(f"hx[{index}] must be a Tensor, got {type(state).__name__}")
    if len(hx) != count:
        raise (IndexError if indexed else RuntimeError)(f"{expected}, got {len(hx)}")
    return tuple(hx)


def as_hx(states: States) -> Tensor | States:
    """Convert states to the form of nn.RNN's results: one tensor, or a tuple of several."""
    return states[0] if len(states) == 1 else states


def _named(states: Any) -> list[tuple[str, Any]]:
    """The initial states, each with the name that error messages use."""
    if states is None:
        return []
    if len(states) == 1:
        return [("hx", states[0])]
    return [(f"hx[{index}]", state) for index, state in enumerate(states)]


def initial_states(spec: RNNSpec, prepared: Prepared) -> States:
    """The states that a call starts from, each `[L*D, B, P or H]`; zeros if none were given."""
    if prepared.hx is not None:
        return prepared.hx
    return tuple([prepared.x.new_zeros(shape) for shape in spec.state_shapes(prepared.rows.B)])


def _prepare_packed(spec: RNNSpec, weight: Tensor, packed: PackedSequence, hx: Any) -> Prepared:
    data, sizes, order = packed.data, packed.batch_sizes, packed.sorted_indices
    _expect_tensor("input.data", data)
    data, given = _dense("input.data", data), hx is not None
    try:
        counts = check_batch_sizes(sizes, data, given_state=given)
    except (RuntimeError, TypeError):
        _packed_states(spec, weight, data, hx, order, first_size(sizes))
        raise  # torch, too, comes to the sizes after the other arguments
    batch, total = counts[0], sum(counts)
    states = _packed_states(spec, weight, data, hx, order, batch)
    _check_devices(weight, data, states)
    check_order("input.unsorted_indices", packed.unsorted_indices, batch, data)
    _check_dtypes(weight, states)
    # A copy, since the backward pass trusts these numbers long after they were checked.
    rows = Rows(len(counts), batch, total, sizes.clone(memory_format=torch.contiguous_format))
    return Prepared(data[:total].contiguous(), states, rows, packed, True)


def check_packed(
    spec: RNNSpec, weight: Tensor, packed: PackedSequence, hx: Any
) -> tuple[int | None, States | None]:
    """Check packed arguments as `prepare` does, but for the values of their batch sizes.

    Returns:
        B, or None if only the batch sizes say it; and each state `[L*D, B, P or H]` in the order of
        the rows, or None for zeros.
    """
    data, order, back = packed.data, packed.sorted_indices, packed.unsorted_indices
    _expect_tensor("input.data", data)
    if data.layout is not torch.strided or data.is_nested:
        raise _not_dense("input.data", data)
    check_sizes_tensor(packed.batch_sizes, given_state=hx is not None)
    given = as_states(spec, hx, indexed=order is not None)
    batch = None
    if order is not None:
        batch = order.shape[0]
    elif given is not None:
        if given[0].dim() != 3:
            raise RuntimeError(f"hx must be 3-D, got {given[0].dim()}-D: {_of(given[0])}")
        batch = given[0].shape[1]
    elif back is not None:
        batch = back.shape[0]
    states = _packed_states(spec, weight, data, hx, order, batch)
    if batch is not None:
        check_order("input.unsorted_indices", back, batch, data)
    _check_dtypes(weight, states)
    _check_devices(weight, data, states)
    return batch, states


def _packed_states(
    spec: RNNSpec, weight: Tensor, data: Tensor, hx: Any, order: Any, batch: int | None
) -> States | None:
    """Check the data and the states of a packed call, and put the states in its order.

    The order is `sorted_indices`; the batch is None if it is unknown.
    """
    given = hx is not None
    if not given or order is None:
        _check_input(spec, weight, data, rank=2, given_state=given)
    states = as_states(spec, hx, indexed=order is not None)
    states = states and dense_states(spec.cell, states)
    if batch is None:
        return states
    check_order("input.sorted_indices", order, batch, data if states is None else states[0])
    if states is not None and order is not None:
        states = tuple([permute_state(state, order) for state in states])
        _check_input(spec, weight, data, rank=2, given_state=given)
    _check_shapes(spec, states, batch, unbatched=False)
    return states


def restore(spec: RNNSpec, prepared: Prepared, y: Tensor, h_n: States) -> Result:
    """Convert y (`[N, D*P]` or `[T, B, D*P]`) and the states h_n to the form of the input."""
    packed, rows = prepared.packed, prepared.rows
    if packed is not None:
        if packed.unsorted_indices is not None:
            h_n = tuple([state.index_select(1, packed.unsorted_indices) for state in h_n])
        output = PackedSequence(
            y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return output, as_hx(h_n)
    if not prepared.batched:
        return y, as_hx(tuple([state.squeeze(1) for state in h_n]))
    return dense_output(y, rows, bool(spec.batch_first)), as_hx(h_n)


def restore_states(spec: RNNSpec, prepared: Prepared, states: tuple[States, ...]) -> AllStates:
    """Copy the states of every layer and step, each `[N, D*P or D*H]`, to the form of the input."""

    def restored(state: Tensor) -> Tensor | PackedSequence:
        packed, rows = prepared.packed, prepared.rows
        if packed is not None:
            sizes, *orders = packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
            return PackedSequence(state.clone(), sizes, *orders)
        if prepared.batched:
            state = state.view(rows.T, rows.B, state.shape[-1])
            state = state.transpose(0, 1) if spec.batch_first else state
        return state.clone()

    return tuple([tuple([restored(state) for state in layer]) for layer in states])


def check_weights(spec: RNNSpec, names: list[str], weights: tuple[Tensor, ...]) -> None:
    """Check that a module's weights fit each other and its configuration.

    Users may replace weights at any time, and kernels do not check shapes.

    Raises:
        TypeError: a weight is not a tensor.
        RuntimeError: a weight has a wrong shape, dtype or device, or there are too few or too many
            weights.
    """
    shapes = spec.weight_shapes
    if len(weights) != len(shapes):
        raise RuntimeError(
            f"the module has {len(weights)} weights, but its configuration needs {len(shapes)}: "
            "num_layers, bias or bidirectional was changed after construction"
        )
    try:
        first, device = weights[0].dtype, weights[0].device
        for index, (weight, own) in enumerate(zip(weights, spec.weight_dtypes, strict=True)):
            dtype = own or first
            strided = weight.layout is torch.strided and not weight.is_nested
            if not strided and (weight.is_nested or names[index].startswith("weight_hh")):
                raise _not_dense(names[index], weight)  # torch takes others
            if weight.shape != shapes[index] or weight.dtype is not dtype:
                _explain_weight(spec, names[index], weight, shapes[index], names[0], dtype)
            if weight.device != device:
                raise RuntimeError(
                    f"{names[index]} is on {weight.device}, but {names[0]} is on {device}"
                )
    except AttributeError:
        wrong = [
            f"{name} must be a Tensor, got {type(weight).__name__}"
            for name, weight in zip(names, weights, strict=True)
            if not isinstance(weight, Tensor)
        ]
        raise TypeError("; ".join(wrong)) from None


def _explain_weight(
    spec: RNNSpec, name: str, weight: Tensor, shape: torch.Size, first: str, dtype: torch.dtype
) -> None:
    if weight.shape != shape:
        raise RuntimeError(
            f"{name} must have shape {list(shape)}, got {list(weight.shape)} "
            f"(input_size={spec.input_size}, hidden_size={spec.hidden_size})"
        )
    if spec.quantized:
        raise RuntimeError(
            f"{name} must be {dtype} in a quantized module, got {weight.dtype}: such modules take "
            "and compute float32, do not convert them"
        )
    if not any_autocast():
        raise RuntimeError(f"{name} must be {dtype} like {first}, got {weight.dtype}")


def _check_input(
    spec: RNNSpec, weight: Tensor, x: Tensor, rank: int | None = None, *, given_state: bool
) -> None:
    if not isinstance(weight, Tensor):
        raise AttributeError(f"weight_ih_l0 must be a Tensor, got {type(weight).__name__}")
    dtype = weight.dtype
    if x.dtype is not dtype and not any_autocast():
        if x.is_quantized and not given_state:  # Eager cannot create zeros of this dtype.
            raise NotImplementedError(f"input must not be quantized, got {x.dtype}: dequantize it")
        if spec.quantized:
            raise ValueError(
                f"input must be {dtype}, in which a quantized module computes, got {x.dtype}: "
                f"input.to({dtype})"
            )
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "  # torch's words
            f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
        )
    if rank is not None and x.dim() != rank:
        raise RuntimeError(f"input.data must be {rank}-D, got {x.dim()}-D: {_of(x)}")
    if x.layout is not torch.strided or x.is_nested:
        raise _not_dense("input", x)
    if x.shape[-1] != spec.input_size:
        raise RuntimeError(
            f"input must have input_size={spec.input_size} features in its last dimension, "
            f"got {x.shape[-1]}: {_of(x)}"
        )


def _check_shapes(spec: RNNSpec, states: States | None, batch: int, *, unbatched: bool) -> None:
    if states is None:
        return
    for (name, hx), expected in zip(_named(states), spec.state_shapes(batch), strict=True):
        if hx.shape != expected:
            shown = (expected[0], expected[2]) if unbatched else expected
            got = [hx.shape[0], hx.shape[2]] if unbatched else list(hx.shape)
            features = "proj_size" if expected[2] != spec.hidden_size else "hidden_size"
            raise RuntimeError(
                f"{name} must have shape {list(shown)} (num_layers * num_directions"
                f"{'' if unbatched else ', batch'}, {features}), got {got}"
            )


def _check_devices(weight: Tensor, x: Tensor, states: States | None) -> None:
    for name, tensor in (("input", x), *_named(states)):
        if tensor.device != weight.device:
            raise RuntimeError(
                f"{name} is on {tensor.device} but the weights are on {weight.device}"
            )


def _check_dtypes(weight: Tensor, states: States | None) -> None:
    for index, (name, hx) in enumerate(_named(states)):
        if hx.dtype is not weight.dtype and not any_autocast():
            kind = StateDtypeError if index else RuntimeError
            raise kind(f"{name} is {hx.dtype} but the weights are {weight.dtype}")


def dense_states(cell: CellSpec, states: States) -> States:
    """Convert sparse states to strided ones where eager takes them.

    It takes those that only meet the weights, and none that a cell reads element by element.

    Raises:
        RuntimeError: a state is not dense, and eager does not take it.
    """
    if all([s.layout is torch.strided and not s.is_nested for s in states]):  # noqa: C419 - faster
        return states
    return tuple(
        [
            _dense(name, state, sparse=of not in cell.program.used)
            for of, (name, state) in zip(cell.states, _named(states), strict=True)
        ]
    )


def _expect_tensor(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        return
    kinds = {"input": "a Tensor or a PackedSequence", "hx": "a Tensor or None"}
    expected = kinds.get(name, "a Tensor")
    raise AttributeError(f"{name} must be {expected}, got {type(value).__name__}")


def _dense(name: str, tensor: Tensor, *, sparse: bool = True) -> Tensor:
    """Convert a sparse tensor to a strided one, if `sparse` says that eager takes it."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        return tensor
    if sparse and tensor.layout in SPARSE:
        return tensor.to_dense(masked_grad=False)
    raise _not_dense(name, tensor)


def _not_dense(name: str, tensor: Tensor) -> RuntimeError:
    kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
    error = NotImplementedError if tensor.is_mkldnn else RuntimeError
    return error(f"{name} must be a dense tensor, got {kind}: convert it first")


def _of(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}"
