"""From a kernel's Python source to machine code for one GPU architecture, without a driver.

numba compiles to PTX and nvJitLink, NVIDIA's linker, to a cubin, which a driver runs that may be
older than the compiler. numba's own dispatcher is not used: it asks for a current device while it
compiles, gives no shared memory beyond 48 KiB, and spends tens of microseconds on a launch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rnnjit import ir, recurrence
from rnnjit.ir import CellSpec
from rnnjit.runtime import object_cache
from rnnjit_cuda.availability import LIBRARIES
from rnnjit_cuda.kernels import KernelKey

_ENTRY = re.compile(r"\.visible \.entry (\S+?)\(")
#: What numba would keep a kernel's globals in; nothing is in it.
_ENVIRONMENT = re.compile(r"_ZN08NumbaEnv\w+")
#: The one function that a cubin exports. numba's own names count up from compile to compile; they
#: are replaced, so that one kernel is one sequence of bytes.
ENTRY = "rnnjit_kernel"
#: The distributions that take part, beside the toolkit's libraries.
COMPILERS = ("cuda-core", "llvmlite", "numba", "numba-cuda")


def ptx(key: KernelKey, capability: tuple[int, int]) -> str:
    """The kernel in NVIDIA's assembly language, its entry called `ENTRY`."""
    from numba import cuda

    from rnnjit_cuda.sources import source

    made = source(key)
    text, _ = cuda.compile_ptx(
        made.function,
        made.signature,
        # numba would otherwise take these from variables of the environment.
        debug=False,
        opt=True,
        cc=capability,
        launch_bounds=(made.most_threads, 1),
    )
    found = _ENTRY.search(text)
    assert found is not None, "numba gives every kernel an entry"
    return _ENVIRONMENT.sub("rnnjit_environment", str(text).replace(found[1], ENTRY))


def cubin(key: KernelKey, capability: tuple[int, int]) -> bytes:
    """Machine code of the kernel, from the disk cache or compiled now."""
    name = key_of(key, capability)
    code: bytes | None = object_cache.fetch(name)
    if code is None:
        code = _link(ptx(key, capability), capability)
        object_cache.keep(name, code)
    return code


def _link(text: str, capability: tuple[int, int]) -> bytes:
    from cuda.core import Linker, LinkerOptions, ObjectCode

    major, minor = capability
    options = LinkerOptions(arch=f"sm_{major}{minor}")
    return bytes(Linker(ObjectCode.from_ptx(text.encode()), options=options).link("cubin").code)


def key_of(key: KernelKey, capability: tuple[int, int]) -> str:
    """Names all that machine code depends on: the sources, the compilers, the target."""
    fields = [each.digest if isinstance(each, CellSpec) else each for each in key]
    versions = [version(name) for name in COMPILERS]
    facts = (fields, capability, versions, list(_toolkit()))
    return object_cache.name_of(*facts, files=(__file__, ir.__file__, recurrence.__file__))


def _toolkit() -> Iterator[tuple[str, object]]:
    """The files of the CUDA libraries at work, which may be the system's, of no distribution."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    for name in LIBRARIES:
        path = load_nvidia_dynamic_lib(name).abs_path
        if path is None:
            yield name, None
        else:
            file = Path(path).stat()
            yield path, (file.st_size, file.st_mtime_ns)
