"""The classes of compiled modules, for torch's classes and for users' subclasses of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CellType, FunctionType
from typing import Any

from torch import nn

from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_cell import CompiledRNNCell
from rnnjit.frontend.compiled_layer import CompiledGRU, CompiledLSTM, CompiledRNN

#: The compiled class for each of torch's classes.
_STAND_INS: dict[type[nn.Module], type[CompiledBase]] = {
    nn.RNN: CompiledRNN,
    nn.RNNCell: CompiledRNNCell,
    nn.LSTM: CompiledLSTM,
    nn.GRU: CompiledGRU,
}
REPLACED = tuple(_STAND_INS)


def empty(source: type[nn.Module]) -> CompiledBase:
    """Create an empty instance of the compiled class of `source`, for unpickling."""
    cls = compiled_class(source)
    return cls.__new__(cls)


def compiled_class(source: type[nn.Module]) -> type[CompiledBase]:
    """The class of a compiled instance of `source`.

    For a subclass of nn.RNN and the like (or a parametrized class) this is a new class with the
    same attributes, derived from the compiled class instead. Its methods, properties and overrides
    keep working, although its instances are not instances of nn.RNN.
    """
    if source in _STAND_INS:
        return _STAND_INS[source]
    if issubclass(source, CompiledBase):
        return source
    key: Any = source
    return _rebuild(key, tuple(vars(source)))


@lru_cache(maxsize=256)
def _rebuild(source: Any, names: tuple[str, ...]) -> type[CompiledBase]:
    """Rebuild `source` on its compiled base; the cache key `names` changes on parametrization."""
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
    """`__reduce__`: pickle finds the source class by name, but not a class created here."""
    return empty, (self._source_class,), self.__getstate__()


def _rebind(value: Any, own_class: CellType) -> Any:
    """Copy a class attribute so that its zero-argument `super()` refers to the new class."""
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
