"""`trace_cell`: one step of a user's cell, traced."""

from __future__ import annotations

import inspect
import os
import traceback
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rnnjit.cells import expressions as source
from rnnjit.cells.graph import DependsOnBatchError, Graph, Merge
from rnnjit.cells.guards import Guards
from rnnjit.cells.lowering import Lowered, lower
from rnnjit.cells.refusals import Refuse, is_own, lines_of
from rnnjit.cells.traced_cell import Draw, TracedCell
from rnnjit.cells.tracer import FunctionNames, Tracer
from rnnjit.errors import CellError
from rnnjit.runtime.torch_private import TorchDispatchMode, buffers_of, parameters_of

#: The batch sizes of the two traces. A single row, too, must give what they give.
_SIZES = (2, 3)


class _Step(NamedTuple):
    """The step that is traced."""

    cell: nn.Module
    name: str
    states: tuple[str, ...]
    input_size: int
    hidden_size: int
    dtype: torch.dtype
    device: torch.device
    method: str = ""

    @property
    def title(self) -> str:
        return f"{type(self.cell).__name__}.{self.method}"

    @property
    def where(self) -> str:
        return lines_of(getattr(self.cell, self.method))


#: How many traces of a cell are kept.
_KEPT = 64

_traced: weakref.WeakKeyDictionary[nn.Module, dict[object, TracedCell]] = (
    weakref.WeakKeyDictionary()
)


def trace_cell(
    cell: nn.Module,
    step: str = "forward",
    *,
    input_size: int | None = None,
    hidden_size: int | None = None,
    states: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    method: str | None = None,
) -> TracedCell:
    """Trace one step of a cell.

    The trace is remembered for the cell as it is: its training mode, and the Python values that
    the step may read (numbers, strings, functions), are constants of it, see `guards`.

    Args:
        cell: a `Cell`, or another module with a method that computes one step.
        step: the name of the method; it takes x `[B, I]` and the states `[B, H]`.
        input_size: I; None for the cell's `input_size`.
        hidden_size: H; None for the cell's `hidden_size`.
        states: names of the states; None for the cell's `states`, or else those of the step's
            arguments after the first.
        dtype: of x and the states; None for that of the cell's first floating-point parameter.
        device: of x and the states; None for that of the cell's first parameter.
        method: the user's method that `step` calls, which errors name; None for the step itself.

    Raises:
        CellError: the step is not of the form that is compiled.
        RuntimeError: torch lacks what tracing needs.
    """
    found = _described(cell, step, input_size, hidden_size, states, dtype, device)
    key = (*found[1:], *state_key(cell), Guards([cell], method or step).key)
    known = _traced.setdefault(cell, {})
    if key not in known:
        if len(known) >= _KEPT:
            known.clear()
        known[key] = _trace(found._replace(method=method or step))
    return known[key]


def _described(
    cell: nn.Module,
    step: str,
    input_size: int | None,
    hidden_size: int | None,
    states: Sequence[str] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> _Step:
    method = getattr(cell, step, None)
    if not callable(method):
        raise TypeError(f"{type(cell).__name__}: expected a method {step}, got {method!r}")
    sizes: list[int] = []
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        size = getattr(cell, name, None) if size is None else size
        if not isinstance(size, int):
            raise TypeError(f"{type(cell).__name__}: expected an integer {name}, got {size!r}")
        sizes.append(size)
    if states is None:
        states = getattr(cell, "states", None)
    if states is None:
        states = list(inspect.signature(method).parameters)[1:]
    floating = (each for each in cell.parameters() if each.is_floating_point())
    first = next(floating, None)
    if dtype is None:
        dtype = torch.get_default_dtype() if first is None else first.dtype
    if device is None:
        device = torch.device("cpu") if first is None else first.device
    I, H = sizes
    return _Step(cell, step, tuple(states), I, H, dtype, torch.device(device))


def tensors_key(tensors: Iterable[Tensor | None]) -> tuple[object, ...]:
    """What of a cell's tensors a trace has as constants: all but their values.

    Two that are one tensor at the time of the trace are one to the trace, too.
    """
    numbers: dict[int, int] = {}
    return tuple(
        [
            each is not None
            and (
                *(each.shape, each.dtype, each.requires_grad),
                numbers.setdefault(id(each), len(numbers)),
            )
            for each in tensors
        ]
    )


def state_key(cell: nn.Module) -> tuple[object, ...]:
    """What a trace depends on beside Python's values: tensors, without their values, and modes."""
    modules = list(cell.modules())
    held = [each for module in modules for each in (parameters_of(module), buffers_of(module))]
    tensors = [tensor for each in held for tensor in each.values()]
    return tensors_key(tensors), tuple([module.training for module in modules])


def _trace(step: _Step) -> TracedCell:
    """Trace the step with two batch sizes; what differs between them depends on the batch."""
    refuse = Refuse(step.title)
    with torch.inference_mode(False), torch.enable_grad():
        pairs = [_run(step, B) for B in _SIZES]
        (one, first), (_, second) = pairs
        refuse.where = step.where
        different = refuse(
            "computes something else for another batch size, or when it runs again",
            "Compute each row alone: take sizes from the states, no number from the batch size, "
            "and none that is drawn, counted or timed in Python",
            operation="the step",
        )
        if first.spec.text != second.spec.text:
            raise different
        merge = Merge(_SIZES)
        draws = [tracer.draws for tracer, _ in pairs]
        if len(draws[0]) != len(draws[1]):
            raise different
        try:
            drawn = tuple(Draw(Graph([merge(a, b)])) for a, b in zip(*draws, strict=True))
            weights, rows = (
                Graph([merge(a, b) for a, b in zip(own, others, strict=True)])
                for own, others in (
                    (first.weights, second.weights),
                    (first.row_inputs, second.row_inputs),
                )
            )
        except DependsOnBatchError as error:
            step_name, _, *others = different.args
            raise CellError(step_name, error.node.where, *others) from None
        traced = TracedCell(
            *(first.spec, first.input_size, first.bias, drawn, weights, rows, step.device)
        )
        _check_rows(step, one, traced, refuse)
        if _differs_alone(step, traced, one.sampled):
            raise different
    return traced


def _differs_alone(step: _Step, traced: TracedCell, sampled: Any) -> bool:
    """Whether the step of a single row computes something else than was traced."""
    try:
        tracer, lowered = _run(step, 1)
    except Exception:  # noqa: BLE001 - the user's code may take a single row for no batch, and fail
        return False
    if lowered.spec.text != traced.spec.text or len(tracer.draws) != len(traced.draws):
        return True
    if not lowered.row_inputs:
        return False
    x, *draws = _random_rows(step, 1, [each.like for each in tracer.draws])
    with torch.no_grad():
        own = Graph(lowered.row_inputs)(sampled, step.device, 1, x, draws)
        known = traced.row_inputs(sampled, x, draws)
    return not all(map(_close, own, known))


def _run(step: _Step, B: int) -> tuple[Tracer, Lowered]:
    """Trace the step with B rows."""
    if TorchDispatchMode is None:
        raise RuntimeError(
            f"torch {torch.__version__} lacks what tracing a cell needs: use the cell uncompiled"
        )
    refuse = Refuse(step.title)
    _check_signature(step, refuse)
    _check_hooks(step, refuse)
    tracer = Tracer(
        *(step.cell, refuse, B, step.input_size, step.hidden_size, step.dtype, step.device)
    )
    shapes = [(B, step.input_size), *[(B, step.hidden_size)] * len(step.states)]
    # Not leaves of autograd: torch itself would refuse to change those in place.
    given = [
        torch.zeros(s, dtype=step.dtype, device=step.device).requires_grad_().clone()
        for s in shapes
    ]
    tracer.give_x(given[0])
    for k, (name, tensor) in enumerate(zip(step.states, given[1:], strict=True)):
        tracer.give(tensor, tracer.pool.leaf(source.STATE, (k,)), f"the state {name}")
    before, generator = _snapshot(step.cell), torch.get_rng_state()
    try:
        with (
            torch.autocast(step.device.type, enabled=False),
            FunctionNames(refuse),
            tracer.mode(),
        ):
            # A call of the module runs its hooks.
            run = step.cell if step.name == "forward" else getattr(step.cell, step.name)
            results = run(*given)
    except Exception as error:
        for known in (tracer.error, error):
            if isinstance(known, CellError):
                raise known from None
        raise _failed(step, refuse, error) from error
    finally:
        changed = _restored(before)
        seeded = not torch.equal(torch.get_rng_state(), generator)
        torch.set_rng_state(generator)
    if tracer.error is not None:
        raise tracer.error
    refuse.calls.clear()
    refuse.where = step.where
    if changed:
        raise refuse(
            "is set in the step, which is traced once",
            "Return what the next step needs as a state",
            operation=", ".join(f"self.{name}" for name in dict.fromkeys(changed)),
        )
    if seeded:
        raise refuse(
            "seeds torch's random generator, or sets its state, and it is traced once",
            "Seed before the call, or draw with a torch.Generator of the cell's own",
            operation="the step",
        )
    outputs = _results(results, step, refuse)
    names = ["the output", *(f"the new state {name}" for name in step.states)]
    values = [tracer.result(each, name) for each, name in zip(outputs, names, strict=True)]
    return tracer, lower(tracer, values, type(step.cell).__name__, step.states)


def _check_signature(step: _Step, refuse: Refuse) -> None:
    """Refuse a step that does not take x and the states."""
    try:
        signature = inspect.signature(getattr(step.cell, step.name))
    except ValueError:
        return
    try:
        signature.bind(*("x", *step.states))
    except TypeError as error:
        taken = ", ".join(("self", "x", *step.states))
        raise refuse(
            f"is called with x and {len(step.states)} states ({', '.join(step.states)}): {error}",
            f"Write def {step.method}({taken}), or name other states in the constructor",
            operation="the step",
            where=step.where,
        ) from None


def _check_hooks(step: _Step, refuse: Refuse) -> None:
    """Refuse hooks on gradients, which the trace would leave out; those of forward are traced."""
    for name, module in step.cell.named_modules():
        own = vars(module)
        if own["_backward_hooks"] or own["_backward_pre_hooks"]:
            raise refuse(
                "has a backward hook, which would see the gradient of one step alone, and no "
                "backend gives it",
                "Change gradients by a torch.autograd.Function whose backward pass is pointwise",
                operation=f"self.{name}" if name else "the cell",
                where=step.where,
            )


def _failed(step: _Step, refuse: Refuse, error: Exception) -> CellError:
    """The error of a step that raised an error itself."""
    frames = traceback.extract_tb(error.__traceback__)
    own_folder = os.path.dirname(frames[-1].filename) == os.path.dirname(__file__)
    if own_folder and frames[-1].name != "__torch_function__":
        raise error  # the tracer's own
    own = [frame for frame in frames if not is_own(frame.filename)]
    numpy = any(f"{os.sep}numpy{os.sep}" in frame.filename for frame in frames)
    own = [frame for frame in own if f"{os.sep}numpy{os.sep}" not in frame.filename]
    where = f"{own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}" if own else step.where
    operation = refuse.calls[0] if refuse.calls else "a function of numpy" if numpy else "the step"
    kind, words = type(error).__name__, str(error).strip().partition("\n")[0].rstrip(".")
    if numpy or "numpy" in words:
        why = "takes a tensor's values out of torch, but one trace serves all values"
        return refuse(why, "Compute with torch's operators", operation=operation, where=where)
    return refuse(
        f"raised {kind}: {words}",
        "Call the cell itself with x [B, I] and states [B, H] to see it fail",
        operation=operation,
        where=where,
    )


def _snapshot(cell: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The attributes, parameters and buffers of a module and of those in it, each with a copy."""
    held = [
        (prefix, own)
        for prefix, module in cell.named_modules()
        for own in (vars(module), parameters_of(module), buffers_of(module))
    ]
    return [(own, dict(own)) for _, own in held]


def _restored(before: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Give a module back the attributes that it had, and return the names of those that differ."""
    changed: list[str] = []
    for own, copy in before:
        for name in [*copy, *(own.keys() - copy.keys())]:
            if name not in own or name not in copy or own[name] is not copy[name]:
                changed.append(name)
        if changed:
            own.clear()
            own.update(copy)
    return changed


def _results(results: object, step: _Step, refuse: Refuse) -> list[object]:
    """The output and the new states."""
    flat: list[object] = []
    for each in results if isinstance(results, (list, tuple)) else (results,):
        flat += each if isinstance(each, (list, tuple)) else [each]
    count = len(step.states)
    if len(flat) == count:
        return [flat[0], *flat]
    if len(flat) == count + 1:
        return flat
    raise refuse(
        f"returns {len(flat)} tensors, and there are {count} states ({', '.join(step.states)})",
        f"Return the output and then each new state ({count + 1} tensors), or the new states alone "
        f"({count}), the first of which is the output",
        operation="the step",
    )


def _check_rows(step: _Step, tracer: Tracer, traced: TracedCell, refuse: Refuse) -> None:
    """Refuse row inputs that mix rows: each row alone must give what all rows together give."""
    if not traced.spec.row_inputs:
        return
    count = 3
    x, *draws = _random_rows(step, count, [each.like for each in tracer.draws])
    with torch.no_grad():
        together = traced.row_inputs(tracer.sampled, x, draws)
        for row in range(count):
            own = slice(row, row + 1)
            alone = traced.row_inputs(tracer.sampled, x[own], [each[own] for each in draws])
            for k, (one, all_rows) in enumerate(zip(alone, together, strict=True)):
                if not _close(one, all_rows[own]):
                    node = traced._row_inputs.wanted[k]
                    raise refuse(
                        "mixes rows of the batch, which a sequence's result must not depend on",
                        "Compute each row alone, as LayerNorm does in place of BatchNorm; "
                        "statistics of the batch come from outside of the cell",
                        operation="what is computed from x",
                        where=node.where,
                    )


def _random_rows(step: _Step, count: int, drawn: Sequence[Tensor]) -> list[Tensor]:
    """Numbers in the place of x and of draws like these, for so many rows."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    shapes = [((step.input_size,), step.dtype), *[(each.shape[1:], each.dtype) for each in drawn]]
    found = []
    for shape, dtype in shapes:
        shape = (count, *shape)
        values = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        found.append((values * 2).to(dtype).to(step.device))
    return found


def _close(one: Tensor, other: Tensor) -> bool:
    same = one.shape == other.shape
    return same and bool(torch.isclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True).all())
