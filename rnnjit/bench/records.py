"""What a benchmark measures and what it found, as data, and as JSON on disk.

Times are seconds, sizes are bytes, rates are per second, unless a name says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

#: Changes when files of before can no longer be read.
FORMAT = 1

#: forward        evaluation mode, no gradients, a whole sequence a call
#: training       forward, then backward to x, h0 and every weight
#: backward       that backward pass alone, again and again from one forward pass
#: streaming      one step of one frame a call, the state going on from call to call
#: cold start     the first forward call of a new process, compilation and loading included
#: cold training  the same of a training call
Mode = Literal["forward", "training", "backward", "streaming", "cold start", "cold training"]

#: right      its values, and in training its gradients, are within the conformance kit's tolerances
#: wrong      they are not: no time is kept
#: declined   it does not offer such a call
#: failed     it raised, crashed or ran out of time
#: absent     it is not installed here
Verdict = Literal["right", "wrong", "declined", "failed", "absent"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a report; a file with fields that are not known is refused."""


class Case(Record, frozen=True):
    """One call that is timed on every contestant.

    Attributes:
        T, B, I, H: steps (1 when streaming), sequences, input and hidden features.
        layers: L.
        bidirectional: D is 2.
        nonlinearity: "tanh" or "relu".
        packed: sequences of lengths between 1 and T, the longest first.
        dtype: "float32" or "float64".
        mode: what one call does.
        threads: that a contestant may use.
        group: what the case belongs to in a preset: "grid", "T", "B", "H", "threads", ...
    """

    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"
    packed: bool = False
    dtype: str = "float32"
    mode: Mode = "forward"
    threads: int = 1
    group: str = "grid"

    @property
    def cold(self) -> bool:
        """Whether the call is the first one of a process."""
        return self.mode in ("cold start", "cold training")

    @property
    def trains(self) -> bool:
        """Whether the call computes gradients."""
        return self.mode in ("training", "backward", "cold training")

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1


class Measurement(Record, frozen=True):
    """What one contestant did with one case.

    Attributes:
        contestant: its name; `eager` is the baseline.
        case: what was called.
        verdict: whether it is right, and if not, why there is no time.
        reason: the verdict in words, "" if right.
        p20, p50, p80: seconds of one call: the samples that 20, 50 and 80% are below.
        samples: how many samples there are.
        calls: how many calls a sample is the mean of.
        error: largest absolute difference from eager in float64, of values and gradients.
        eager_error: eager's own.
        first_call: seconds of the first call of its process, which may compile.
        memory: bytes that its process grew by at most during the calls, beyond before the first.
    """

    contestant: str
    case: Case
    verdict: Verdict = "right"
    reason: str = ""
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    samples: int = 0
    calls: int = 0
    error: float | None = None
    eager_error: float | None = None
    first_call: float | None = None
    memory: int | None = None


class ContestantInfo(Record, frozen=True):
    """Who takes part.

    Attributes:
        name: as in `Measurement.contestant`.
        kind: "baseline", "backend" (of rnnjit), or "peer".
        title: how people know it, such as "onnxruntime".
        versions: of the packages that it is made of.
        absent: why it does not take part, with what to install; "" if it does.
    """

    name: str
    kind: Literal["baseline", "backend", "peer"]
    title: str
    versions: dict[str, str] = {}
    absent: str = ""


class Peak(Record, frozen=True):
    """The most multiply-adds that this machine does.

    Attributes:
        dtype: "float32" or "float64".
        threads: at work at the same time.
        flops: floating-point operations a second, two for a multiply-add.
    """

    dtype: str
    threads: int
    flops: float


class Bandwidth(Record, frozen=True):
    """How fast this machine reads what lies in one level of its memory.

    Attributes:
        level: "L1", "L2", "L3" or "memory".
        threads: at work at the same time, each on memory of its own.
        capacity: bytes of the level that one thread may fill, 0 for memory.
        rate: bytes a second, of all threads together.
    """

    level: str
    threads: int
    capacity: int
    rate: float


class Machine(Record, frozen=True):
    """The machine, and what it was measured to do at most, in the run of the report.

    Attributes:
        cpu: the processor's name.
        system: operating system and machine type.
        cpus: logical processors that the processes might run on.
        isa: vector instructions that the kernels were generated for.
        peaks: of multiply-adds, by dtype and threads.
        bandwidths: by level and threads.
    """

    cpu: str
    system: str
    cpus: int
    isa: str
    peaks: tuple[Peak, ...] = ()
    bandwidths: tuple[Bandwidth, ...] = ()


class Report(Record, frozen=True):
    """One run of a benchmark.

    Attributes:
        format: `FORMAT`.
        preset: its name.
        created: when it began, in ISO 8601 with the offset from UTC.
        commit: of the working tree that ran, "" if it is not one; "+" behind it if it was changed.
        versions: of rnnjit, Python and the packages at work.
        machine: where it ran.
        contestants: who took part and who was absent.
        measurements: in the order in which they were finished.
        complete: False if it was interrupted.
        command: that makes such a report again, "" if it was made otherwise.
    """

    preset: str
    created: str
    commit: str
    versions: dict[str, str]
    machine: Machine
    contestants: tuple[ContestantInfo, ...] = msgspec.field(name="contenders")
    measurements: tuple[Measurement, ...]
    complete: bool = True
    command: str = ""
    format: int = FORMAT


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
