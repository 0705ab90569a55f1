"""For backends that generate code for a CPU: what does not depend on the compiler they write for.

* `isa` and `host`: vector units, and this machine's;
* `pointwise` and `elementary`: the operations of cells on vectors, exp and tanh among them;
* `elman`: which cells the kernels of nn.RNN compute;
* `row_slices`: how threads divide a batch;
* `argument_block`, `forward_call` and `kernel`: from tensors to a call of a compiled kernel.

What is here decides object code: a backend's cache key has to cover it (`kernel.cache_key`).
"""

from rnnjit.codegen.isa import ISA_VARIABLE, Isa, isa_named, isa_of

__all__ = ["ISA_VARIABLE", "Isa", "isa_named", "isa_of"]
