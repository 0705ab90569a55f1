"""Links object code into this process.

Ahead-of-time code addresses its constants by 32-bit offsets. LLVM's older loader (RuntimeDyld) may
place sections further apart than that in a process that holds gigabytes, and then aborts the
process. JITLink places all sections next to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llvmlite.binding as llvm


class Linked:
    """The functions of one object file; their code stays loaded as long as this object exists.

    Args:
        code: the object file, for this machine's format and processor.
        functions: names of the functions that it must define.
        symbols: addresses of the external functions that it calls, by name.

    Attributes:
        addresses: of `functions`, in the same order.

    Raises:
        ValueError: `code` is not an object file, lacks a function, or calls a function that is not
            in `symbols`.
    """

    def __init__(
        self, code: bytes, functions: Sequence[str], symbols: Mapping[str, int] | None = None
    ) -> None:
        # Checked first, since LLVM crashes on unreadable input.
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
