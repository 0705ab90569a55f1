"""Kernel functions that are compiled apart and linked by LLVM.

numba compiles a function that calls another by compiling, optimising and loading the other first,
which takes most of its time. Kernels here know their types: int64 throughout. So each function is
lowered alone and calls the others by symbol; LLVM optimises a part of the library at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from rnnjit_numba.simd import I64, VOID, declared, emitting


class SymbolTable:
    """The functions of one kernel library, by symbol.

    Attributes:
        suffix: ends every symbol, so that those of several libraries differ.
        functions: the Python function behind each symbol, of those not taken yet.
    """

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.functions: dict[str, Callable[..., int | None]] = {}

    def symbol(self, name: str) -> str:
        """The symbol of the function called `name`."""
        return f"rnnjit_{name}_{self.suffix}"

    def take(self) -> dict[str, Callable[..., int | None]]:
        """The functions added since the last call, by symbol: a part of the library."""
        taken, self.functions = self.functions, {}
        return taken

    def add(self, function: Callable[..., int | None]) -> Any:
        """Take in a function of int64 values; the result stands for it in other functions."""
        symbol = self.symbol(function.__name__)
        arity, returns = len(inspect.signature(function).parameters), returns_int(function)
        self.functions[symbol] = function
        signature = ir.FunctionType(I64 if returns else VOID, [I64] * arity)

        def emit(builder: Any, *args: Any) -> Any:
            target = declared(builder.module, signature, symbol)
            return builder.call(target, args)

        return emitting(arity, emit, returns=returns)


def returns_int(function: Callable[..., int | None]) -> bool:
    """Whether a kernel function is annotated to return an int64, rather than nothing."""
    return bool(inspect.signature(function).return_annotation == "int")
