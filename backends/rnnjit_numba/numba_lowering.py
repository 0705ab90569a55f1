"""A minimal numba target, which lowers kernel functions of int64 values to LLVM IR.

numba's own CPU target loads every type that it knows, optimises each function separately and also
handles arrays, closures and object mode, which takes longer than compiling the kernels themselves.
Kernels therefore have their own target, registered as numba registers new hardware, whose pipeline
has only the passes that they need. All functions are lowered into one LLVM module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import jit, types

from rnnjit_numba.private import NUMBA, complete
from rnnjit_numba.simd import I64, VOID
from rnnjit_numba.symbol_table import returns_int

_NAME = "rnnjit"
_PASSES = (
    NUMBA.TranslateByteCode,
    NUMBA.FixupArgs,
    NUMBA.IRProcessing,
    NUMBA.ReconstructSSA,
    NUMBA.NopythonTypeInference,
    NUMBA.PreLowerStripPhis,
    NUMBA.IRLegalization,
    NUMBA.NativeLowering,
    NUMBA.NoPythonBackend,
)


def lower(function: Callable[..., int | None], symbol: str, module: Any) -> None:
    """Add to an LLVM module the function `symbol(i64, ...)`, which does what `function` does.

    Holds numba's compiler lock: other threads may be compiling the application's own functions.
    """
    arity = len(inspect.signature(function).parameters)
    flags = NUMBA.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.nrt = False
    target = _Dispatcher.targetdescr
    target.typing_context.forget()
    with NUMBA.global_compiler_lock, NUMBA.target_override(_NAME):
        result = NUMBA.compile_extra(
            target.typing_context,
            target.target_context,
            function,
            (types.int64,) * arity,
            types.int64 if returns_int(function) else types.void,
            flags,
            {},
            library=_Collected(target.target_context.codegen(), module),
            pipeline_class=_Pipeline,
        )
    lowered = module.globals[result.fndesc.llvm_func_name]
    _enter(module, symbol, lowered, returns=returns_int(function))


def _enter(module: Any, symbol: str, lowered: Any, *, returns: bool) -> None:
    """Define `symbol`, a wrapper of numba's `lowered`, which also returns a status."""
    lowered.attributes.add("alwaysinline")
    result, exception, *rest = lowered.args
    function = module.globals.get(symbol)
    if function is None:
        kind = ir.FunctionType(I64 if returns else VOID, [I64] * len(rest))
        function = ir.Function(module, kind, symbol)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    slots = [builder.alloca(slot.type.pointee) for slot in (result, exception)]
    builder.call(lowered, [*slots, *function.args])
    if returns:
        builder.ret(builder.load(slots[0]))
    else:
        builder.ret_void()


class _Kernels(NUMBA.Generic):  # type: ignore[misc, name-defined]  # numba is not typed
    """The target, as numba's registries know it."""


class _TypingContext(NUMBA.BaseContext):  # type: ignore[misc, name-defined]  # numba is not typed
    """Types numba's built-in functions and intrinsics; caches the signatures found."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}
        super().__init__()

    def forget(self) -> None:
        """Clear the cached signatures: intrinsics may have been declared since."""
        self._found.clear()

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """The signature of a call, cached: functions repeat the same few calls."""
        if kws:
            return super().resolve_function_type(func, args, kws)
        key = func, tuple(args)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = super().resolve_function_type(func, args, kws)
        return found


class _TargetContext(NUMBA.CPUContext):  # type: ignore[misc, name-defined]  # numba is not typed
    """Lowers integers, ranges, tuples and intrinsics."""

    def load_additional_registries(self) -> None:
        """Import the modules that register themselves in numba's builtin registry."""
        for name in ("builtins", "numbers", "rangeobj", "tupleobj"):
            getattr(NUMBA, name)

    def post_lowering(self, mod: Any, library: Any) -> None:
        """Do nothing: kernels count no references, so numba's runtime is not linked to them."""


class _Descriptor(NUMBA.TargetDescriptor):  # type: ignore[misc, name-defined]  # numba is not typed
    """The target's contexts, made once."""

    @NUMBA.threadsafe_cached_property  # type: ignore[untyped-decorator]  # numba is not typed
    def typing_context(self) -> Any:
        return _TypingContext()

    @NUMBA.threadsafe_cached_property  # type: ignore[untyped-decorator]  # numba is not typed
    def target_context(self) -> Any:
        return _TargetContext(self.typing_context, self._target_name)


class _Dispatcher:
    """Where numba looks for the contexts of a target."""

    targetdescr = _Descriptor(_NAME)


_NEVER_LOADED = "a module that only collects functions is never linked nor loaded"


class _Collected(NUMBA.CodeLibrary):  # type: ignore[misc, name-defined]  # numba is not typed
    """Collects all that numba lowers in one LLVM module, which numba neither links nor loads.

    The methods that raise are part of the interface; numba calls them to link or load a library.
    """

    def __init__(self, codegen: Any, module: Any) -> None:
        super().__init__(codegen, module.name)
        complete(self)
        self._module = module

    def create_ir_module(self, name: str) -> Any:
        return self._module

    def add_ir_module(self, ir_module: Any) -> None:
        assert ir_module is self._module

    def add_linking_library(self, library: Any) -> None:
        raise NotImplementedError(_NEVER_LOADED)

    def finalize(self) -> None:
        raise NotImplementedError(_NEVER_LOADED)

    def get_function(self, name: str) -> Any:
        raise NotImplementedError(_NEVER_LOADED)

    def get_llvm_str(self) -> str:
        return str(self._module)

    def get_asm_str(self) -> str:
        raise NotImplementedError(_NEVER_LOADED)


class _Pipeline(NUMBA.CompilerBase):  # type: ignore[misc, name-defined]  # numba is not typed
    """The passes from Python's bytecode to LLVM IR."""

    def define_pipelines(self) -> list[Any]:
        """The one pipeline."""
        manager = NUMBA.PassManager(_NAME)
        for each in _PASSES:
            manager.add_pass(each, each.__name__)
        manager.finalize()
        return [manager]


NUMBA.target_registry[_NAME] = _Kernels
NUMBA.dispatcher_registry[_Kernels] = _Dispatcher
NUMBA.jit_registry[_Kernels] = jit
