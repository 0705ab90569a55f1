"""A minimal numba target, which lowers kernel functions of int64 values to LLVM IR.

numba's own CPU target loads every type that it knows, optimises each function separately and also
handles arrays, closures and object mode, which takes longer than compiling the kernels themselves.
Kernels therefore have their own target, registered as numba registers new hardware, whose pipeline
has only the passes that they need. All functions are lowered into one LLVM module.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType
from typing import Any

from llvmlite import ir
from numba import jit, types

from rnnjit_numba.private import NUMBA, complete
from rnnjit_numba.simd import I64, VOID
from rnnjit_numba.symbol_table import returns_int

_NAME = "rnnjit"


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


class _Operator(types.Function):  # type: ignore[misc]  # numba is not typed
    """An operator; it caches its signatures, which numba looks for in every use."""

    def __init__(self, templates: Any) -> None:
        self._signatures: dict[Any, Any] = {}
        super().__init__(templates)

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        """The signature for the types of the arguments."""
        found = self._signatures.get(args)
        if found is None:
            found = self._signatures[args] = super().get_call_type(context, args, kws)
        return found


class _TypingContext(NUMBA.BaseContext):  # type: ignore[misc, name-defined]  # numba is not typed
    """Types numba's built-in functions and intrinsics; caches the signatures found."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}
        self._operators: dict[Any, _Operator] = {}
        super().__init__()

    def forget(self) -> None:
        """Clear the cached signatures: intrinsics may have been declared since."""
        self._found.clear()

    def resolve_value_type(self, val: Any) -> Any:
        """The type of a value, which is `_Operator` for an operator on integers."""
        if not (isinstance(val, BuiltinFunctionType) and val in _ARITHMETIC):
            return super().resolve_value_type(val)
        found = self._operators.get(val)
        if found is None:
            found = self._operators[val] = _Operator(super().resolve_value_type(val).templates)
        return found

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """The signature of a call, cached: functions repeat the same few calls."""
        if kws:
            return super().resolve_function_type(func, args, kws)
        key = func, tuple(args)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = super().resolve_function_type(func, args, kws)
        return found


def _floor_division(builder: Any, a: Any, b: Any) -> Any:
    quotient, rest = builder.sdiv(a, b), builder.srem(a, b)
    return builder.add(quotient, builder.sext(_below(builder, rest, b), I64))


def _modulo(builder: Any, a: Any, b: Any) -> Any:
    rest = builder.srem(a, b)
    return builder.select(_below(builder, rest, b), builder.add(rest, b), rest)


def _below(builder: Any, rest: Any, b: Any) -> Any:
    """Whether Python's quotient is one less than the processor's, which rounds towards zero."""
    differ = builder.icmp_signed("<", builder.xor(rest, b), I64(0))
    return builder.and_(builder.icmp_signed("!=", rest, I64(0)), differ)


def _comparison(relation: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.icmp_signed(relation, a, b)


#: Arithmetic of int64 values, as Python defines it. No kernel divides by zero.
_ARITHMETIC: Mapping[Any, Callable[..., Any]] = {
    operator.add: lambda builder, a, b: builder.add(a, b),
    operator.sub: lambda builder, a, b: builder.sub(a, b),
    operator.mul: lambda builder, a, b: builder.mul(a, b),
    operator.floordiv: _floor_division,
    operator.mod: _modulo,
    operator.eq: _comparison("=="),
    operator.ne: _comparison("!="),
    operator.lt: _comparison("<"),
    operator.le: _comparison("<="),
    operator.gt: _comparison(">"),
    operator.ge: _comparison(">="),
}


class _TargetContext(NUMBA.CPUContext):  # type: ignore[misc, name-defined]  # numba is not typed
    """Lowers integers, ranges, tuples and intrinsics."""

    def init(self) -> None:
        self._sizes: dict[str, int] = {}
        super().init()

    def load_additional_registries(self) -> None:
        """Import the modules that register themselves in numba's builtin registry."""
        for name in ("builtins", "numbers", "rangeobj", "tupleobj"):
            getattr(NUMBA, name)

    def get_function(self, fn: Any, sig: Any, _firstcall: bool = True) -> Any:
        """The code of a call; that of arithmetic is short, and needs no search."""
        emit = _ARITHMETIC.get(getattr(fn, "typing_key", None))
        if emit is None or sig.args != (types.int64, types.int64):
            return super().get_function(fn, sig, _firstcall)
        return lambda builder, args, loc=None: emit(builder, *args)

    def get_abi_sizeof(self, ty: Any) -> int:
        """The size of an LLVM type, cached: numba would have LLVM parse a module for each."""
        size = self._sizes.get(str(ty))
        if size is None:
            size = self._sizes[str(ty)] = super().get_abi_sizeof(ty)
        return int(size)

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


@NUMBA.register_pass(mutates_CFG=False, analysis_only=False)
class _PlainIntegers(NUMBA.FunctionPass):  # type: ignore[misc, name-defined]  # numba is not typed
    """Gives integer constants the type int64, where numba would type each value by itself.

    A variable may then get a constant in one place and a computed value in another, although there
    is no pass that makes two variables of it. Signatures are found for fewer types, too.
    """

    _name = "rnnjit_plain_integers"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Replace them in the function's statements."""
        kinds = NUMBA.Const, NUMBA.FreeVar, NUMBA.Global
        for block in state.func_ir.blocks.values():
            for statement in block.body:
                value = getattr(statement, "value", None)
                if isinstance(value, kinds) and type(value.value) is int:
                    statement.value = NUMBA.Const(value.value, value.loc, use_literal_type=False)
        return True


#: numba's other passes are left out. They serve variables of changing types and the counting of
#: references; LLVM finds the static single assignment anew.
_PASSES = (
    NUMBA.TranslateByteCode,
    NUMBA.FixupArgs,
    _PlainIntegers,
    NUMBA.NopythonTypeInference,
    NUMBA.NativeLowering,
    NUMBA.NoPythonBackend,
)


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
