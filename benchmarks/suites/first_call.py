"""The first forward and backward pass of a process: run as one, it does that and prints JSON.

python -m suites.first_call CONTESTANT THREADS GIVEN.pt FOUND.pt

GIVEN.pt has the layer's weights, its input and the gradients of its output; FOUND.pt is to have
values and gradients. It imports nothing that takes long before it is needed.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

from measures.fresh import status


def main(contestant: str, threads: int, given: str, found: str) -> dict[str, float | None]:
    """Seconds of each part, and the most bytes in memory (None where the system does not say)."""
    begin = perf_counter()
    import torch

    torch.set_num_threads(threads)
    with_torch = perf_counter()
    if contestant != "nn.RNN":
        import rnnjit
    imported = perf_counter()
    file = torch.load(given, weights_only=True)
    leaves, grads = file["leaves"], (file["grad_y"], file["grad_h_n"])
    for leaf in leaves.values():
        leaf.requires_grad_()
    loaded = perf_counter()
    x, h0, *weights = leaves.values()
    module: torch.nn.Module = torch.nn.RNN(x.shape[-1], h0.shape[-1], dtype=x.dtype)
    module.load_state_dict(dict(zip(module.state_dict(), weights, strict=True)))
    if contestant != "nn.RNN":
        module = rnnjit.compile(module, backend=contestant)
    y, h_n = module(x, h0)
    gradients = torch.autograd.grad((y, h_n), (x, h0, *module.parameters()), grads)
    end = perf_counter()
    named = {f"the gradient of {k}": v for k, v in zip(leaves, gradients, strict=True)}
    torch.save({"y": y.detach(), "h_n": h_n.detach(), **named}, found)
    return {
        "import_torch_seconds": with_torch - begin,
        "import_rnnjit_seconds": imported - with_torch,
        "first_pass_seconds": end - loaded,
        "peak_memory": status("VmHWM") if sys.platform == "linux" else None,
    }


if __name__ == "__main__":
    who, team, *files = sys.argv[1:]
    print(json.dumps(main(who, int(team), *files)))
