"""The instruction sets that CPU backends can generate code for on this machine."""

from __future__ import annotations

import re

import pytest

from rnnjit.codegen.host import host_isa

ALL = ("amx", "avx512", "avx2", "neon", "plain")


def possible() -> list[str]:
    """Those that this machine has, the best first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNJIT_ISA", "none such")
        with pytest.raises(ValueError, match="RNNJIT_ISA must be one of") as raised:
            host_isa()
    return re.findall(rf"'({'|'.join(ALL)})'", str(raised.value))
