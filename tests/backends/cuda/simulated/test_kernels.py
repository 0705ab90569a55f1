"""Protects each CUDA kernel, in the simulator, against loops in numpy's float64."""

from itertools import product

import numpy as np
import pytest
from covered import covered, in_turn
from cuda_calls import TORCH, Call, Case, check_backward, check_forward
from cuda_cells import SIGMOID

from rnnjit.ir import GRU, RNN_RELU, RNN_TANH, CellSpec
from rnnjit.testing.covering import covering
from rnnjit_cuda.kernels import LANES, KernelKey, column_tile, share, threads, variants
from rnnjit_cuda.sources import source

FAMILIES = ("register", "block", "grid", "stream")
KEYS = variants()
FORWARD = [key for key in KEYS if key.family != "step" and key.pass_ == "forward"]
BACKWARD = [key for key in KEYS if key.family != "step" and key.pass_ == "backward"]
#: For `make test`: each dtype with each number of rows and reach, by one cell or the other.
SOME = [
    key
    for key in KEYS
    if (list(TORCH).index(key.dtype) + (key.rows * max(key.reach, 1)).bit_length()) % 2
    == (key.cell == RNN_RELU)
]
AXES = {
    "H": (1, 7, 20, 33, 64),
    "B": (1, 3, 9),
    "steps": ((1, False), (4, False), (4, True)),
    "D": (1, 2),
}
ALL = [Case(H, B, T, D, packed) for H, B, (T, packed), D in product(*AXES.values())]
FEW = [
    Case(H, B, T, D, packed)
    for H, B, (T, packed), D in (
        [AXES[axis][int(index)] for axis, index in row.items()]
        for row in covering({axis: list(map(str, range(len(v)))) for axis, v in AXES.items()})
    )
]
#: For the register kernels of the largest reach.
LARGE = [Case(65, 3, 4, 2, True), Case(128, 2, 5, 1, False)]
#: More hidden units than the lanes of a warp take at once, in a block of several tiles of columns.
WIDE = Case(140, 2, 2, 1, True)
SMALL = Case(9, 3, 3, 2, True)


def some_cases(keys: list[KernelKey], key: KernelKey, cases: list[Case]) -> list[Case]:
    """One case or more for each kernel; those of a family and reach divide all cases of theirs."""
    alike = [other for other in keys if (other.family, other.reach) == (key.family, key.reach)]
    index, own = alike.index(key), cases_of(key, cases)
    return own[index :: len(alike)] or [own[index % len(own)]]


def cases_of(key: KernelKey, cases: list[Case]) -> list[Case]:
    """Those whose weights a block of a register kernel can hold, and not half of it; else all."""
    most = LANES * key.reach
    if not most:
        return cases
    return [case for case in cases + LARGE * 4 if most // 2 < max(case.H, 17) <= most]


def key_for(family: str, pass_: str, dtype: str, cell: CellSpec) -> KernelKey:
    """A kernel of a family that `SMALL` fits."""
    if family == "register":
        return KernelKey(family, pass_, dtype, cell, reach=8)
    return KernelKey(family, pass_, dtype, cell, 4 if family == "stream" else 2)


def extents(keys):
    """Some kernels with few cases, and all of them with all cases."""
    some = [key for key in keys if key in SOME]
    return [
        *(pytest.param(key, some, FEW, id=f"{key}-few") for key in some),
        *(pytest.param(key, keys, ALL, id=f"{key}", marks=pytest.mark.full) for key in keys),
    ]


@pytest.mark.parametrize(("key", "keys", "cases"), extents(FORWARD))
def test_forward(key, keys, cases):
    for index, case in enumerate(some_cases(keys, key, cases)):
        call = Call(case, key.dtype, key.cell, seed=index)
        check_forward(key, call, tiles=1 + index % 2, slabs=1 + index % 3, seed=index)


@pytest.mark.parametrize(("key", "keys", "cases"), extents(BACKWARD))
def test_backward(key, keys, cases):
    for index, case in enumerate(some_cases(keys, key, cases)):
        call = Call(case, key.dtype, key.cell, seed=index)
        flags = (int(index % 3 != 1), int(index % 3 != 2))
        check_backward(key, call, flags, tiles=1 + index % 2, slabs=1 + index % 3, seed=index)


@pytest.mark.parametrize("all_keys", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_is_among_those_of_some_kernel(all_keys, family):
    for keys, cases in ([key for key in all_keys if key in SOME], FEW), (all_keys, ALL):
        own = [key for key in keys if key.family == family]
        assert {key.dtype for key in own} == set(TORCH)
        assert {key.cell for key in own} == {RNN_TANH, RNN_RELU}
        seen = {case for key in own for case in some_cases(keys, key, cases)}
        assert seen - set(LARGE) == set(cases)


@pytest.mark.parametrize(("family", "dtype"), in_turn(["grid", "stream"], list(TORCH)))
def test_a_sum_over_several_turns_of_the_lanes(family, dtype):
    call = Call(WIDE, dtype, RNN_TANH)
    check_forward(KernelKey(family, "forward", dtype, RNN_TANH, 4), call, tiles=3)
    call = Call(WIDE, dtype, RNN_TANH)
    check_backward(KernelKey(family, "backward", dtype, RNN_TANH, 4), call, tiles=3)


@pytest.mark.parametrize(
    ("family", "rows", "B", "slabs"),
    [
        ("grid", 2, 37, 1),
        ("grid", 4, 70, 2),
        pytest.param("grid", 8, 135, 2, marks=pytest.mark.full),
        ("stream", 4, 75, 1),
    ],
)
def test_several_rounds_of_tiles(family, rows, B, slabs):
    case = Case(9, B, 3, 2, True)
    for pass_, check_pass in (("forward", check_forward), ("backward", check_backward)):
        key = KernelKey(family, pass_, "float32", RNN_TANH, rows)
        part = share(key, case.H, 2 * column_tile(key), -(-B // slabs))
        assert part.slab > part.teams * rows
        check_pass(key, Call(case, "float32", RNN_TANH), tiles=2, slabs=slabs)


@pytest.mark.parametrize("D", [1, 2])
def test_what_lies_far_is_told_to_the_cache_ahead(D, monkeypatch):
    from rnnjit_cuda import register_kernel

    asked = []
    monkeypatch.setattr(register_kernel, "FAR", 0)
    monkeypatch.setattr(
        register_kernel, "prefetch", lambda memory, index: asked.append(memory[index])
    )
    case = Case(20, 2, 12, D, False)
    for pass_, check_pass in (("forward", check_forward), ("backward", check_backward)):
        key = KernelKey("register", pass_, "float32", RNN_TANH, reach=8)
        check_pass(key, Call(case, "float32", RNN_TANH))
        assert asked
        asked.clear()


@pytest.mark.parametrize("flags", list(product((0, 1), (0, 1))))
@pytest.mark.parametrize("family", FAMILIES)
def test_absent_gradients_are_not_read(family, flags):
    call = Call(SMALL, "float32", RNN_TANH)
    for flag, tensor in zip(flags, (call.grad_y, call.grad_h_n), strict=True):
        if not flag:
            tensor.plant(..., np.nan)
    check_backward(key_for(family, "backward", "float32", RNN_TANH), call, flags)


@pytest.mark.parametrize(
    ("family", "dtype", "cell"),
    covered(FAMILIES, list(TORCH), [RNN_TANH, RNN_RELU]),
    ids=lambda value: getattr(value, "name", value),
)
def test_nan_and_infinities_go_where_the_equations_take_them(family, dtype, cell):
    call = Call(SMALL, dtype, cell)
    call.y.plant((0, 2), np.inf)
    call.y.plant((4, 3), -np.inf)
    call.y.plant((6, 10), np.nan)
    call.h0.plant((0, 1, 8), np.nan)
    call.h0.plant((1, 0, 4), np.inf)
    check_forward(key_for(family, "forward", dtype, cell), call)
    call = Call(SMALL, dtype, cell)
    call.y.plant((6, 10), np.nan)
    call.grad_y.plant((4, 3), np.inf)
    call.grad_h_n.plant((1, 2, 8), np.nan)
    call.w_hh[0].plant((2, 5), -np.inf)
    check_backward(key_for(family, "backward", dtype, cell), call)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_that_no_kernel_was_written_for(family, dtype):
    check_forward(key_for(family, "forward", dtype, SIGMOID), Call(SMALL, dtype, SIGMOID))
    check_backward(key_for(family, "backward", dtype, SIGMOID), Call(SMALL, dtype, SIGMOID))


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no kernel"):
        source(KernelKey("block", "forward", "float32", GRU, 8))
    with pytest.raises(ValueError, match="no kernel"):
        source(KernelKey("block", "forward", "float64", RNN_TANH, 8))
    with pytest.raises(ValueError, match="multiple of 8"):
        share(KernelKey("grid", "forward", "float32", RNN_TANH, 1), 64, 12, 1)
    with pytest.raises(ValueError, match="16 warps"):
        share(KernelKey("grid", "forward", "float32", RNN_TANH, 1), 64, 136, 1)
    with pytest.raises(ValueError, match="128 threads"):
        threads(KernelKey("register", "forward", "float32", RNN_TANH, reach=8), 33)
    with pytest.raises(ValueError, match="512 threads"):
        threads(KernelKey("block", "forward", "float32", RNN_TANH, 1), 516)
