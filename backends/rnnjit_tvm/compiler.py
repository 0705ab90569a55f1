"""From TensorIR to object code: all of this backend that imports tvm.

TVM is used as a compiler alone. None of its run time takes part in a call: the object code asks
for no symbol of it, so that no thread pool is started and no processor affinity is changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rnnjit.cells import Cell
from rnnjit.codegen import Isa

#: What tvm reads when it is imported; the pool's are a safeguard, should anything start one.
_ENVIRONMENT = {
    "TVM_BIND_THREADS": "0",
    "TVM_THREAD_POOL_SPIN_COUNT": "0",
    "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
}


def compile_kernels(isa: Isa, bits: int, cell: Cell) -> bytes:
    """Object code of a cell's kernels for elements of `bits` bits, for any instruction set."""
    with _environment():
        from rnnjit_tvm.kernels import kernels

        return _object_code(kernels(isa, bits, cell), isa)


def assembly(isa: Isa, bits: int, cell: Cell) -> str:
    """The same as `compile_kernels`, as assembly to be read."""
    with _environment():
        from rnnjit_tvm.kernels import kernels

        text: str = _built(kernels(isa, bits, cell), isa).inspect_source("asm")
    return text


def _built(functions: dict[str, Any], isa: Isa) -> Any:
    """A module of TVM's: PrimFuncs lowered and optimised, without an interface of TVM's own."""
    import tvm
    from tvm import tirx

    target = tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": isa.triple,
            "mcpu": isa.cpu,
            "mattr": list(isa.features),
        }
    )
    bind = tirx.transform.BindTarget(target.with_host(target))
    module = bind(tvm.IRModule(functions))
    return tvm.get_global_func("target.build.llvm")(module, target)


def _object_code(functions: dict[str, Any], isa: Isa) -> bytes:
    built = _built(functions, isa)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernels.o"
        built.write_to_file(str(file), "o")
        return file.read_bytes()


@contextmanager
def _environment() -> Iterator[None]:
    """Sets what tvm is to find in its environment, for the time being."""
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
