"""Benchmarks of whole models: eager against compiled, results and times."""

from rnnjit.bench.models.case import ModelCase, load_case

__all__ = ["ModelCase", "load_case"]
