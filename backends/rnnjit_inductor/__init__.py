"""rnnjit's Inductor backend: chunks of time steps, unrolled and compiled by torch's own compiler.

Importing it imports no part of the compiler; the first call that is long enough for a chunk does.
"""

from rnnjit_inductor.backend import BACKEND, InductorBackend

__all__ = ["BACKEND", "InductorBackend"]
