"""Runs processes that answer in lines, such as that of a contestant, and kills those that hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile

import msgspec

from rnnjit.bench import isolated_worker, protocol
from rnnjit.bench.contestants import address
from rnnjit.bench.contestants.base import Contestant

_LAST_LINES = 3
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class WorkerError(Exception):
    """A command to the process failed; the message says why."""


class Refusal(Exception):  # noqa: N818 - not an error of the contestant
    """The contestant declines the case; the message says why."""


class Child:
    """A Python process that answers in lines on standard output.

    Args:
        run: what follows the interpreter on its command line.
        threads: the number of threads that its libraries may use.
        environment: environment variables to add to those of this process.
    """

    def __init__(
        self, run: Sequence[str], threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, *run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(threads) | dict(environment or {}),
            # Ctrl-C must reach only the benchmark, which ends the processes itself.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._end = ""  # why it takes no more commands
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def receive(self, timeout: float) -> bytes:
        """The next line of its answers.

        Args:
            timeout: most seconds to wait.

        Raises:
            WorkerError: it died or timed out, and is over.
        """
        if self._end:
            raise WorkerError(self._end)
        try:
            line = self._lines.get(timeout=timeout)
        except Empty:
            raise self._ended(f"no answer within {timeout:.0f} s: ended") from None
        if not line:
            raise self._ended(self._stderr_tail())
        return line

    @property
    def alive(self) -> bool:
        """Whether it still takes commands."""
        return not self._end

    def close(self) -> None:
        """Let it exit by itself, and kill it after a second."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        self._end = self._end or "its process was ended"
        self._reader.join(timeout=1)
        for file in (self._stdin, self._stdout, self._errors):
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, line: bytes) -> None:
        # It may have died, as the reader will report, or been ended.
        with contextlib.suppress(OSError, ValueError):
            self._stdin.write(line)
            self._stdin.flush()

    def _read(self) -> None:
        for line in self._stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _ended(self, reason: str) -> WorkerError:
        self._end = reason
        self.kill()
        return WorkerError(reason)

    def _stderr_tail(self) -> str:
        """How it died, and its last lines on standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.returncode
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with status {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = [line.strip() for line in lines if line.strip()][-_LAST_LINES:]
        return "; ".join([f"its process {how}", *last])


class Worker(Child):
    """A process that runs one contestant on a given number of threads.

    Args:
        contestant: the contestant.
        threads: the number of threads that its libraries may use.
        environment: environment variables to add to those of this process.
    """

    def __init__(
        self, contestant: Contestant, threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        # A backend runs with rnnjit, as for its users; peers must not import rnnjit.
        run = (
            ["-m", "rnnjit.bench.worker"]
            if contestant.kind == "backend"
            else [isolated_worker.__file__]
        )
        super().__init__([*run, address(contestant)], threads, environment)

    def ask(self, command: protocol.Command, timeout: float) -> float | None:
        """Send a command and wait for its reply.

        Args:
            command: the command.
            timeout: most seconds to wait.

        Raises:
            Refusal: the contestant declines.
            WorkerError: it raised; or its process died, gave an invalid reply or timed out, and is
                over.
        """
        self._write(msgspec.json.encode(command) + b"\n")
        line = self.receive(timeout)
        try:
            reply = msgspec.json.decode(line, type=protocol.Reply)
        except msgspec.DecodeError:
            raise self._ended(f"an invalid reply: {line[:80]!r}") from None
        if isinstance(reply, protocol.Done):
            return reply.value
        if isinstance(reply, protocol.Declined):
            raise Refusal(reply.reason)
        raise WorkerError(reply.reason)


def _environment(threads: int) -> dict[str, str]:
    """The environment of this process, with the number of threads and the module search path."""
    places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    pools = dict.fromkeys(_POOLS, str(threads))
    return {**os.environ, **pools, "PYTHONPATH": places}
