"""`rnnjit bench`: eager PyTorch, backends and peers, each in its own process, timed in turns."""

from rnnjit.runtime.timing import Timing, interleave

__all__ = ["Timing", "interleave"]
