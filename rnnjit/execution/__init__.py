"""Runs a call on a backend: the stack of layers, autograd, and the operators for tracing."""
