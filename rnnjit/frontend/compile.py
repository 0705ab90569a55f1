"""`rnnjit.compile`: replaces torch's recurrent modules inside a model by compiled ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar, cast, overload

import torch
from torch import nn

from rnnjit.backend import Backend
from rnnjit.cells import Cell
from rnnjit.dispatch.blame import from_outside
from rnnjit.dispatch.choice import why_not_cell
from rnnjit.dispatch.registry import backends, resolve
from rnnjit.errors import RNNJitWarning
from rnnjit.frontend.adapt import Adaptation, check_cells
from rnnjit.frontend.adapted import become_adapted, empty_adapted, source_of
from rnnjit.frontend.capture import cell_of, is_quantized
from rnnjit.frontend.compiled_base import CompiledBase, check_recompute
from rnnjit.frontend.compiled_cell import CompiledGRUCell, CompiledLSTMCell, CompiledRNNCell
from rnnjit.frontend.compiled_class import (
    class_for,
    compiled_class,
    name_conflict,
    overridden,
    replaced,
)
from rnnjit.frontend.compiled_layer import CompiledGRU, CompiledLSTM, CompiledRNN
from rnnjit.frontend.compiled_recurrent import CompiledRecurrent, adopt, trace
from rnnjit.frontend.quantized_modules import (
    as_float_module,
    become_quantized,
    dynamic_cell,
    float_class,
    matrices_of,
    why_not_taken,
)
from rnnjit.frontend.reachable import reachable, reachable_modules, shared_tensors
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.frontend.scripted import copy_scripted, scripted_modules, scripted_recurrent
from rnnjit.ir import CellSpec
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.torch_private import hold_flat_weights

#: Why a cell of the user's stays as it is.
_ONE_STEP = (
    "a Cell is one step, which its own forward runs; rnnjit.Recurrent(cell) is compiled, over time"
)
#: Why a recurrent module that was scripted or traced stays as it is.
_SCRIPTED = "TorchScript runs without Python: compile the model that was scripted or traced"
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@overload
def compile(  # noqa: A001 - as below
    module: nn.RNN,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledRNN: ...


@overload
def compile(  # noqa: A001 - as below
    module: nn.LSTM,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledLSTM: ...


@overload
def compile(  # noqa: A001 - as below
    module: nn.GRU,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledGRU: ...


@overload
def compile(  # noqa: A001 - as below
    module: nn.RNNCell,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledRNNCell: ...


@overload
def compile(  # noqa: A001 - as below
    module: nn.LSTMCell,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledLSTMCell: ...


@overload
def compile(  # noqa: A001 - as below
    module: nn.GRUCell,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledGRUCell: ...


@overload
def compile(  # noqa: A001 - as below
    module: Recurrent,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> CompiledRecurrent: ...


@overload
def compile(  # noqa: A001 - as below
    module: ModuleT,
    *,
    backend: str | Backend = ...,
    inplace: bool = ...,
    recompute: bool = ...,
    cells: Mapping[type, Adaptation] | None = ...,
) -> ModuleT: ...


def compile(  # noqa: A001 - the name users know from torch.compile
    module: ModuleT,
    *,
    backend: str | Backend = "auto",
    inplace: bool = False,
    recompute: bool = False,
    cells: Mapping[type, Adaptation] | None = None,
) -> ModuleT | CompiledBase:
    """Replace every recurrent module in `module` by a compiled drop-in.

    The result shares its Parameters and buffers with `module`: optimizers made before or after see
    both, training one trains the other, and `.to()` on one converts the Parameters of both.
    Everything else of the model is copied, so that the original does not change and runs eager.

    Args:
        module: an nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell or rnnjit.Recurrent,
            or any module that contains some, in submodules or in plain lists, tuples and dicts.
            Recurrent modules that only other objects hold, such as a deque or a SimpleNamespace,
            stay eager, and their Parameters are copied. A module that occurs several times is
            compiled once and stays shared. Torch's dynamically quantized modules (nn.LSTM, nn.GRU
            and the Cells, by `torch.ao.quantization.quantize_dynamic`) become what
            `rnnjit.quantize` makes, with their int8 matrices and scales. For "auto", one whose cell
            no compiled backend computes stays as it is. The cells of a Recurrent are traced, unless
            `backend` is "eager". A Cell alone stays as it is. What a subclass's `forward` calls by
            `super()` runs compiled. A module stays eager, with an `RNNJitWarning`, if the backend
            that is named does not compute its cell, if it overrides what torch's `forward` uses,
            such as `permute_hidden`, if it has a `forward` set on the instance, or if it was
            scripted or traced. A module that is already compiled is compiled again, for `backend`.
        backend: "auto" (the first backend in order of priority that accepts the call, or the
            fastest one that `rnnjit.tune` measured), the name of an installed backend (see
            `rnnjit.backends`), or a `Backend`. A backend that is named is never replaced by
            another: a call that it declines raises `UnsupportedError`.
        inplace: change `module` itself rather than a copy of its structure, and return it.
        recompute: in training, keep no gate for the backward pass: it recomputes the forward pass,
            a segment of steps at a time, for 1.3 to 1.7 times the time and less memory. Calls that
            keep no gates anyway are not changed: of nn.RNN, and on the eager backend.
        cells: classes of modules whose `forward` is a Python loop over a method of one step, and
            for each what `rnnjit.adapt` says of it. Their loop is compiled; the first call compares
            three steps with it, values and gradients.

    Returns:
        `module` itself if `inplace`, else a copy of its structure that shares the tensors.

    Raises:
        CellError: the cell of a Recurrent computes what no backend could.
        TypeError: `module` is not a module, cannot be copied, or copies itself in a way that leaves
            out what was compiled or shared, or `backend` or `recompute` is of the wrong type.
        ValueError: `module` contains nothing to compile, or no such backend is installed, or a
            class in `cells` has no such method or there is no instance of any.

    Example:
        >>> import torch
        >>> rnn = torch.nn.RNN(8, 16)
        >>> fast = compile(rnn)
        >>> fast.weight_hh_l0 is rnn.weight_hh_l0
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    check_recompute(recompute)
    wanted, loops = resolve(backend), adapted_in(module, check_cells(cells))
    rnns = _compilable(module, wanted, loops)
    plans = {id(rnn): trace(rnn) for rnn in rnns if wanted is not EAGER}
    if inplace:
        for rnn in rnns:
            if float_class(rnn) is not None:
                _take(rnn, rnn, backend, recompute)
                continue
            _become_compiled(rnn, vars(rnn), backend, recompute)
            adopt(rnn, plans.get(id(rnn)))
        for loop, how in loops:
            become_adapted(loop, vars(loop), how, backend, recompute)
        return module
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared_tensors(module)}
    shells: dict[int, nn.Module] = {id(rnn): _shell(rnn) for rnn in rnns}
    shells |= {id(loop): empty_adapted(source_of(loop), how) for loop, how in loops}
    memo.update(shells)
    try:
        memo |= {id(each): copy_scripted(each) for each in scripted_modules(module).values()}
        for rnn in rnns:
            if float_class(rnn) is not None:
                _take(rnn, shells[id(rnn)], backend, recompute)
                continue
            state = copy.deepcopy(vars(rnn), memo)
            _become_compiled(shells[id(rnn)], state, backend, recompute)
            adopt(shells[id(rnn)], plans.get(id(rnn)))
            for name, value in _slots(rnn).items():
                setattr(shells[id(rnn)], name, copy.deepcopy(value, memo))
        for loop, how in loops:
            state = copy.deepcopy(vars(loop), memo)
            become_adapted(shells[id(loop)], state, how, backend, recompute)
        copied = copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}): "
            "use rnnjit.compile(module, inplace=True)"
        ) from error
    _check_copy(module, copied, shells)
    return copied


def _check_copy(module: nn.Module, copied: nn.Module, shells: Mapping[int, nn.Module]) -> None:
    """Check that a copy holds the compiled modules and the original's Parameters.

    A class may copy itself by `__deepcopy__`, `__reduce__` and the like, for example by
    constructing a new model and loading the state into it.

    Args:
        module: the original.
        copied: its copy.
        shells: the compiled modules, by the ids of the originals.

    Raises:
        TypeError: it lacks one.
    """
    there = {id(value) for _, value in reachable(copied)}
    for path, value in reachable(module):
        found = shells.get(id(value), value if isinstance(value, nn.Parameter) else None)
        if found is not None and id(found) not in there:
            culprits = dict.fromkeys(
                type(child).__name__
                for _, child in reachable_modules(module)
                if id(child) not in shells and _copies_itself(child)
            )
            what = "the compiled module" if id(value) in shells else "the original's Parameter"
            raise TypeError(
                f"{' or '.join(culprits) or type(module).__name__} copies itself in its own way: a "
                f"copy of {type(module).__name__} does not hold {what} at {path!r}: use "
                "rnnjit.compile(module, inplace=True)"
            )


def _copies_itself(module: nn.Module) -> bool:
    """Whether the class of a module defines how it is copied."""
    names = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    cls = type(module)
    return any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in names)


def why_left(module: nn.Module, wanted: Backend | None) -> str:
    """Why `compile` leaves a recurrent module as it is, or "" if it compiles it.

    Args:
        module: an nn.RNNBase or nn.RNNCellBase.
        wanted: the backend that the user named, or None for "auto". "auto" leaves a module alone if
            only the eager backend could compute it.
    """
    if isinstance(module, CompiledBase):
        assigned = module._weights_assigned
        return "left eager: what torch's forward uses was assigned" if assigned else ""
    if isinstance(module, Cell):
        return f"left as it is: {_ONE_STEP}"
    if not isinstance(module, replaced()):
        return f"left eager: it is no {_known()}"
    if reason := _why_not_computed(module, wanted):
        return f"left eager: {reason}"
    why = overridden(module) or name_conflict(module)
    return f"left eager: it {why}" if why else ""


def _why_not_computed(module: nn.Module, wanted: Backend | None) -> str:
    """Why none of the possible backends computes such a module, or "" if one does."""
    quantized = is_quantized(module) or float_class(module) is not None
    try:
        cell = cell_of(module) if float_class(module) is None else dynamic_cell(module)
    except (AssertionError, AttributeError, RuntimeError):
        return ""  # the call raises this error
    kind = f"{cell.name} layers{' of int8 matrices' if quantized else ''}"
    if wanted is not None:
        lacks = why_not_cell(wanted, cell) or (quantized and not wanted.quantized)
        return f"backend {wanted.name!r} computes no {kind}" if lacks else ""
    if any(
        _may_compute(backend, cell) and (backend.quantized or not quantized)
        for backend in backends().values()
    ):
        return ""
    return f"no compiled backend computes {kind}"


def _may_compute(backend: Backend, cell: CellSpec) -> bool:
    """Whether `auto` may choose a backend other than eager for layers of this cell."""
    if backend is EAGER:
        return False
    try:
        return bool(backend.automatic) and not why_not_cell(backend, cell)
    except Exception as error:
        if from_outside(error):
            raise
        return True  # each call asks again; `auto` then skips it, and `explain` says why


def _compilable(
    module: nn.Module, wanted: Backend | None, loops: list[tuple[nn.Module, Adaptation]]
) -> list[nn.Module]:
    """Every distinct RNN to replace but `loops`; warns about those that must stay eager."""
    found: list[nn.Module] = []
    left: dict[str, list[str]] = {}
    not_computed: dict[str, list[str]] = {}
    for path, child in reachable_modules(module):
        where = type(child).__name__ + (f" at {path!r}" if path else "")
        if isinstance(child, CompiledBase):
            found.append(child)
        elif float_class(child) is not None:
            if reason := _why_not_computed(child, wanted) or why_not_taken(child):
                left.setdefault(reason, []).append(where)
            else:
                found.append(child)
        elif isinstance(child, replaced()):
            if reason := _why_not_computed(child, wanted):
                not_computed.setdefault(reason, []).append(where)
            elif why := overridden(child) or name_conflict(child):
                left.setdefault(why, []).append(where)
            else:
                found.append(child)
        elif isinstance(child, Cell):
            not_computed.setdefault(_ONE_STEP, []).append(where)
    if found and wanted is not None:
        left |= not_computed
    if found and (as_script := scripted_recurrent(module)):
        left[_SCRIPTED] = as_script
    if left:
        parts = [f"{', '.join(names)} ({why})" for why, names in left.items()]
        warnings.warn(f"left eager: {'; '.join(parts)}", RNNJitWarning, stacklevel=3)
    elif not found and not loops:
        scripted = any(isinstance(child, torch.jit.ScriptModule) for child in module.modules())
        advice = ". Compile the model that was scripted" if scripted else ""
        what = f"{type(module).__name__} has {sum(1 for _ in module.modules())} modules"
        if not_computed:
            raise ValueError(
                f"module contains nothing to compile: {what}; {'; '.join(not_computed)}"
            )
        raise ValueError(
            f"module contains no {_known()} to compile: {what}, none of them one{advice}"
        )
    return found


def _known() -> str:
    """The names of the classes that are replaced."""
    names = (f"{'rnnjit' if cls is Recurrent else 'nn'}.{cls.__name__}" for cls in replaced())
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}"


def adapted_in(
    module: nn.Module, cells: Mapping[type, Adaptation]
) -> list[tuple[nn.Module, Adaptation]]:
    """Every distinct module of these classes, and how it is adapted."""
    found: list[tuple[nn.Module, Adaptation]] = []
    for _, child in reachable_modules(module) if cells else ():
        kinds = [cls for cls in type(child).__mro__ if cls in cells]
        if kinds:
            how = cells[kinds[0]]
            how.sizes(child)  # checked before anything is changed
            found.append((child, how))
    if cells and not found:
        names = ", ".join(cls.__name__ for cls in cells)
        raise ValueError(f"module contains no {names}, which `cells` names")
    return found


def _shell(rnn: nn.Module) -> CompiledBase:
    taken = float_class(rnn)
    cls = class_for(rnn) if taken is None else compiled_class(cast("Any", taken))
    shell: CompiledBase = object.__new__(cast("Any", cls))
    return shell


def _slots(rnn: nn.Module) -> dict[str, Any]:
    """The attributes that a class keeps in `__slots__`."""
    found = {}
    for cls in type(rnn).__mro__:
        names = vars(cls).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if not name.startswith("__") and hasattr(rnn, name):
                found[name] = getattr(rnn, name)
    return found


def _take(dynamic: nn.Module, taker: nn.Module, backend: str | Backend, recompute: bool) -> None:
    """Make a compiled module of a dynamically quantized one of torch.

    Args:
        dynamic: the module of torch.
        taker: the module itself, or an empty compiled one.
        backend: as in `compile`.
        recompute: as in `compile`.
    """
    plain, matrices = as_float_module(dynamic), list(matrices_of(dynamic))
    taker.__class__ = class_for(plain)
    _become_compiled(taker, vars(plain), backend, recompute)
    become_quantized(cast("CompiledBase", taker), matrices)


def _become_compiled(
    rnn: nn.Module, state: dict[str, Any], backend: str | Backend, recompute: bool
) -> None:
    """Give a module a compiled class, the attributes in `state`, and what `compile` got."""
    if not isinstance(rnn, CompiledBase):
        rnn.__class__ = class_for(rnn)
    rnn.__dict__ = state
    state.pop("backend", None)
    hold_flat_weights(rnn)
    rnn.backend = backend  # type: ignore[assignment]  # a property of its new class
    rnn.recompute = recompute  # type: ignore[assignment]  # another one
