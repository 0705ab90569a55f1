"""Ahead-of-time programs: compiled for any target, loaded on machines that can run them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.metadata import version

import llvmlite.binding as llvm
import torch
from torch import Tensor

from rnnjit import RNNSpec, Rows
from rnnjit.artifact import ArtifactError
from rnnjit.backend import Program, Runner, States
from rnnjit.codegen.cell_layout import why_not_projected
from rnnjit.codegen.host import host_isa
from rnnjit.runtime.linker import Linked
from rnnjit_numba.object_code import object_code, target_machine
from rnnjit_numba.program_header import header
from rnnjit_numba.targets import target as target_named
from rnnjit_numba.targets import why_not_here
from rnnjit_numba.tile_shapes import as_tiles_see


def build(spec: RNNSpec, dtype: torch.dtype, target: str, name: str) -> Program:
    """`Backend.build`: an object file and its header.

    Raises:
        ValueError: the kernels do not support such a projection, or the matrices are int8.
    """
    from rnnjit_numba import program

    reasons = why_not_projected(spec.cell) if spec.proj_size else []
    if spec.quantized:
        reasons.append("programs support no int8 matrices")
    if reasons:
        raise ValueError(f"target {target!r} cannot compute these layers: {'; '.join(reasons)}")
    isa, requires = target_named(target)
    isa = as_tiles_see(isa, dtype)
    public = program.functions(spec, name)
    code = object_code(program.text(spec, isa, dtype, name), isa, public, jit=False)
    machine = {"triple": isa.triple, "cpu": isa.cpu, "requires": " ".join(requires)}
    versions = {package: version(package) for package in ("numba", "llvmlite")}
    files = {f"{name}.o": code, f"{name}.h": header(spec, dtype, target, name)}
    return Program(files, machine, versions)


def load(program: Program, spec: RNNSpec, dtype: torch.dtype, name: str) -> Runner:
    """`Backend.load`: the object file is linked into this process, and nothing is compiled."""
    machine = program.machine
    try:
        triple, requires = machine["triple"], tuple(machine["requires"].split())
        code = program.files[f"{name}.o"]
    except KeyError as error:
        raise ArtifactError(f"the manifest lacks {error}: export it anew") from None
    problem = why_not_here(triple, requires)
    if problem:
        raise ArtifactError(f"the artifact cannot run here: {problem}")
    return _Forward(linked(code, (f"{name}_forward", f"{name}_scratch_bytes")), spec)


class _Forward:
    """The function `NAME_forward` of a loaded program, on tensors."""

    def __init__(self, code: Linked, spec: RNNSpec) -> None:
        self._code = code  # owns the code
        kinds = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * (5 + 2 * len(spec.cell.states))
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(code.addresses[0])
        integers = [ctypes.c_int64] * 2
        self._bytes = ctypes.CFUNCTYPE(ctypes.c_int64, *integers)(code.addresses[1])
        self._spec, self._width = spec, spec.num_directions * spec.layer(0).output_size

    def __call__(
        self, rows: Rows, x: Tensor, hx: States | None, weights: Tensor
    ) -> tuple[Tensor, States]:
        T, B, N, sizes = rows
        shapes = self._spec.state_shapes(B)
        y, last = x.new_empty((N, self._width)), tuple(map(x.new_empty, shapes))
        room = x.new_empty(self._bytes(B, N), dtype=torch.uint8)
        first = (None,) * len(shapes) if hx is None else hx
        tensors = (sizes, x, *first, weights, y, *last, room)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        if self._function(T, B, *addresses):
            raise RuntimeError(f"the program refuses {rows}")
        return y, last


def linked(code: bytes, functions: Sequence[str]) -> Linked:
    """The code of an object file.

    Raises:
        ArtifactError: it is not an object file for this kind of machine, on which LLVM's loader
            would crash, or it lacks a function.
    """
    module, machine = llvm.parse_assembly(""), target_machine(host_isa(), jit=False)
    # The first bytes hold format, kind and processor: 20 bytes in ELF, 8 in Mach-O.
    own = machine.emit_object(module)[:20]
    kind = len(own) if own.startswith(b"\x7fELF") else 8
    if code[:kind] != own[:kind]:
        raise ArtifactError("the .o file is not an object file for this machine: export it anew")
    try:
        return Linked(code, functions)
    except ValueError as error:
        raise ArtifactError(
            f"the .o file is not an object file for this machine ({error}): export it anew"
        ) from None
