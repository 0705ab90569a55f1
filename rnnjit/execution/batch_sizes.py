"""Checks the values of the batch sizes of a PackedSequence."""

from __future__ import annotations


def check_counts(counts: list[int], rows: int | None) -> None:
    """Check batch sizes against the number of rows of the data, or None if that is unknown.

    Raises:
        RuntimeError: they grow, are negative, or add up to more than the rows.
    """
    if counts[-1] < 0 or counts != sorted(counts, reverse=True):
        raise RuntimeError(
            "input.batch_sizes must never grow from one step to the next nor be negative, "
            f"got {_some(counts)}"
        )
    total = sum(counts)
    if rows is not None and total > rows:
        raise RuntimeError(
            f"{_beyond(counts, rows)} "
            f"input.batch_sizes adds up to {total} rows, but input.data has {rows}"
        )


def _beyond(counts: list[int], rows: int) -> str:
    """Torch's sentence for the first step that ends beyond the data.

    Torch is not asked for it: some of its kernels take such sizes, and read beyond the data.
    """
    start = 0
    for count in counts:
        if start + count > rows:
            break
        start += count
    return f"start ({start}) + length ({count}) exceeds dimension size ({rows})."


def _some(counts: list[int]) -> str:
    shown = ", ".join(str(count) for count in counts[:8])
    return f"[{shown}{', ...' if len(counts) > 8 else ''}]"
