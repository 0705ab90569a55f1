"""The limits of a GPU that the planner reads."""

from __future__ import annotations

from typing import NamedTuple


class DeviceProperties(NamedTuple):
    """The limits of one GPU.

    Attributes:
        capability: compute capability, such as (9, 0).
        multiprocessors: how many there are.
        shared_per_block: bytes of shared memory that a block may opt in to.
        shared_per_multiprocessor: bytes of shared memory of a multiprocessor.
        threads_per_multiprocessor: threads that a multiprocessor holds.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int
