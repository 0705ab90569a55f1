"""Runs a call on a backend: the stack of layers, autograd, the operators that torch traces."""
