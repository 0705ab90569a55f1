"""Where the project is, and what its tests share."""

from pathlib import Path

#: Modules that tests import, and programs that they start.
SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
