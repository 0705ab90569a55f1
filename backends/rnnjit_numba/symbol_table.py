"""Kernel functions that numba lowers separately and LLVM links.

numba compiles the functions that a function calls first, and also optimises and loads them, which
takes most of its time. All values in these kernels are int64, so each function can be lowered alone
and call the others by symbol. LLVM then optimises a part of the library as a whole.
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
        functions: the Python function of each symbol that `take` has not returned yet.
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

    def add(self, function: Callable[..., int | None], name: str = "") -> Any:
        """Add a function of int64 values; the result is the intrinsic by which others call it.

        It is called `name`, or as the Python function is.
        """
        symbol = self.symbol(name or function.__name__)
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
