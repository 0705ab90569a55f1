"""What tests of this folder share."""

from teams import always_teams

__all__ = ["always_teams"]
