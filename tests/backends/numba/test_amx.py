"""Protects products by tile registers (Intel's AMX), which run emulated where there are none."""

import ctypes
import errno
import re
from dataclasses import replace

import instruction_sets
import pytest
import torch
from llvmlite import ir
from teams import forget_plans
from torch import nn

import rnnjit
from rnnjit.codegen import amx_permission
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.isa import isa_of
from rnnjit.ir import RNN_RELU
from rnnjit_numba import amx_check, kernel_modules, library, object_code, targets
from rnnjit_numba.amx_products import compared_products
from rnnjit_numba.backend import BACKEND
from rnnjit_numba.context import CodegenContext
from rnnjit_numba.direct import DIRECT_ARGUMENTS, TRANSPOSED_ARGUMENTS, direct, direct_transposed
from rnnjit_numba.numba_lowering import lower

BF16 = torch.bfloat16
FEATURES = dict.fromkeys(
    ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512bf16", "amx-tile", "amx-bf16"), True
)
INSTRUCTIONS = ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease")

wide_here = pytest.mark.skipif(
    "avx512" not in instruction_sets.possible(), reason="the emulation computes with AVX-512"
)


def sapphire_rapids(*, permitted=True, **others):
    features = {**FEATURES, **others}
    return isa_of("sapphirerapids", features, "x86_64-unknown-linux-gnu", amx=permitted)


@pytest.fixture
def emulated(monkeypatch):
    """Kernels of bfloat16 whose tiles are emulated."""
    monkeypatch.setenv("RNNJIT_ISA", "amx-emulated")
    monkeypatch.setattr(library.library, "made", {})
    forget_plans()
    yield
    forget_plans()


def code_of(kind, isa):
    """Object code of the compared products by one kind of tiles."""
    text = compared_products({kind: amx_check.symbol(kind)}, amx_check.SIZES, 1)
    return object_code.object_code(text, isa, (amx_check.symbol(kind),))


def flushed(values):
    """Numbers of float64 as float32 ones, zeros for subnormal ones."""
    values = values.float()
    return torch.where(values.abs() < torch.finfo(torch.float32).tiny, 0.0 * values, values)


def defined(c, a, b, order=range(16)):
    """The sum c + a @ b as Intel defines it, for blocks of 32 terms, their pairs in an order.

    The products and sums are exact in float64, and so each number is rounded once.
    """
    a, b, c = (flushed(value.double()).double() for value in (a, b, c))
    for block in range(0, a.shape[1], 32):
        chains = torch.zeros(2, *c.shape, dtype=torch.float64)
        for k in (block + 2 * p + odd for p in order for odd in range(2)):
            if k < a.shape[1]:
                chains[k % 2] = flushed(chains[k % 2] + torch.outer(a[:, k], b[k])).double()
        c = flushed(c + flushed(chains[0] + chains[1]).double()).double()
    return c.float()


@pytest.fixture(scope="module")
def tiles():
    """The tiles' functions, emulated."""
    isa = replace(host_isa(), amx="emulated")
    context, module = CodegenContext.of(isa, BF16, RNN_RELU), ir.Module("tiles")
    functions = {
        "bands": context.product_tile,
        "direct": (direct(context.storage), DIRECT_ARGUMENTS),
        "direct_transposed": (direct_transposed(context.storage), TRANSPOSED_ARGUMENTS),
    }
    for name, (tile, arguments) in functions.items():
        lower(kernel_modules._calling(tile, arguments), f"unused_{name}", module)
    symbols = {name: f"rnnjit_amx_{name}" for name in functions}
    code = object_code.object_code(str(module), isa, tuple(symbols.values()))
    engine = amx_check._Code(isa, code)._engine

    def call(name, *args):
        values = [arg.data_ptr() if torch.is_tensor(arg) else arg for arg in args]
        address = engine.get_function_address(symbols[name])
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(values))(address)(*values)

    return call


def packed_of(w):
    """Column vectors of pairs of rows of w [k, columns], and the bytes of one."""
    k, columns = w.shape
    padded = torch.zeros(k + k % 2, -(-columns // 16) * 16, dtype=BF16)
    padded[:k, :columns] = w
    found = padded.view(-1, 2, padded.shape[1] // 16, 16).permute(2, 0, 3, 1).contiguous()
    return found, found[0].numel() * 2


#: Tiles of rows and of columns, rows in the first and second tiles, and bands.
BLOCKS = [(2, 2, 16, 16, 2), (2, 1, 16, 5, 1), (1, 4, 7, 0, 1), (1, 2, 16, 0, 3), (1, 1, 1, 0, 2)]


@wide_here
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_tile_has_the_bits_of_the_definition(block, tiles):
    tall, wide, upper, lower_rows, bands = block
    rows, columns, k = bands * (upper + lower_rows), 16 * wide - 3, (45, 67)
    torch.manual_seed(0)
    x, h = (torch.randn(rows, n).to(BF16) for n in k)
    w_x, w_h = (torch.randn(n, columns).to(BF16) for n in k)
    bias, out = torch.randn(columns), torch.full((rows, columns + 5), 7.0)
    expected = defined(defined(bias.expand(rows, -1), x, w_x), h, w_h)
    # Both products have columns of as many bytes.
    packed, ld_w = packed_of(torch.cat([w_x, torch.zeros(1, columns).to(BF16), w_h]))
    tiles(
        *("bands", 16 * tall + wide, 256 * upper + lower_rows, bands, bias, 0, x, 90, 45, packed),
        *(h, 134, 67, packed.data_ptr() + 23 * 64, ld_w, out, 4 * (columns + 5) * 256 + 13),
    )
    assert torch.equal(out[:, :columns], expected)
    assert (out[:, columns:] == 7.0).all()
    few = min(rows, 6)
    for first in range(0, columns, 16):
        tail, at = min(16, columns - first), slice(first, first + 16)
        near = torch.full((few, 16), 7.0)
        left, right = (w.t().contiguous() for w in (w_x[:, at], w_h[:, at]))
        tiles(
            *("direct", few, bias[at], 0, x, 90, 45, left, 90, h, 134, 67, right, 134),
            *(near, 64 * 256 + tail),
        )
        assert torch.equal(near[:, :tail], expected[:few, at])
        assert (near[:, tail:] == 7.0).all()
    width = 4 if wide == 4 else 1
    start, at = defined(bias.expand(few, -1), x[:few], w_x), slice(0, 16 * width)
    near = torch.full((few, columns), 7.0)
    tiles(
        *("direct_transposed", 16 * few + width, start, 4 * columns, h, 134, 67),
        *(w_h, 2 * columns, near, 4 * columns * 256 + min(16, columns - 16 * (width - 1))),
    )
    assert torch.equal(near[:, at], expected[:few, at])
    assert (near[:, 16 * width :] == 7.0).all()


@wide_here
def test_the_emulation_follows_intels_definition():
    found = amx_check._Code(host_isa(), code_of("emulated", host_isa())).products("emulated")
    expected = torch.zeros(2, 16, 16)
    a, packed, c = amx_check.operands()
    b = packed.view(16, 16, 2).permute(0, 2, 1).reshape(32, 16)
    expected[0] = expected[1] = defined(c, a, b)
    expected[1, 5:], expected[1, :, 3:] = 0, 0
    assert amx_check.comparison(found, expected) == ""
    # Another order is noticed, on every part of the numbers.
    assert "sums by its tiles have other bits" in amx_check.comparison(
        found[0], defined(c, a, b, range(15, -1, -1))
    )


# 48 terms: a whole block, and one that is not.
@pytest.mark.full
@wide_here
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("rows", [1, 40], ids=["weights-in-place", "packed"])
def test_terms_are_added_in_one_order(rows):
    large, rnn = 2.0**24, nn.RNN(48, 3, nonlinearity="relu", bias=False).to(BF16)
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(1.0)
    cases = [
        ({0: large, 1: 1.0, 2: -large}, 1.0),  # odd terms are a chain of their own
        ({0: 1.0, 2: large, 4: -large}, 0.0),  # even terms are added one after the other
        ({0: large, 1: 1.0, 32: -large}, 0.0),  # a block's sum is rounded
        ({0: large, 32: -large, 33: 1.0}, 1.0),  # and added to the total
    ]
    fast = rnnjit.compile(rnn, backend="numba")
    for terms, expected in cases:
        x = torch.zeros(1, rows, 48)
        x[..., list(terms)] = torch.tensor(list(terms.values()))
        with torch.no_grad():
            y, _ = fast(x.to(BF16))
        assert torch.equal(y, torch.full((1, rows, 3), expected, dtype=BF16)), terms


def test_the_best_instruction_set_has_tiles_where_they_are_permitted(monkeypatch):
    monkeypatch.delenv("RNNJIT_ISA", raising=False)
    assert (sapphire_rapids().name, sapphire_rapids().amx) == ("avx512", "tiles")
    for isa in (
        sapphire_rapids(permitted=False),
        *(sapphire_rapids(**{name: False}) for name in ("amx-tile", "amx-bf16", "avx512bw")),
    ):
        assert (isa.name, isa.amx) == ("avx512", "")
    monkeypatch.setenv("RNNJIT_ISA", "avx512")
    assert sapphire_rapids().amx == ""
    monkeypatch.setenv("RNNJIT_ISA", "amx")
    assert sapphire_rapids().amx == "tiles"
    with pytest.raises(ValueError, match=r"RNNJIT_ISA must be one of .* got 'amx'"):
        sapphire_rapids(permitted=False)


def test_the_system_is_asked_once(monkeypatch):
    asked, answer = [], 0

    class Library:
        def __init__(self, *_, **__):
            pass

        def syscall(self, *values):
            asked.append([value.value for value in values])
            ctypes.set_errno(errno.EPERM)
            return answer

    monkeypatch.setattr(amx_permission.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(amx_permission.sys, "platform", "linux")
    monkeypatch.setattr(amx_permission.ctypes, "CDLL", Library)
    amx_permission.refused.cache_clear()
    try:
        assert amx_permission.refused() == amx_permission.refused() == ""
        # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
        assert asked == [[158, 0x1023, 18]]
        answer = -1
        amx_permission.refused.cache_clear()
        assert "refuses its tile registers: Operation not permitted" in amx_permission.refused()
    finally:
        amx_permission.refused.cache_clear()


def test_tiles_that_compute_something_else_are_not_used(monkeypatch):
    monkeypatch.delenv("RNNJIT_ISA", raising=False)
    isa = replace(host_isa(), amx="tiles")
    monkeypatch.setattr(amx_check, "host_isa", lambda: isa)
    monkeypatch.setattr(amx_check.llvm, "get_host_cpu_features", lambda: FEATURES)
    answers = {"": "tiles", "3 of 512 sums by its tiles have other bits than they should": ""}
    for reason, used in answers.items():
        monkeypatch.setattr(amx_check, "differs", lambda _, reason=reason: reason)
        assert amx_check.kernel_isa(BF16).amx == used
        assert amx_check.kernel_isa(torch.float32).amx == ""
        assert reason in BACKEND.choices()["products of bfloat16"]


@wide_here
def test_the_comparison_compiles_once_and_tells_what_differs(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "cache"))
    # Code for tiles, which this test does not run.
    features = (*host_isa().features, "+amx-tile", "+amx-bf16")
    isa = replace(host_isa(), features=features, amx="tiles")
    products, compiled = amx_check._Code.products, amx_check._compiled
    made, wrong = [], [0.0]
    monkeypatch.setattr(amx_check, "_compiled", lambda isa: made.append(isa) or compiled(isa))

    def run(code, kind):
        found = products(code, "emulated")
        found[0, 3, 5] += wrong[0] if kind == "tiles" else 0.0
        return found

    monkeypatch.setattr(amx_check._Code, "products", run)
    for wrong[0], expected in ((0.0, ""), (2.0**30, "1 of 512 sums")):
        monkeypatch.setattr(amx_check.differs, "made", {})
        found = amx_check.differs(isa)
        assert found.startswith(expected)
        assert bool(found) == bool(expected)
    assert made == [isa]


def test_programs_use_no_tiles(monkeypatch):
    monkeypatch.setattr(targets, "host_isa", lambda: replace(host_isa(), amx="tiles"))
    assert targets.target("native").isa.amx == ""


def test_tiles_assemble_for_sapphire_rapids():
    isa = sapphire_rapids()
    machine = object_code.target_machine(isa)
    text = compared_products({"tiles": "products"}, amx_check.SIZES, 1)
    assembly = machine.emit_assembly(object_code.optimised(text, isa, ("products",)))
    assert all(re.search(rf"\b{name}\b", assembly) for name in INSTRUCTIONS)


@pytest.mark.full
def test_kernels_assemble_for_sapphire_rapids():
    isa = sapphire_rapids()
    machine = object_code.target_machine(isa)
    parts = [
        *kernel_modules.tile_modules(isa, BF16, RNN_RELU),
        *kernel_modules.kernel_modules(isa, BF16, RNN_RELU),
    ]
    assembly = "".join(
        machine.emit_assembly(object_code.optimised(part.text, isa, part.symbols)) for part in parts
    )
    count = {name: len(re.findall(rf"\b{name}\b", assembly)) for name in INSTRUCTIONS}
    assert all(count.values())
    # Each entry of the two kernels ends the use of tiles: backward ones with and without flushing.
    assert count["tilerelease"] == 6
    for other in (replace(isa, amx=""), replace(isa, amx="emulated"), host_isa()):
        for part in (
            *kernel_modules.tile_modules(other, BF16, RNN_RELU),
            *kernel_modules.kernel_modules(other, BF16, RNN_RELU),
        ):
            assert "call void @llvm.x86.t" not in re.sub('"', "", part.text)
