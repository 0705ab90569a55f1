"""The calls that are timed, as the roofline knows them and as the conformance kit does."""

from __future__ import annotations

import torch
from measures.pairs import Shape

from rnnjit.bench.records import Case, Mode
from rnnjit.bench.roofline import lengths
from rnnjit.testing.cases import Case as KitCase

#: The first case of every suite: quickly done, so that it is run as a test too.
SMALL = Shape(5, 32, 10, 20)
#: A few shapes for suites where the whole grid would take long.
FEW = (
    SMALL,
    Shape(100, 1, 128, 256),
    Shape(100, 32, 128, 256),
    Shape(100, 64, 512, 512),
    Shape(1000, 16, 64, 128),
)
#: The same in float64, of which one is bound by Python and one by arithmetic.
FLOAT64 = (SMALL, Shape(100, 32, 128, 256))


def cases(
    mode: Mode, shapes: tuple[Shape, ...], dtype: str = "float32", *, packed: bool = False
) -> tuple[Case, ...]:
    """A case for each shape, on all threads of torch."""
    threads = torch.get_num_threads()
    return tuple(
        Case(**shape._asdict(), mode=mode, dtype=dtype, packed=packed, threads=threads)
        for shape in shapes
    )


def for_kit(case: Case, *, frames: int | None = None) -> KitCase:
    """The same for the kit, which makes its tensors; of this many steps, if they are given."""
    T = frames or case.T
    return KitCase(
        f"{T} {case.B} {case.I} {case.H} {case.dtype} {case.packed}",
        input_size=case.I,
        hidden_size=case.H,
        T=T,
        B=case.B,
        h0=True,
        lengths=tuple(lengths(case)) if case.packed else None,
        training=case.mode == "training",
        dtype=getattr(torch, case.dtype),
    )
