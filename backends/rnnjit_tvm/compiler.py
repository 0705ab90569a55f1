"""From TensorIR to object code: tvm is imported only from here on.

TVM serves as a compiler alone. Its runtime takes no part in a call: the object code refers to none
of its symbols, and so no thread pool is started and no processor affinity is changed.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rnnjit.codegen import Isa
from rnnjit.ir import CellSpec

#: Read by tvm when it is imported. Those of the thread pool are a safeguard, should it be started.
_ENVIRONMENT = {
    "TVM_BIND_THREADS": "0",
    "TVM_THREAD_POOL_SPIN_COUNT": "0",
    "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
}


def compile_kernels(isa: Isa, dtype: torch.dtype, cell: CellSpec) -> bytes:
    """Object code of a cell's kernels for tensors of a dtype, for any instruction set."""
    with _environment():
        from rnnjit_tvm.kernels import kernels

        return _object_code(kernels(isa, dtype, cell), isa)


def assembly(isa: Isa, dtype: torch.dtype, cell: CellSpec) -> str:
    """The kernels of `compile_kernels` as assembly, for reading."""
    with _environment():
        from rnnjit_tvm.kernels import kernels

        text: str = _built(kernels(isa, dtype, cell), isa).inspect_source("asm")
    return text


def _built(functions: dict[str, Any], isa: Isa) -> Any:
    """A TVM module: PrimFuncs lowered and optimised, without TVM's calling convention."""
    import tvm
    from tvm import tirx

    target = tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": isa.triple,
            "mcpu": isa.cpu,
            "mattr": _features(isa),
        }
    )
    bind = tirx.transform.BindTarget(target.with_host(target))
    module = bind(tvm.IRModule(functions))
    return tvm.get_global_func("target.build.llvm")(module, target)


def _features(isa: Isa) -> list[str]:
    """Those of an instruction set's features that TVM's LLVM knows.

    They are named by llvmlite's LLVM, which may be of another release. TVM's ignores a name that
    it does not know, but prints a line about it, for every function.
    """
    import tvm

    if isa.triple.partition("-")[0] != platform.machine():
        return list(isa.features)
    known = {str(name) for name in tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()}
    return [feature for feature in isa.features if feature[1:] in known]


def _object_code(functions: dict[str, Any], isa: Isa) -> bytes:
    built = _built(functions, isa)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernels.o"
        built.write_to_file(str(file), "o")
        return file.read_bytes()


@contextmanager
def _environment() -> Iterator[None]:
    """Set tvm's environment variables, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
