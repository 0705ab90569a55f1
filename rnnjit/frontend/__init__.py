"""`rnnjit.compile`, the compiled modules that it makes, and how they read their arguments."""
