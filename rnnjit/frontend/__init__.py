"""From a user's module to a call: what `rnnjit.compile` makes, and how it reads arguments."""
