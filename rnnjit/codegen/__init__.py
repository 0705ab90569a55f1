"""For backends that generate code for a CPU: what does not depend on the compiler they write for.

`isa` has the vector unit, `pointwise` a cell's operations on vectors and `elementary` the constants
of exp and tanh. What is here decides object code: a backend's cache key has to cover it
(`rnnjit.runtime.object_cache.name_of`).
"""

from rnnjit.codegen.isa import ISA_VARIABLE, Isa, isa_named, isa_of
from rnnjit.codegen.tanh import TANH, TanhConstants

__all__ = ["ISA_VARIABLE", "TANH", "Isa", "TanhConstants", "isa_named", "isa_of"]
