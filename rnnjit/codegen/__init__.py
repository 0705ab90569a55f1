"""Code generation for CPU backends: the parts that do not depend on the backend's compiler.

* `isa` and `host`: instruction sets, and that of this machine; `amx_permission`: the system's to
  use tile registers;
* `pointwise` and `elementary`: vector code for the operations of cells, with exp and tanh;
* `cell_layout`: how a cell's gates lie in the kernels' memory;
* `computed`: between tensors of bfloat16 or float16 and the float32 that kernels compute with;
* `deferral`: the calls that `auto` leaves to torch's own operators;
* `subnormals`: whether backward kernels flush subnormal numbers;
* `row_slices`: how threads divide a batch;
* `scratch_memory`: large scratch memory, kept for the next call;
* `argument_block`, `forward_call`, `backward_call` and `kernel`: from tensors to a call of a
  compiled kernel.

Object code depends on this package, so a backend's cache key must cover it (`kernel.cache_key`).
"""

from rnnjit.codegen.isa import ISA_VARIABLE, Isa, isa_named, isa_of

__all__ = ["ISA_VARIABLE", "Isa", "isa_named", "isa_of"]
