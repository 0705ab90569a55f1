"""The class that a compiled module has, by the class of the module that it was made from.

An instance of `Mine(nn.RNN)` becomes one of `class Mine(Mine, _RNN)`, where `_RNN` derives from
`CompiledRNN` and nn.RNN. The method resolution order is then `Mine, _RNN, ..., nn.RNN`: what `Mine`
defines keeps working, and every `super().forward` in it runs compiled. torch.compile breaks the
graph at such an instance, as it does at every nn.RNN.

An instance of nn.RNN itself becomes a `CompiledRNN`, which torch.compile can trace, since it does
not derive from nn.RNN. It reports nn.RNN as its `__class__`, and so `isinstance` holds.

Some code gives a module another class, which it derives from the module's class at run time:
torch.nn.utils.parametrize does, and fully_shard. Such a class is derived anew from the compiled
class, so that torch.compile can trace the module as before.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import chain
from typing import Any, SupportsIndex, TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize

from rnnjit.runtime.torch_private import (
    LAYER_INTERNALS,
    buffers_of,
    children_of,
    flat_weights_assigned,
    never_traced,
    parameters_of,
    traced_by_dynamo,
)


class HasSourceClass(nn.Module):
    """A mixin for compiled modules: what Python, pickle and torch take for their class.

    `isinstance(module, nn.RNN)` looks at `type(module)` and then at `module.__class__`. While
    torch.compile traces, that is the true class, since it breaks the graph at what is an nn.RNN.
    Methods that use `super()` cannot be defined beside an attribute of this name.

    Attributes:
        _torch_class: the torch class that the module replaces.
        _source_class: the class of the module that it was compiled from.
        _stands_for: (of a class that `stands_for` made) the torch class that `__class__` reports.
    """

    _torch_class: type[nn.Module]
    _source_class: type[nn.Module]

    def _reported_class(self) -> type:
        cls = type(self)
        reported: type = vars(cls).get("_stands_for", cls)
        return cls if traced_by_dynamo() else reported

    def _assign_class(self, source: type) -> None:
        _set_class(self, _assigned_class(self, source))

    __class__ = property(_reported_class, _assign_class)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle by the class of the original: pickle does not find a class that was made here."""
        if type(self).__reduce__ is not object.__reduce__:
            return self.__reduce__()  # a subclass's own
        getstate: Any = getattr(self, "__getstate__", None)  # every object has one from 3.11 on
        source = self._source_class
        return empty, (source, _CLASSES[torch_class(source)][0]), getstate()


#: The attributes that an instance of a compiled class has beside those of torch's own.
COMPILED_ATTRIBUTES = frozenset(
    {
        *("_backend", "_key", "_choices", "_fast_paths", "_generation"),
        *("_biased", "_recompute", "_strong_weight_refs", "_weights_assigned"),
        *("_plans", "_guards", "_quantized"),
    }
)
CompiledT = TypeVar("CompiledT", bound=HasSourceClass)
#: For each torch class, the class of its compiled instances, and the base of compiled subclasses.
_CLASSES: dict[type[nn.Module], tuple[type[HasSourceClass], type[HasSourceClass]]] = {}


def stands_for(torch_class: type[nn.Module]) -> Callable[[type[CompiledT]], type[CompiledT]]:
    """A class decorator: instances of the class replace those of a torch class."""

    def register(cls: type[CompiledT]) -> type[CompiledT]:
        own: Any = cls

        # A function of its own: torch.compile, which fails to trace a method of what is an nn.RNN,
        # would never trace that of the other instances again.
        @never_traced
        def forward(
            self: nn.Module,
            input: Any,  # noqa: A002 - torch's own name
            hx: Any = None,
            reset: Any = None,
            reset_to: Any = None,
            return_states: bool = False,
        ) -> Any:
            return own.forward(self, input, hx, reset, reset_to, return_states)

        for name in ("_torch_class", "_source_class"):
            setattr(cls, name, torch_class)
        below: Any = cls
        if not issubclass(cls, torch_class):
            setattr(cls, "_stands_for", torch_class)  # noqa: B010 - not every class has one
            below = type(f"_{torch_class.__name__}", (cls, torch_class), {"forward": forward})
            below.__doc__ = "Comes before torch's class in a compiled subclass."
        _CLASSES[torch_class] = cls, below
        return cls

    return register


def replaced() -> tuple[type[nn.Module], ...]:
    """The torch classes whose instances `rnnjit.compile` replaces."""
    return tuple(_CLASSES)


class _Unannounced(nn.Module):
    """Keeps `__init_subclass__` of the user's class from running for a class that is made here."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "_source_class" not in vars(cls):
            super().__init_subclass__(**kwargs)


@lru_cache(maxsize=256)
def compiled_class(source: Any) -> type[HasSourceClass]:
    """The class of a compiled instance of `source`.

    Args:
        source: a torch class that is replaced, a subclass of one, or a compiled class (returned).
    """
    if source in _CLASSES:
        return _CLASSES[source][0]
    compiled = issubclass(source, HasSourceClass)
    made: type[HasSourceClass]
    made = source if compiled else _derive(source, _CLASSES[torch_class(source)][1])
    return made


def class_for(module: nn.Module) -> type[HasSourceClass]:
    """The class that a module gets once it is compiled."""
    source = type(module)
    parametrized = parametrize.is_parametrized(module)
    bases: tuple[Any, ...] = source.__bases__
    if parametrized and len(bases) == 1 and not issubclass(source, HasSourceClass):
        return _rebased(source, bases[0], compiled_class(bases[0]))
    return compiled_class(cast("Any", source))


def torch_class(source: type[nn.Module]) -> type[nn.Module]:
    """The torch class that is replaced and that a class derives from or stands for."""
    own: type[nn.Module] | None = getattr(source, "_torch_class", None)
    return own or next(each for each in source.__mro__ if each in _CLASSES)


def intercept(module: nn.Module, forward: Callable[..., Any]) -> type[nn.Module]:
    """Give a recurrent module a class whose `forward` is another; for copies that tools make.

    A subclass's own `forward` stays, and calls the other by `super()`.

    Args:
        module: an instance of a torch class that is replaced or of a compiled class.
        forward: gets the module and the arguments of the call.

    Returns:
        The torch class or compiled class whose `forward` it takes the place of.
    """
    source, known = type(module), {*_CLASSES, *chain.from_iterable(_CLASSES.values())}
    base = next(each for each in source.__mro__ if each in known)

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    namespace = {"forward": method, "__doc__": base.__doc__}
    if "_stands_for" in vars(base):
        namespace["_stands_for"] = vars(base)["_stands_for"]
    below: Any = type(base.__name__, (base,), namespace)
    cls = below if source is base else _derive(source, below)
    _set_class(module, cls)
    return base


def _set_class(module: nn.Module, cls: type) -> None:
    vars(object)["__class__"].__set__(module, cls)


def _derive(source: type[nn.Module], base: type[nn.Module]) -> Any:
    """A class like `source` whose `super().forward` is that of `base`.

    Neither `__init_subclass__` nor a metaclass of the user's runs: they would take it for a class
    that the user wrote.
    """
    namespace = {
        "__slots__": (),
        "__module__": source.__module__,
        "__qualname__": source.__qualname__,
        "__doc__": source.__doc__,
        "_source_class": source,
    }
    metaclass = type(source)
    make: Any = ABCMeta.__new__ if issubclass(metaclass, ABCMeta) else type.__new__
    quiet = () if issubclass(source, _Unannounced) else (_Unannounced,)
    return make(metaclass, source.__name__, (*quiet, source, base), namespace)


def _assigned_class(module: HasSourceClass, source: type) -> type:
    """The class that a compiled module gets where `source` is assigned to its `__class__`."""
    if issubclass(source, HasSourceClass) or not issubclass(source, replaced()):
        return source
    reported = module.__class__
    if reported in source.__bases__ and not any(map(_uses_super, vars(source).values())):
        return _rebased(source, reported, type(module))
    return compiled_class(cast("Any", source))


def _uses_super(value: Any) -> bool:
    """Whether a function refers to the class that it was defined in."""
    return "__class__" in getattr(getattr(value, "__code__", None), "co_freevars", ())


def _rebased(
    source: type[nn.Module], old: type[nn.Module], new: type[HasSourceClass]
) -> type[HasSourceClass]:
    """A class that was derived from `old` at run time, derived from `new`."""
    bases = tuple(new if base is old else base for base in source.__bases__)
    namespace = {k: v for k, v in vars(source).items() if k not in ("__dict__", "__weakref__")}
    metaclass: Any = type(source)
    made: type[HasSourceClass]
    made = metaclass(source.__name__, bases, {**namespace, "_source_class": source})
    return made


def has_known_forward(cls: type[nn.Module]) -> bool:
    """Whether the `forward` of a recurrent class is torch's or that of a compiled class."""
    own = torch_class(cls)
    return any(cls.forward is each.forward for each in (own, *_CLASSES[own]))


def overridden(rnn: nn.Module) -> str:
    """What a module overrides, such as "overrides permute_hidden"; or "".

    Compiled code would not use what a module overrides of that which torch's own `forward` uses.
    `forward` counts only where it is set on the instance: that of a class is called, and what it
    calls by `super()` runs compiled.
    """
    cls, own, mine = type(rnn), torch_class(type(rnn)), vars(rnn)
    if "forward" in mine:
        return "overrides forward"
    for name in LAYER_INTERNALS:
        if name in mine or getattr(cls, name, None) is not getattr(own, name, None):
            return f"overrides {name}"
    if flat_weights_assigned(rnn):
        return "overrides _flat_weights"
    for name, weight in parameters_of(rnn).items():
        if weight is not None and getattr(rnn, name, None) is not weight:
            return f"overrides {name}"
    return ""


def name_conflict(rnn: nn.Module) -> str:
    """What else keeps a module from being compiled: it has an attribute of a name that ours use."""
    cls, own = type(rnn), torch_class(type(rnn))
    if isinstance(rnn, HasSourceClass):
        return ""
    held = {*vars(rnn), *parameters_of(rnn), *buffers_of(rnn), *children_of(rnn)}
    held.update(*(vars(each) for each in cls.__mro__ if each not in own.__mro__))
    for name in sorted(_reserved(cast("Any", own)) & held):
        return f"has an attribute {name!r}, a name that compiled modules use"
    return ""


@cache
def _reserved(torch_class: Any) -> frozenset[str]:
    """The attributes that compiled modules have and torch's class has not."""
    names = {*dir(_CLASSES[torch_class][1]), *COMPILED_ATTRIBUTES} - {*dir(torch_class)}
    names.discard("_flat_weight_refs")  # torch's, of the instance
    return frozenset(name for name in names if not name.startswith("__"))


def empty(source: type[nn.Module], stand_in: type[nn.Module]) -> nn.Module:
    """Create an empty instance of the compiled class of `source`, for unpickling.

    Args:
        source: the class of the module that was compiled.
        stand_in: the compiled class of its torch class; pickle imports the module that holds it.
    """
    cls: Any = compiled_class(cast("Any", source))
    made: nn.Module = object.__new__(cls)  # a `__new__` of the user's may need arguments
    return made
