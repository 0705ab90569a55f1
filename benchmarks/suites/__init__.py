"""pytest-benchmark suites, a file for each mode, and what they share.

    make bench

measures all of them. Without `--benchmark-enable` each mode runs once, on its first case, as a test
of the suites themselves. A backend's values are judged against eager's in float64 before it is
timed; no time is ever judged.
"""
