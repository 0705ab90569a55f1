"""`rnnjit bench`: times eager PyTorch, backends and peers, interleaved, each in its own process."""

from rnnjit.runtime.timing import Timing, interleave

__all__ = ["Timing", "interleave"]
