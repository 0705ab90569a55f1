"""Object code that was compiled before, linked into this process.

Compilers other than a JIT have code reach its constants by distances of 32 bits. LLVM's older
loader lays sections wherever there is room, which in a process that holds gigabytes may be further
apart than that, and then aborts the process. JITLink lays all of them side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llvmlite.binding as llvm


class Linked:
    """Functions of one object file; their code lives as long as this does.

    Args:
        code: the object file, for this machine's format and processor.
        functions: what it must define.
        symbols: addresses of what it calls, by name.

    Attributes:
        addresses: of the functions, in their order.

    Raises:
        ValueError: `code` is no object file, lacks a function, or calls what is not in `symbols`.
    """

    def __init__(
        self, code: bytes, functions: Sequence[str], symbols: Mapping[str, int] | None = None
    ) -> None:
        # LLVM would crash over what it could not read.
        if not llvm.object_file.ObjectFileRef.from_data(code):
            raise ValueError("this is not object code")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        library = llvm.JITLibraryBuilder().add_object_img(code)
        for name, address in (symbols or {}).items():
            library.import_symbol(name, address)
        for name in functions:
            library.export_symbol(name)
        linker: Any = llvm.create_lljit_compiler(use_jit_link=True, suppress_errors=True)
        try:
            self._code: Any = library.link(linker, "rnnjit")
        except RuntimeError as error:
            raise ValueError(f"object code cannot be linked: {error}") from None
        self._linker = linker
        self.addresses = [int(self._code[name]) for name in functions]
