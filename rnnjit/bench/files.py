"""Reports on disk: JSON, as `rnnjit.bench.records` lays it out."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rnnjit.bench.records import FORMAT, Report


def encode(report: Report) -> bytes:
    """A report as JSON that people can read, too."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read(path: Path) -> Report:
    """The report in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no report, or one of another format; the message says so.
    """
    content = path.read_bytes()
    try:
        report = msgspec.json.decode(content, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it holds no report of rnnjit bench: {error}") from None
    if report.format != FORMAT:
        raise ValueError(f"its format is {report.format}, expected {FORMAT}: measure anew")
    return report
