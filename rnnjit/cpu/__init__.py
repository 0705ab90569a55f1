"""For backends that generate code for a CPU: its vector unit, and tanh on it.

What is here decides object code: a backend's cache key has to cover it
(`rnnjit.codecache.name_of`).
"""

from rnnjit.cpu.isa import ISA_VARIABLE, Isa, isa_named, isa_of
from rnnjit.cpu.tanh import TANH, TanhConstants

__all__ = ["ISA_VARIABLE", "TANH", "Isa", "TanhConstants", "isa_named", "isa_of"]
