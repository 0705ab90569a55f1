"""Which installed backends a test can run here, on the CPU."""

import rnnjit


def computes_on_cpu(backend):
    """Whether a backend says that it runs on the CPU, and it can on this machine."""
    there = backend.devices is None or "cpu" in backend.devices
    return there and not backend.missing()


#: Their names, in the order of `auto`.
ON_CPU = [name for name, backend in rnnjit.backends().items() if computes_on_cpu(backend)]
