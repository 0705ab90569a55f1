"""The cases, measurements and reports of benchmarks, as data and as JSON on disk.

Times are seconds, sizes are bytes, rates are per second, unless a name says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

#: The version of the file format; it changes when older files can no longer be read.
FORMAT = 1

#: forward        evaluation mode, no gradients, a whole sequence per call
#: training       forward, then backward to x, h0 and every weight
#: backward       only that backward pass, repeatedly from one forward pass
#: last state     as training, of a loss on h_n alone (of nn.LSTM without c_n)
#: streaming      one step of one frame per call; the state is passed from call to call
#: cold start     the first forward call of a new process, with compilation and loading
#: cold training  the first training call of a new process
Mode = Literal[
    "forward", "training", "backward", "last state", "streaming", "cold start", "cold training"
]

#: The cell of a layer, see `rnnjit.bench.kinds`.
CellName = Literal["rnn", "lstm", "gru"]

#: right      its values, and in training its gradients, are within the conformance kit's tolerances
#: wrong      they are not: no time is kept
#: declined   it does not support such a call
#: failed     it raised, crashed or ran out of time
#: absent     it is not installed here
Verdict = Literal["right", "wrong", "declined", "failed", "absent"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a report; decoding rejects unknown fields."""


class Case(Record, frozen=True):
    """One call that is timed on every contestant.

    Attributes:
        T, B, I, H: steps (1 when streaming), sequences, input and hidden features.
        cell: "rnn", "lstm" or "gru": the layer is nn.RNN, nn.LSTM or nn.GRU.
        layers: L.
        bidirectional: whether D is 2.
        nonlinearity: "tanh" or "relu"; nn.RNN alone has a choice.
        proj_size: P of nn.LSTM, 0 for none.
        as_cell: whether torch's and rnnjit's modules are those of one step, such as nn.LSTMCell; T
            and layers are then 1.
        packed: whether the sequences have lengths between 1 and T, the longest first.
        dtype: "float32", "float64", "bfloat16", "float16" or "int8". In int8 the matrices are int8,
            all else is float32; contestants that are named so compute in float32 throughout.
        mode: what one call computes.
        threads: the number of threads that a contestant may use.
        group: the group of the case in its preset: "grid", "T", "B", "H", "threads", ...
    """

    T: int
    B: int
    I: int
    H: int
    cell: CellName = "rnn"
    layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"
    proj_size: int = 0
    as_cell: bool = False
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
        return self.mode in ("training", "backward", "last state", "cold training")

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def outputs(self) -> int:
        """P or H: features of a direction's output."""
        return self.proj_size or self.H


class Measurement(Record, frozen=True):
    """The result of one contestant in one case.

    Attributes:
        contestant: its name.
        case: the case.
        verdict: whether it is right, and if not, why there is no time.
        reason: the verdict in words, "" if right.
        p20, p50, p80: seconds of one call: the 20th, 50th and 80th percentile of the samples.
        samples: the number of samples.
        calls: the number of calls of which a sample is the mean.
        error: largest absolute difference from eager in float64, of values and gradients.
        eager_error: the same for eager in the dtype of the case; None in int8.
        first_call: seconds of the first call of its process, which may compile.
        memory: largest growth of its process in bytes during a call, see `rnnjit.bench.memory`.
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
    """A contestant of a report.

    Attributes:
        name: as in `Measurement.contestant`.
        kind: "baseline", "backend" (of rnnjit), or "peer".
        title: its name in tables and plots, such as "onnxruntime".
        versions: versions of its packages.
        absent: why it does not take part, with what to install; "" if it does.
    """

    name: str
    kind: Literal["baseline", "backend", "peer"]
    title: str
    versions: dict[str, str] = {}
    absent: str = ""


class Peak(Record, frozen=True):
    """The peak rate of multiply-adds of this machine.

    Attributes:
        dtype: "float32", "float64" or "bfloat16".
        threads: number of threads.
        flops: floating-point operations per second, two for a multiply-add.
    """

    dtype: str
    threads: int
    flops: float


class Bandwidth(Record, frozen=True):
    """The read bandwidth of one level of this machine's memory.

    Attributes:
        level: "L1", "L2", "L3" or "memory".
        threads: number of threads, each with its own buffer.
        capacity: bytes of the level per thread, 0 for memory.
        rate: bytes per second, of all threads together.
    """

    level: str
    threads: int
    capacity: int
    rate: float


class Machine(Record, frozen=True):
    """The machine of a report, and its measured peaks.

    Attributes:
        cpu: the processor's name.
        system: operating system and machine type.
        cpus: logical processors that the processes may run on.
        isa: instruction set that the kernels are generated for; "" if unknown.
        peaks: peak rates of multiply-adds, by dtype and threads.
        bandwidths: read bandwidths, by level and threads.
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
        preset: name of the preset.
        created: start time, in ISO 8601 with the offset from UTC.
        commit: commit of the working tree of rnnjit, "" if there is none; a "+" is appended if the
            tree has uncommitted changes.
        versions: versions of rnnjit, Python and the packages.
        machine: the machine.
        contestants: all contestants, absent ones included.
        measurements: in the order in which they finished.
        complete: False if the run was interrupted.
        command: the command that repeats the run, "" if there is none.
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


def encode(report: msgspec.Struct) -> bytes:
    """Encode a report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read(path: Path) -> Report:
    """Read the report in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no report, or one of another format.
    """
    return decode(path.read_bytes(), Report)


ReportT = TypeVar("ReportT", bound=Record)


def decode(content: bytes, kind: type[ReportT]) -> ReportT:
    """Decode a report of a kind that has a `format`.

    Raises:
        ValueError: it is no such report, or one of another format.
    """
    try:
        report = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it holds no report of rnnjit bench: {error}") from None
    found = getattr(report, "format", None)
    if found != FORMAT:
        raise ValueError(f"its format is {found}, expected {FORMAT}: measure anew")
    return report
