"""Kernels on memory between guard pages."""
