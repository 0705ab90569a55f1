"""The classes of compiled modules: torch's own, or subclasses of them built again."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CellType, FunctionType
from typing import Any

from torch import nn

from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_cell import CompiledRNNCell
from rnnjit.frontend.compiled_layer import CompiledGRU, CompiledLSTM, CompiledRNN

#: What takes the place of torch's classes.
_STAND_INS: dict[type[nn.Module], type[CompiledBase]] = {
    nn.RNN: CompiledRNN,
    nn.RNNCell: CompiledRNNCell,
    nn.LSTM: CompiledLSTM,
    nn.GRU: CompiledGRU,
}
REPLACED = tuple(_STAND_INS)


def empty(source: type[nn.Module]) -> CompiledBase:
    """An instance of the compiled class of `source` without any state, for pickles to fill."""
    cls = compiled_class(source)
    return cls.__new__(cls)


def compiled_class(source: type[nn.Module]) -> type[CompiledBase]:
    """The class that a compiled instance of `source` has: `source` with CompiledRNN for nn.RNN.

    A subclass of nn.RNN or nn.RNNCell (or a parametrized one) is built again over its stand-in, so
    that its methods, properties and overrides go on working on an object that is no nn.RNN.
    """
    if source in _STAND_INS:
        return _STAND_INS[source]
    if issubclass(source, CompiledBase):
        return source
    key: Any = source
    return _rebuild(key, tuple(vars(source)))


@lru_cache(maxsize=256)
def _rebuild(source: Any, names: tuple[str, ...]) -> type[CompiledBase]:
    """`source` over CompiledRNN; `names` are its attributes, which parametrizing adds to."""
    bases = tuple(
        compiled_class(base) if issubclass(base, REPLACED) else base for base in source.__bases__
    )
    own_class = CellType()
    namespace = {
        name: _rebind(value, own_class)
        for name, value in ((name, vars(source)[name]) for name in names)
        if name not in ("__dict__", "__weakref__")
    }
    namespace["_source_class"] = source
    namespace.setdefault("__reduce__", _reduce)
    metaclass: Any = type(source)
    rebuilt: type[CompiledBase] = metaclass(source.__name__, bases, namespace)
    own_class.cell_contents = rebuilt
    return rebuilt


def _reduce(
    self: CompiledBase,
) -> tuple[Callable[..., Any], tuple[type[nn.Module]], dict[str, Any]]:
    """For pickles: a class made here cannot be found by its name, but its source can."""
    return empty, (self._source_class,), self.__getstate__()


def _rebind(value: Any, own_class: CellType) -> Any:
    """A class attribute whose zero-argument `super()` starts from another class."""
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_rebind(value.__func__, own_class))
    if isinstance(value, property):
        get, put, delete = (_rebind(f, own_class) for f in (value.fget, value.fset, value.fdel))
        return property(get, put, delete, value.__doc__)
    if not isinstance(value, FunctionType) or "__class__" not in value.__code__.co_freevars:
        return value
    closure = tuple(
        own_class if name == "__class__" else cell
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    )
    rebound = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
    )
    rebound.__kwdefaults__ = value.__kwdefaults__
    rebound.__dict__.update(value.__dict__)
    rebound.__doc__ = value.__doc__
    rebound.__qualname__ = value.__qualname__
    return rebound
