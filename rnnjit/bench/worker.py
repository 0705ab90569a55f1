"""The process of one contestant: `python -m rnnjit.bench.worker NAME`.

It reads commands from standard input and writes replies to standard output, see
`rnnjit.bench.protocol`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from rnnjit.bench import protocol
from rnnjit.bench.arrays import Arrays, load, save_results
from rnnjit.bench.contestants import find
from rnnjit.bench.contestants.base import Contestant, Ready
from rnnjit.bench.memory import growth
from rnnjit.bench.records import Case
from rnnjit.runtime.timing import calibrate, sample


class Session:
    """The state of the process: the contestant, and the prepared case."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant
        self._case: tuple[Case, Arrays] | None = None
        self._ready: Ready | None = None

    def answer(self, command: protocol.Command) -> protocol.Reply:
        """Execute a command."""
        match command:
            case protocol.Prepare(case, arrays):
                self._ready = None  # frees the memory of the previous case first
                if reason := self._contestant.declines(case):
                    return protocol.Declined(reason)
                self._case = case, load(Path(arrays))
                self._ready = self._contestant.prepare(*self._case)
                start = perf_counter()
                self._ready.run()
                return protocol.Done(perf_counter() - start)
            case protocol.Results(path):
                save_results(Path(path), self._now().results())
                return protocol.Done()
            case protocol.Calibrate(least):
                return protocol.Done(calibrate(self._now().run, least))
            case protocol.Sample(calls):
                self._now().run()
                return protocol.Done(sample(self._now().run, calls))
            case protocol.Memory():
                return protocol.Done(self._memory())

    def _memory(self) -> int | None:
        """The growth during a second preparation, since the first one also loads libraries."""
        if self._case is None:
            raise RuntimeError("no case is ready")
        self._ready = None
        case, arrays = self._case

        def make() -> Any:
            self._ready = self._contestant.prepare(case, arrays)
            self._ready.run()
            return self._ready.run

        return growth(make)

    def _now(self) -> Ready:
        if self._ready is None:
            raise RuntimeError("no case is ready")
        return self._ready


def main() -> None:
    """Answer commands until standard input ends."""
    # Redirects the output of libraries to standard error: only replies may go to standard output.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    decoder = msgspec.json.Decoder(protocol.Command)
    session: Session | None = None
    for line in sys.stdin.buffer:
        try:
            session = session or Session(find(sys.argv[1]))
            reply = session.answer(decoder.decode(line))
        except Exception as error:  # noqa: BLE001 - a contestant may fail in any way
            reply = protocol.Failed(f"{type(error).__name__}: {error}")
        replies.write(msgspec.json.encode(reply) + b"\n")


if __name__ == "__main__":
    main()
