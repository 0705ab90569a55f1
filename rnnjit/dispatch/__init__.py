"""Selects the backend for a call: registry, choice, fallback on errors, fast path."""
