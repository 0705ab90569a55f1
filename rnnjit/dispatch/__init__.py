"""Which backend runs a call: registry, choice, fallback where one fails, the fast path."""
