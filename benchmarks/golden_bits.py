"""The CPU backends' results, bit by bit: proof that a change of structure changed none of them.

    python benchmarks/golden_bits.py record FILE.json [--backend NAME]
    python benchmarks/golden_bits.py check FILE.json [--backend NAME]

Both run the same 300 configurations on `numba` and `tvm`, in a few seconds once kernels are cached:
outputs and all gradients, dense and packed, with and without gradients, step by step, over sizes
that use every plan. The first writes a SHA-256 of each to FILE; the second compares, and names the
tensors that differ. To record code from before the change, put it first on the path (`PYTHONPATH`);
both commands print which package they ran.

Bits depend on the instruction set. A file holds one record for each host, which is machine, vector
unit and `RNNJIT_ISA`: `record` replaces that of its own host, and `check` fails on a host without a
record.

Exit status: 0, or 1 if something differs, or 2 if there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit

V = TypeVar("V")
BACKENDS = ("numba", "tvm")
COUNT = 300
#: Digits of each tensor's hash that are kept, to name the tensors that differ.
_DIGITS = 4
_PACKAGES = ("torch", "numba", "llvmlite", "apache-tvm")


@dataclass(frozen=True)
class Configuration:
    """A layer and a call to it; values follow from the index.

    Attributes:
        index: of the configuration, and the seed of its values.
        call: "training" and "inference" make the call twice, since the second takes the fast path;
            "stream" runs step by step.
        T, B, I, H: steps, sequences, input features, hidden features.
        layers, directions: how many.
        dtype: name of torch's dtype.
        nonlinearity: "tanh" or "relu".
        bias: whether there is one.
        batch_first: as in nn.RNN.
        form: of the input, "dense", "unbatched", "packed" or "packed unsorted".
        differing: whether the lengths of packed sequences differ.
        h0: whether an initial state is given.
        threads: torch's thread count.
        through: the outputs that gradients come from, "y", "h_n" or "both".
        frozen: prefixes of the names of tensors that need no gradient.
    """

    index: int
    call: str
    T: int
    B: int
    I: int
    H: int
    layers: int
    directions: int
    dtype: str
    nonlinearity: str
    bias: bool
    batch_first: bool
    form: str
    differing: bool
    h0: bool
    threads: int
    through: str
    frozen: tuple[str, ...]


# Each value of an option is as frequent as it is listed.
_CALLS = [*["training"] * 6, *["inference"] * 3, "stream"]
_FORMS = [*["dense"] * 5, "unbatched", *["packed"] * 3, *["packed unsorted"] * 3]
_THROUGH = ["both", "both", "y", "h_n"]
_FROZEN: list[tuple[str, ...]] = [
    *[()] * 8,
    ("x",),
    ("h0",),
    ("weight_ih",),
    ("weight_hh",),
    ("bias",),
    ("bias_hh",),
    ("weight", "bias"),
    ("weight_hh_l0", "bias_ih_l0"),
    ("x", "h0", "weight_ih_l0"),
    ("weight_ih_l0_reverse",),
]
_SIZES = [
    *["any"] * 6,
    *["sixteens"] * 4,
    *["few rows"] * 2,
    *["one sequence"] * 2,
    *["wide"] * 2,
    *["long"] * 2,
    *["large"] * 2,
]


class Draw:
    """Random numbers that are the same everywhere, which only `Random.random` promises."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def between(self, first: int, last: int) -> int:
        """An integer, both ends included."""
        return first + int(self._random() * (last + 1 - first))

    def shuffled(self, values: Sequence[V]) -> list[V]:
        """The values, repeated until there are enough of them, in random order."""
        repeated = [values[i % len(values)] for i in range(COUNT)]
        return sorted(repeated, key=lambda _: self._random())


def configurations() -> list[Configuration]:
    """All configurations; the list is always the same."""
    draw = Draw(0)
    columns = zip(
        draw.shuffled(_SIZES),
        draw.shuffled(_CALLS),
        draw.shuffled(_FORMS),
        draw.shuffled([1, 1, 2, 3]),
        draw.shuffled([1, 2]),
        draw.shuffled(["float32", "float64"]),
        draw.shuffled(["tanh", "relu"]),
        draw.shuffled([True, True, False]),
        draw.shuffled([False, True]),
        draw.shuffled([True, True, False]),
        draw.shuffled([True, False]),
        draw.shuffled([2, 1, 2]),
        draw.shuffled(_THROUGH),
        draw.shuffled(_FROZEN),
        strict=True,
    )
    found = []
    for index, (sizes, call, form, layers, directions, *rest) in enumerate(columns):
        if call == "stream":
            form, directions = "dense", 1
        T, B, I, H = _sizes(draw, sizes)
        dtype, nonlinearity, bias, batch_first, differing, h0, threads, through, frozen = rest
        found.append(
            Configuration(
                index=index,
                call=call,
                T=T,
                B=1 if form == "unbatched" else B,
                I=I,
                H=H,
                layers=layers,
                directions=directions,
                dtype=dtype,
                nonlinearity=nonlinearity,
                bias=bias,
                batch_first=batch_first,
                form=form,
                differing=differing,
                h0=h0,
                threads=threads,
                through=through,
                frozen=frozen,
            )
        )
    return found


def _sizes(draw: Draw, kind: str) -> tuple[int, int, int, int]:
    """T, B, I and H of a kind."""
    features = (draw.between(1, 130), draw.between(1, 130))
    if kind == "sixteens":
        features = (16 * draw.between(1, 8), 16 * draw.between(1, 8))
    if kind == "few rows":  # weights are read in place
        T = draw.between(1, 6)
        return T, draw.between(1, 6 // T), *features
    if kind == "one sequence":
        return draw.between(7, 70), 1, *features
    if kind == "wide":  # threads share the columns of a step
        return draw.between(2, 30), draw.between(1, 12), features[0], draw.between(150, 320)
    if kind == "long":  # the backward pass runs in windows
        return draw.between(110, 250), draw.between(9, 20), draw.between(1, 40), draw.between(1, 70)
    if kind == "large":
        return draw.between(5, 24), 64, 16 * draw.between(4, 16), 256
    return draw.between(1, 70), draw.between(1, 40), *features


def results(config: Configuration, backend: str) -> dict[str, list[Tensor]]:
    """The results of a configuration: by name, a tensor of each call; gradients by their leaf's.

    Raises:
        UnsupportedError: the backend declines.
    """
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(config.index)
    dtype = getattr(torch, config.dtype)

    def uniform(*shape: int, most: float = 1.0) -> Tensor:
        # Exact on any processor, unlike a normal distribution or a fused operation.
        return (torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1) * most

    rnn = nn.RNN(
        config.I,
        config.H,
        config.layers,
        nonlinearity=config.nonlinearity,
        bias=config.bias,
        batch_first=config.batch_first,
        bidirectional=config.directions == 2,
        dtype=dtype,
    )
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.copy_(uniform(*parameter.shape, most=config.H**-0.5))
    x = uniform(config.T, config.B, config.I, most=2.0)
    h0 = uniform(config.layers * config.directions, config.B, config.H) if config.h0 else None
    lengths = torch.full((config.B,), config.T)
    if config.differing:
        lengths = torch.randint(1, config.T + 1, (config.B,), generator=generator)
    if config.call == "stream":
        return _streamed(rnnjit.Stream(rnn, config.B, backend=backend), x, h0)
    if config.form == "unbatched":
        x, h0 = x[:, 0], None if h0 is None else h0[:, 0]
    elif config.batch_first:
        x = x.transpose(0, 1).contiguous()
    fast = rnnjit.compile(rnn, backend=backend)
    run = _call(config, fast, x, h0, lengths)
    if config.call == "inference":
        with torch.no_grad():
            (y, h_n), again = run(), run()
        return {"y": [y, again[0]], "h_n": [h_n, again[1]]}
    return _trained(config, run, {"x": x, "h0": h0, **dict(rnn.named_parameters())}, uniform)


def _call(
    config: Configuration, fast: nn.Module, x: Tensor, h0: Tensor | None, lengths: Tensor
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function without arguments that returns the rows of y, and h_n."""
    if not config.form.startswith("packed"):
        return lambda: fast(x, h0)
    is_sorted = config.form == "packed"
    if is_sorted:
        lengths = lengths.sort(descending=True).values

    def run() -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, config.batch_first, enforce_sorted=is_sorted)
        y, h_n = fast(packed, h0)
        assert isinstance(y, PackedSequence)
        return y.data, h_n

    return run


def _streamed(stream: rnnjit.Stream, x: Tensor, h0: Tensor | None) -> dict[str, list[Tensor]]:
    """The frames' outputs, and the state after the last."""
    if h0 is not None:
        stream.state = h0
    return {"y": [stream.step(frame) for frame in x], "h_n": [stream.state]}


def _trained(
    config: Configuration,
    run: Callable[[], tuple[Tensor, Tensor]],
    leaves: dict[str, Tensor | None],
    uniform: Callable[..., Tensor],
) -> dict[str, list[Tensor]]:
    """Outputs and gradients of two calls."""
    wanted: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        if (
            leaf is not None
            and leaf.requires_grad_(not name.startswith(config.frozen)).requires_grad
        ):
            wanted[name] = leaf
    found: dict[str, list[Tensor]] = {name: [] for name in ("y", "h_n", *wanted)}
    weighed: list[Tensor] = []
    for _ in range(2):
        outputs = dict(zip(("y", "h_n"), run(), strict=True))
        sources = [t for name, t in outputs.items() if config.through in (name, "both")]
        weighed = weighed or [uniform(*source.shape) for source in sources]
        grads = torch.autograd.grad(sources, list(wanted.values()), weighed)
        for name, tensor in (*outputs.items(), *zip(wanted, grads, strict=True)):
            found[name].append(tensor.detach())
    return found


def line(found: dict[str, list[Tensor]]) -> str:
    """The record of a configuration's results: the hash of all, the first digits of each one's."""
    each = []
    for tensors in found.values():
        digest = sha256()
        for tensor in tensors:
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        each.append(digest.hexdigest())
    return f"{sha256(''.join(each).encode()).hexdigest()} {''.join(one[:_DIGITS] for one in each)}"


def difference(before: str, now: str, names: Sequence[str]) -> str:
    """The tensors in which two lines differ, or "" if they are the same."""
    if before == now:
        return ""
    old, new = before.split()[1], now.split()[1]
    starts = range(0, max(len(old), len(new)), _DIGITS)
    pairs = [(old[i : i + _DIGITS], new[i : i + _DIGITS]) for i in starts]
    if len(pairs) != len(names) or len(old) != len(new):
        return "other tensors than before"
    differing = [name for name, (a, b) in zip(names, pairs, strict=True) if a != b]
    return ", ".join(differing) or "a tensor whose hash begins as before"


def run_all(backend: str) -> Iterator[tuple[Configuration, list[str], str]]:
    """Each configuration with the names of its tensors and its line; a failure has no names."""
    for config in configurations():
        try:
            found = results(config, backend)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are to be run
            yield config, [], f"raised {type(error).__name__}: {error}"
        else:
            yield config, list(found), line(found)


def host() -> str:
    """The properties of the host that bits depend on."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {vectors}, RNNJIT_ISA={os.environ.get('RNNJIT_ISA', '')}"


def versions() -> dict[str, str]:
    """Versions of the packages that generate the code."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint() -> str:
    """A hash of the configurations: a record of other ones cannot be used."""
    return sha256(repr(configurations()).encode()).hexdigest()


def record(file: Path, backends: Sequence[str]) -> int:
    """Run all and write this host's record; other hosts' of the same configurations are kept."""
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if data.get("configurations") != fingerprint():
        data = {"configurations": fingerprint(), "hosts": {}}
    own = data["hosts"].setdefault(host(), {})
    own["versions"] = versions()
    for backend in backends:
        own[backend] = []
        for config, names, now in run_all(backend):
            if not names:
                print(f"{backend}: {config}: {now}", file=sys.stderr)
                return 1
            own[backend].append(now)
    file.write_text(json.dumps(data, indent=0) + "\n", encoding="utf-8")
    print(f"recorded {COUNT} configurations on {', '.join(backends)} for {host()}")
    return 0


def check(file: Path, backends: Sequence[str]) -> int:
    """Run all, compare with this host's record, and print what differs."""
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    own: dict[str, Any] = data.get("hosts", {}).get(host(), {})
    lacking = [backend for backend in backends if backend not in own]
    if lacking:
        known = "; ".join(data.get("hosts", {})) or "none"
        print(
            f"{file} has no record of {', '.join(lacking)} for this host ({host()}); "
            f"there are records for: {known}",
            file=sys.stderr,
        )
        return 2
    if data["configurations"] != fingerprint():
        print(f"{file} is of other configurations: record it anew", file=sys.stderr)
        return 2
    differing = 0
    for backend in backends:
        for before, (config, names, now) in zip(own[backend], run_all(backend), strict=True):
            what = difference(before, now, names) if names else now
            if what:
                differing += 1
                print(f"{backend}: {what}\n    {config}", flush=True)
    print(f"{differing} of {COUNT * len(backends)} results differ, on {host()}")
    if differing and own["versions"] != versions():
        print(f"recorded with {own['versions']}, run with {versions()}")
    return 1 if differing else 0


def main() -> int:
    """Record or check; the exit status."""
    parser = argparse.ArgumentParser(description="Record or compare the bits of all results.")
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--backend", choices=BACKENDS, help="this one alone")
    wanted = parser.parse_args()
    backends = [wanted.backend] if wanted.backend else list(BACKENDS)
    print(f"rnnjit in {Path(rnnjit.__file__).parent}")
    for name in backends:
        installed = rnnjit.backends().get(name)
        lacking = ["it is not installed"] if installed is None else installed.missing()
        if lacking or installed is None:
            print(f"backend {name}: {'; '.join(lacking)}", file=sys.stderr)
            return 2
        print(f"{name} in {Path(sys.modules[type(installed).__module__].__file__ or '').parent}")
    start = perf_counter()
    status = (record if wanted.action == "record" else check)(wanted.file, backends)
    print(f"{perf_counter() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
