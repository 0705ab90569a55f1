"""Ahead-of-time programs: compiled for any target, loaded on machines that can run them."""

from __future__ import annotations

import ctypes
from importlib.metadata import version

import llvmlite.binding as llvm
import torch
from torch import Tensor

from rnnjit import RNNSpec, Rows
from rnnjit.artifact import ArtifactError
from rnnjit.artifact.template import fill
from rnnjit.backend import Program, Runner, States
from rnnjit.codegen.host import host_isa
from rnnjit.runtime.linker import Linked
from rnnjit_numba.object_code import object_code, target_machine
from rnnjit_numba.scratch import Scratch, scratch
from rnnjit_numba.targets import target as target_named
from rnnjit_numba.targets import why_not_here


def build(spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
    """`Backend.build`: an object file and its header."""
    from rnnjit_numba.program import text

    bits = 8 * dtype.itemsize
    isa, requires = target_named(target)
    symbol = f"{name}_forward"
    code = object_code(text(spec, isa, bits, symbol), isa, (symbol,), jit=False)
    needed = scratch(spec, isa, bits)
    options = {"target": target, **needed._asdict()}
    header = fill("rnnjit_numba", "program.h", spec, dtype, name, **options)
    machine = {
        "triple": isa.triple,
        "cpu": isa.cpu,
        "requires": " ".join(requires),
        **{f"scratch_{field}": str(count) for field, count in needed._asdict().items()},
    }
    versions = {package: version(package) for package in ("numba", "llvmlite")}
    return Program({f"{name}.o": code, f"{name}.h": header}, machine, versions)


def load(program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
    """`Backend.load`: the object file is linked into this process, and nothing is compiled."""
    machine = program.machine
    try:
        triple, requires = machine["triple"], tuple(machine["requires"].split())
        needed = Scratch(*(int(machine[f"scratch_{field}"]) for field in Scratch._fields))
        code = program.files[f"{name}.o"]
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"the manifest lacks {error}: export it anew") from None
    problem = why_not_here(triple, requires)
    if problem:
        raise ArtifactError(f"the artifact cannot run here: {problem}")
    return _Forward(_linked(code, f"{name}_forward"), spec, needed)


class _Forward:
    """The function `NAME_forward` of a loaded program, on tensors."""

    def __init__(self, linked: Linked, spec: RNNSpec, needed: Scratch) -> None:
        self._linked = linked  # owns the code
        kinds = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 7
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(linked.addresses[0])
        self._width = spec.num_directions * spec.hidden_size
        self._layers = spec.num_layers * spec.num_directions
        self._hidden, self._needed = spec.hidden_size, needed

    def __call__(
        self, rows: Rows, x: Tensor, hx: States | None, weights: Tensor
    ) -> tuple[Tensor, States]:
        T, B, N, sizes = rows
        h0 = None if hx is None else hx[0]
        y = x.new_empty((N, self._width))
        h_n = x.new_empty((self._layers, B, self._hidden))
        fixed, per_sequence, per_row = self._needed
        room = x.new_empty(fixed + B * per_sequence + N * per_row, dtype=torch.uint8)
        tensors = (sizes, x, h0, weights, y, h_n, room)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        if self._function(T, B, *addresses):
            raise RuntimeError(f"the program refuses {rows}")
        return y, (h_n,)


def _linked(code: bytes, function: str) -> Linked:
    """The code of an object file.

    Raises:
        ArtifactError: it is not an object file for this kind of machine, on which LLVM's loader
            would crash, or it lacks the function.
    """
    module, machine = llvm.parse_assembly(""), target_machine(host_isa(), jit=False)
    # The first bytes hold format, kind and processor: 20 bytes in ELF, 8 in Mach-O.
    own = machine.emit_object(module)[:20]
    kind = len(own) if own.startswith(b"\x7fELF") else 8
    if code[:kind] != own[:kind]:
        raise ArtifactError("the .o file is not an object file for this machine: export it anew")
    try:
        return Linked(code, [function])
    except ValueError as error:
        raise ArtifactError(
            f"the .o file is not an object file for this machine ({error}): export it anew"
        ) from None
