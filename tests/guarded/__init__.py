"""Kernels on memory that ends at a page which nobody may touch."""
