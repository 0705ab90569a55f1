"""Protects the linker: it loads kernels into fragmented memory, and refuses what it cannot link."""

import sys

import llvmlite.binding as llvm
import pytest
from processes import assert_well, program

import rnnjit
from rnnjit.runtime.linker import Linked

# Holes of a few pages above a gap of 8 GB: sections of code and constants that are laid wherever
# there is room come to lie on both sides of it, further apart than 32 bits reach.
APART = """
import ctypes
from torch import nn
import rnnjit_numba.library, rnnjit_tvm.library

torch.manual_seed(0)
rnn, x = nn.RNN(3, 8), torch.randn(40, 9, 3)
with torch.no_grad():
    right = rnn(x)[0]
folder = sys.argv[2]
for name in ("first", "second"):
    rnnjit.export_artifact(rnn, f"{folder}/{name}")
rnnjit.load_artifact(folder + "/first")
compiled = rnnjit.compile(rnn, backend=sys.argv[1]) if sys.argv[1] != "artifact" else None

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def reserved(size):
    PRIVATE_ANONYMOUS_NORESERVE = 0x4022
    address = libc.mmap(None, size, 0, PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    assert address != ctypes.c_void_p(-1).value
    return address

PAGE = 4096
sizes = [PAGE * pages for pages in (1, 2, 4, 8, 16) for _ in range(60)]
pieces = [reserved(size) for size in sizes]
gap = reserved(8 << 30)
for pages in (256, 64, 16, 4, 1):  # other holes above the gap are filled
    while reserved(PAGE * pages) > gap:
        pass
for piece, size in list(zip(pieces, sizes))[::2]:
    libc.munmap(piece, size)

if compiled is None:
    compiled = rnnjit.load_artifact(folder + "/second")
with torch.no_grad():
    found = compiled(x)[0]
assert float((found - right).abs().max()) < 1e-5
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mmap's numbers are Linux's")
@pytest.mark.full
@pytest.mark.parametrize("what", ["tvm", "numba", "artifact"])
def test_memory_in_pieces(what, tmp_path):
    if what != "artifact" and rnnjit.backends()[what].missing():
        pytest.skip(f"{what} is not installed")
    # Twice: what is compiled by the first is only loaded by the second.
    for run in ("compiled", "loaded"):
        folder = tmp_path / run
        assert_well(program(APART, what, folder, RNNJIT_CACHE_DIR=str(tmp_path / "cache")))


TEXT = """
declare i64 @given(i64)
define i64 @twice(i64 %x) {
  %y = call i64 @given(i64 %x)
  %z = add i64 %y, %y
  ret i64 %z
}
"""


@pytest.fixture
def code():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic")
    return machine.emit_object(llvm.parse_assembly(TEXT))


@pytest.mark.parametrize(
    ("change", "functions", "symbols"),
    [
        (lambda code: b"", ["twice"], {"given": 1}),
        (lambda code: b"garbage" * 100, ["twice"], {"given": 1}),
        (lambda code: code, ["thrice"], {"given": 1}),
        (lambda code: code, ["twice"], {}),
    ],
    ids=["empty", "garbage", "another function", "an unknown symbol"],
)
def test_what_cannot_be_linked_is_refused(code, change, functions, symbols, capfd):
    with pytest.raises(ValueError, match="object code"):
        Linked(change(code), functions, symbols)
    assert capfd.readouterr() == ("", "")


def test_functions_are_called_with_the_symbols_given(code):
    import ctypes

    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    given = kind(lambda x: x + 1)
    linked = Linked(code, ["twice"], {"given": ctypes.cast(given, ctypes.c_void_p).value})
    assert kind(linked.addresses[0])(20) == 42
