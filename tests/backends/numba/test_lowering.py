"""Protects the lowering of kernel functions: they do what the same functions do in Python."""

from __future__ import annotations

import ctypes
from array import array
from typing import NamedTuple

import pytest
from llvmlite import ir

from rnnjit.codegen.host import host_isa
from rnnjit.runtime.linker import Linked
from rnnjit_numba import memory
from rnnjit_numba.numba_lowering import lower
from rnnjit_numba.object_code import object_code

NUMBERS = (-7, -3, -2, -1, 0, 1, 2, 3, 5, 7, 2**40 + 1, -(2**40) - 1)
LIMIT, STEP = 16, 3


class Numbers(NamedTuple):
    first: int
    second: int
    third: int


READ, WRITE = memory.unpack_arguments(Numbers), memory.write_int()


def compiled(function, arguments):
    """The function, lowered by numba and compiled, as a function of Python integers."""
    module = ir.Module("function")
    lower(function, "function", module)
    linked = Linked(object_code(str(module), host_isa(), ("function",), jit=False), ["function"])
    integers = [ctypes.c_int64] * (1 + arguments)
    called = ctypes.CFUNCTYPE(*integers)(linked.addresses[0])
    called.code = linked
    return called


def arithmetic(a: int, b: int) -> int:
    total = (a // b) * 1000003 + a % b + a - 7 * b
    total += 1 if a < b else 2
    total += 4 if a <= b else 8
    total += 16 if a == b else 32
    total += 64 if a != b else 128
    total += 256 if a > b else 512
    total += 1024 if a >= b else 2048
    return total


def mixed(a: int, b: int) -> int:
    # A constant at first, then computed, and once more a constant.
    last, total = 0, 1
    for k in range(a, b, STEP):
        last = k * total - last
        if last > LIMIT:
            last = LIMIT
            total = total + b // STEP
        while total % 5 == 4:
            total = total + 1
            if last < 0:
                break
    flag = a < b and total > STEP
    return last * 1000 + total if flag else last


def fields(address: int, value: int) -> int:
    a = READ(address)
    before = 0
    for _ in range(3):
        WRITE(address + 8, value)
        before += a.second
    return before * 100 + a.first


@pytest.mark.parametrize("function", [arithmetic, mixed], ids=lambda each: each.__name__)
def test_integers_are_those_of_python(function):
    called = compiled(function, 2)
    pairs = [(a, b) for a in NUMBERS for b in NUMBERS if b and abs(a) + abs(b) < 2**20]
    pairs += [(2**40 + 1, 7), (-(2**40) - 1, 7), (5, -(2**40))] if function is arithmetic else []
    assert [called(*pair) for pair in pairs] == [function(*pair) for pair in pairs]


def test_arguments_are_read_at_once():
    block = array("q", [3, 7, 11])
    address, _ = block.buffer_info()
    assert compiled(fields, 2)(address, 50) == 2103
    assert list(block) == [3, 50, 11]
