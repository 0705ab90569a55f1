"""Guards on the Python values that a step may read: a trace has them as constants.

They are found from the step on: the attributes of the cell and of what it holds, and the globals,
closures and class attributes that are named in the code which the step may reach. A key says what
they are, and the guards say at little cost whether one of them is another than before.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (
    *(bool, int, float, complex, str, bytes, range, slice, type(None), type(...)),
    *(torch.dtype, torch.device, torch.layout),
)
#: What torch itself keeps in a module, and the arguments of a cell's constructor.
_TORCHS = frozenset(vars(nn.Module())) | {"_construction"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Methods that are called without their names.
_IMPLICIT = frozenset({"forward", "backward", "setup_context", "vjp", "jvp", "fget", "fset"})
_CONSTRUCTION = frozenset({"__init__", "__new__", "__init_subclass__", "__class_getitem__"})
#: Packages whose code reads nothing of the user's.
_OTHERS = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "rnnjit"}
#: Classes of the standard library that hold a user's values.
_HOLDERS = frozenset({"types", "argparse", "collections", "os", "configparser"})
_MAPPINGS = (dict, types.MappingProxyType)
_CONTAINERS = (*_MAPPINGS, list, tuple, set, frozenset, deque)
#: Values of one container, and containers, of which changes are seen.
_LARGEST, _MOST = 10_000, 2_000

Values = tuple[Any, ...]
_Reads = Iterator[tuple[Callable[[Any], Values], Any]]


class Guards:
    """Says whether the values that steps may read are those that were there when it was made.

    Args:
        modules: the cells.
        step: the name of the method that computes a step.

    Attributes:
        key: equal for equal values; it keeps alive none that can be referred to weakly.
    """

    def __init__(self, modules: Sequence[nn.Module], step: str = "forward") -> None:
        names = {step}
        while True:
            walk = _Walk(names, {_package(type(each)) for each in modules})
            for module in modules:
                walk.token(module)
            walk.run()
            if walk.names <= names:
                break
            names |= walk.names
        self.key: tuple[object, ...] = tuple(walk.key)
        self._reads, self._seen = tuple(walk.reads), [read(of) for read, of in walk.reads]
        self._sized, self._sizes = tuple(walk.sized), [len(each) for each in walk.sized]
        self._buffers = tuple(walk.buffers)
        #: Where a zero is, which equals one of another sign.
        self._zeros = [k for k, seen in enumerate(self._seen) if any(map(_is_zero, seen))]
        self._changed = False

    def __deepcopy__(self, memo: object) -> Guards:
        # A copy of the cells has values of its own.
        copied = object.__new__(Guards)
        copied.key, copied._changed = (), True
        return copied

    def __call__(self) -> bool:
        """Whether all values are the same, or equal."""
        if self._changed:
            return False
        try:
            # Of lists and tuples, `==` compares identities first: that is fast.
            found = [read(source) for read, source in self._reads]
            if found != self._seen or [len(each) for each in self._sized] != self._sizes:
                return False
            for k in self._zeros:
                if not all(map(is_, found[k], self._seen[k])):
                    return False
            return all(memoryview(each).tobytes() == seen for each, seen in self._buffers)
        except Exception:  # noqa: BLE001 - deleted, changed by a thread, not to be compared
            return False


def _is_zero(value: Any) -> bool:
    return isinstance(value, (float, complex)) and value == 0


class _Same:
    """Equal for the same object alone; it keeps alive only what cannot be referred to weakly."""

    __slots__ = ("_get", "_hash")

    def __init__(self, value: Any) -> None:
        self._hash = id(value)
        try:
            self._get: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        own = self._get()
        return isinstance(other, _Same) and own is not None and own is other._get()


class _Walk:
    """Visits values and what they hold.

    Args:
        wanted: names of attributes that are read of modules of Python, and of classes.
        packages: those that the cells are in.
    """

    def __init__(self, wanted: Collection[str], packages: Collection[str]) -> None:
        self.names: set[str] = set()
        self.key: list[object] = []
        self.reads: list[tuple[Callable[[Any], Values], Any]] = []
        self.sized: list[Sized] = []
        self.buffers: list[tuple[Any, bytes]] = []
        self._wanted, self._packages = wanted, packages
        self._numbers: dict[int, object] = {}
        self._kept: list[Any] = []
        self._waiting: deque[tuple[int, Any]] = deque()

    def token(self, value: Any) -> object:
        """What stands for a value in the key."""
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if id(value) not in self._numbers:
            self._kept.append(value)  # its id stays its own
            token: object = len(self._kept)
            if len(self._waiting) < _MOST and self._follows(value):
                self._waiting.append((len(self._kept), value))
            else:
                token = _Same(value)
            self._numbers[id(value)] = token
        return self._numbers[id(value)]

    def run(self) -> None:
        """Visit what is waiting."""
        while self._waiting:
            number, value = self._waiting.popleft()
            self.key.append((number, type(value)))
            for read, source in self._reads(value):
                self.reads.append((read, source))
                self.key.append(tuple([self.token(each) for each in read(source)]))

    def _follows(self, value: Any) -> bool:
        """Whether the values that this one holds count."""
        if isinstance(value, Tensor):
            return False
        if isinstance(value, types.FunctionType):
            return self._is_users(value.__module__, value.__code__.co_filename)
        if isinstance(value, type):
            own = value.__module__ or ""
            return own.startswith("rnnjit.") or self._is_users(own, _file_of(value))
        if isinstance(value, types.ModuleType):
            return value.__name__.partition(".")[0] not in ("torch", "numpy", "rnnjit")
        if isinstance(value, _CONTAINERS):
            return len(value) <= _LARGEST
        if isinstance(value, (*_WRAPPERS, nn.Module)):
            return True
        if (held := _buffer(value)) is not None:
            self.buffers.append((value, held))
            self.key.append(held)
            return False
        package = _package(type(value))
        return package not in _OTHERS or package in _HOLDERS

    def _is_users(self, module: str | None, file: str) -> bool:
        module = module or ""
        package = module.partition(".")[0]
        if package in _OTHERS:
            return False
        return package in self._packages or "site-packages" not in file

    def _reads(self, value: Any) -> _Reads:
        """How to read what a value holds, and from what."""
        if isinstance(value, types.FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            for each in value.__mro__[1:]:
                self.key.append(self.token(each))
            own = vars(value)
            if _package(value) == "rnnjit":
                # Its code stays as it is, and reads attributes that a user's subclass may have.
                functions = [each for each in own.values() if isinstance(each, types.FunctionType)]
                self.names.update(*[_names(each.__code__) for each in functions])
                return
            self.sized.append(own)
            yield from _named([name for name in own if self._is_read(name, own)], own)
        elif isinstance(value, types.ModuleType):
            names = [name for name in vars(value) if name in self._wanted]
            yield from _named(names, vars(value))
        else:
            if isinstance(value, _CONTAINERS):
                yield tuple, value
            if isinstance(value, _MAPPINGS):
                yield tuple, value.values()
            if type(value) not in _CONTAINERS:
                yield from self._of_object(value)

    def _is_read(self, name: str, own: Mapping[str, Any]) -> bool:
        if name in self._wanted or name in _IMPLICIT:
            return True
        special = name.startswith("__") and isinstance(own[name], types.FunctionType)
        return special and name not in _CONSTRUCTION

    def _of_function(self, value: types.FunctionType) -> _Reads:
        names = set(_names(value.__code__))
        self.names |= names
        yield attrgetter("__code__", "__defaults__", "__kwdefaults__"), value
        held = value.__globals__
        yield from _named(sorted(name for name in names if name in held), held)
        if value.__closure__:
            yield _contents, value.__closure__
        if own := vars(value):
            yield tuple, own.values()

    def _of_object(self, value: Any) -> _Reads:
        self.key.append(self.token(type(value)))
        for wrapper, read in _WRAPPERS.items():
            if isinstance(value, wrapper):
                yield read, value
        slots = [name for each in type(value).__mro__ for name in _slots(each)]
        yield from _named([name for name in slots if hasattr(value, name)], value, attrgetter)
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):
            return
        self.sized.append(own)
        if isinstance(value, nn.Module):
            yield tuple, own["_modules"].values()
            for hooks in (own[name] for name in _HOOKS):
                self.sized.append(hooks)
                if hooks:
                    yield tuple, hooks.values()
        module = isinstance(value, nn.Module)
        yield from _named([name for name in own if not (module and name in _TORCHS)], own)


_WRAPPERS: dict[Any, Callable[[Any], Values]] = {
    types.MethodType: attrgetter("__func__", "__self__"),
    functools.partial: attrgetter("func", "args", "keywords"),
    staticmethod: lambda value: (value.__func__,),
    classmethod: lambda value: (value.__func__,),
    property: attrgetter("fget", "fset"),
}


def _names(code: types.CodeType) -> Iterator[str]:
    """The names of globals and attributes in a function's code, and strings that may be such."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def _named(names: list[str], source: Any, getter: Any = itemgetter) -> _Reads:
    """How to read these of a dict, or attributes of an object; in tuples also if it is one."""
    if names:
        yield getter(*names, names[0]), source


def _contents(cells: tuple[types.CellType, ...]) -> Values:
    found = []
    for cell in cells:
        try:
            found.append(cell.cell_contents)
        except ValueError:  # empty
            found.append(None)
    return tuple(found)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _buffer(value: Any) -> bytes | None:
    """The bytes of an array, a number of numpy and the like."""
    try:
        return memoryview(value).tobytes()
    except (TypeError, ValueError, BufferError):
        return None


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _file_of(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None) or ""
