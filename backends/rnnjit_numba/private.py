"""Every private name of numba and llvmlite that this backend uses, and what it does without one.

No other module uses one. Kernels are lowered by numba's internals: where one is gone, nothing can
be compiled, and `missing` says so as soon as numba is imported, which only a compilation does; a
process that finds its kernels in the cache needs none of them. What llvmlite's internals serve can
be done by its public ones, if slower.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

#: The releases that have these internals: what the kernels are written for.
RELEASES: Mapping[str, str] = MappingProxyType(
    {"numba": ">=0.62,<0.69", "llvmlite": ">=0.45,<0.51"}
)
#: What installs one of them; numba takes the llvmlite that it goes with.
INSTALL = f"pip install 'numba{RELEASES['numba']}'"

_NO_KERNELS = "nothing can be compiled: the backend is missing, and says so"
_LOCKED = "llvmlite's public method does it, which lets one thread at a time into LLVM"
_PASS = ("a pass on the way from bytecode to LLVM IR", _NO_KERNELS)
_OWN_PASS = ("a pass of the kernels' own, for the types of constants", _NO_KERNELS)
_TYPES = ("what numba has built in for integers, ranges and tuples", _NO_KERNELS)
_TARGET = ("a target of the kernels' own, by numba's mechanism for further hardware", _NO_KERNELS)
_EMIT = ("object code", _LOCKED)
_LIBRARY = "llvmlite.binding.ffi.lib"
_WITHOUT_LOCK = "llvmlite.binding.ffi._lib_fn_wrapper._cfn"

#: By name: what it is used for; what happens where it is gone.
NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "numba.core.compiler.compile_extra": ("lowering one function", _NO_KERNELS),
        "numba.core.compiler.Flags": ("how a function is lowered", _NO_KERNELS),
        "numba.core.compiler.CompilerBase": ("a pipeline of few passes", _NO_KERNELS),
        "numba.core.compiler_machinery.PassManager": ("as CompilerBase", _NO_KERNELS),
        "numba.core.compiler_machinery.FunctionPass": _OWN_PASS,
        "numba.core.compiler_machinery.register_pass": _OWN_PASS,
        "numba.core.ir.Const": _OWN_PASS,
        "numba.core.ir.FreeVar": _OWN_PASS,
        "numba.core.ir.Global": _OWN_PASS,
        "numba.core.compiler_lock.global_compiler_lock": (
            "keeping an application's own compilations apart from ours",
            _NO_KERNELS,
        ),
        "numba.core.codegen.CodeLibrary": ("collecting what is lowered", _NO_KERNELS),
        "numba.core.untyped_passes.TranslateByteCode": _PASS,
        "numba.core.untyped_passes.FixupArgs": _PASS,
        "numba.core.typed_passes.NopythonTypeInference": _PASS,
        "numba.core.typed_passes.NativeLowering": _PASS,
        "numba.core.typed_passes.NoPythonBackend": _PASS,
        "numba.core.cpu.CPUContext": _TARGET,
        "numba.core.typing.BaseContext": _TARGET,
        "numba.core.descriptors.TargetDescriptor": _TARGET,
        "numba.core.utils.threadsafe_cached_property": _TARGET,
        "numba.core.target_extension.Generic": _TARGET,
        "numba.core.target_extension.dispatcher_registry": _TARGET,
        "numba.core.target_extension.jit_registry": _TARGET,
        "numba.core.target_extension.target_override": _TARGET,
        "numba.core.target_extension.target_registry": _TARGET,
        "numba.cpython.builtins": _TYPES,
        "numba.cpython.numbers": _TYPES,
        "numba.cpython.rangeobj": _TYPES,
        "numba.cpython.tupleobj": _TYPES,
        f"{_LIBRARY}.LLVMPY_RunNewModulePassManager": ("optimising", _LOCKED),
        f"{_LIBRARY}.LLVMPY_TargetMachineEmitToMemory": _EMIT,
        f"{_LIBRARY}.LLVMPY_GetBufferSize": _EMIT,
        f"{_LIBRARY}.LLVMPY_GetBufferStart": _EMIT,
        f"{_LIBRARY}.LLVMPY_DisposeMemoryBuffer": _EMIT,
        "llvmlite.binding.ffi.OutputString": ("why there is no object code", _LOCKED),
        _WITHOUT_LOCK: ("calling these on several threads, each on a context of its own", _LOCKED),
    }
)


class MissingNameError(RuntimeError):
    """A name that nothing can be compiled without; the message says what to do."""


def find(path: str) -> Any:
    """What a dotted path in `NAMES` leads to, or None; modules on the way are imported."""
    found: Any = None
    names = path.split(".")
    for count, name in enumerate(names, 1):
        found = getattr(found, name, None)
        if found is None:
            try:
                found = import_module(".".join(names[:count]))
            except ImportError:
                return None
    return found


def missing() -> list[str]:
    """Which names nothing can be compiled without are gone, once numba is imported."""
    if "numba" not in sys.modules:
        return []
    return [_gone(path) for path in NAMES if path.startswith("numba.") and find(path) is None]


class _Numba:
    """numba's private names as attributes, by the last parts of their paths.

    Raises:
        MissingNameError: numba lacks the name.
    """

    def __init__(self) -> None:
        paths = [path for path in NAMES if path.startswith("numba.")]
        self._paths = {path.rpartition(".")[2]: path for path in paths}

    def __getattr__(self, name: str) -> Any:
        found = find(self._paths[name])
        if found is None:
            raise MissingNameError(_gone(self._paths[name]))
        return found


NUMBA = _Numba()


def complete(library: Any) -> None:
    """Give a code library of our own what a pass looks for that `CodeLibrary` does not define.

    numba 0.63 adds to a set of what is to run where numba's cache loads code, which is nothing.
    """
    library._reload_init = set()


def run_passes(passes: Any, module: Any, builder: Any) -> None:
    """Optimise a module that has a context of its own: `passes.run(module, builder)`."""
    run = _without_lock("RunNewModulePassManager")
    if run is None:
        passes.run(module, builder)
    else:
        run(passes, module, builder)


def emit_object(machine: Any, module: Any) -> bytes:
    """The object file of a module that has a context of its own: `machine.emit_object(module)`.

    Raises:
        RuntimeError: LLVM cannot generate code for it.
    """
    output = find("llvmlite.binding.ffi.OutputString")
    names = ("TargetMachineEmitToMemory", "GetBufferStart", "GetBufferSize", "DisposeMemoryBuffer")
    functions = [_without_lock(name) for name in names]
    if output is None or None in functions:
        return bytes(machine.emit_object(module))
    emit, start, size, dispose = functions
    with output() as problem:
        buffer = emit(machine, module, 1, problem)
        if not buffer:
            raise RuntimeError(str(problem))
    try:
        return ctypes.string_at(start(buffer), size(buffer))
    finally:
        dispose(buffer)


def _without_lock(name: str) -> Any:
    """A function of LLVM's C interface without llvmlite's lock around it, or None."""
    if find(_WITHOUT_LOCK) is None:
        return None
    return getattr(find(f"{_LIBRARY}.LLVMPY_{name}"), "_cfn", None)


def _gone(path: str) -> str:
    return (
        f"numba {version('numba')} lacks {path}, which kernels are compiled with: "
        f"install another of numba{RELEASES['numba']}"
    )
