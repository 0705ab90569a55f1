"""`rnnjit.tune`: times the backends on a user's own calls, so that `auto` takes the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.dispatch import registry, tuning_db
from rnnjit.dispatch.blame import from_outside
from rnnjit.dispatch.choice import Verdict, verdict_for_auto, willing
from rnnjit.errors import described
from rnnjit.frontend.compile import compile as compile_rnn
from rnnjit.frontend.reachable import copy_sharing_parameters
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.timing import Timing, interleave, sample
from rnnjit.runtime.torch_private import forget_pre_hooks
from rnnjit.spec import Problem
from rnnjit.tools.observe import Seen, observe
from rnnjit.tools.progress import LONG, Progress, compile_seconds
from rnnjit.tools.selection import selected
from rnnjit.tools.tuned_part import part_of
from rnnjit.tools.tuning_decision import Decision, decide


@dataclass(frozen=True)
class TunedCall:
    """The measurements for one RNN inside a module.

    Attributes:
        name: path of the RNN in the module, "" for the module itself.
        problem: the properties of the call.
        seconds: seconds of one call by backend, the fastest first: the least of the interleaved
            samples; with the backward pass if gradients are needed.
        failures: errors of the backends that accepted the call but raised, by name.
        note: why nothing was measured, or "".
        chosen: the backend that `auto` takes for such calls from now on, "" if none runs it.
        stored: whether this measurement was stored; if not, `auto` chooses as before.
        why: why it was stored, or why not.
    """

    name: str
    problem: Problem
    seconds: dict[str, float]
    failures: dict[str, str]
    note: str = ""
    chosen: str = ""
    stored: bool = False
    why: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.name or 'module'}: not measured: {self.note}"
        parts = [f"{name} {time * 1e3:.3g} ms" for name, time in self.seconds.items()]
        parts += [f"{name} failed ({reason})" for name, reason in self.failures.items()]
        end = f"({self.why})" if self.stored else f"as before; nothing is stored: {self.why}"
        return f"{self.name or 'module'}: {', '.join(parts)}; auto takes {self.chosen} {end}"


@dataclass(frozen=True)
class Tuning:
    """The measurements of `tune`; printing it shows a line for each RNN.

    Attributes:
        calls: one for each RNN that was called.
    """

    calls: tuple[TunedCall, ...]

    def __str__(self) -> str:
        return "\n".join(str(call) for call in self.calls)

    __repr__ = __str__


def tune(
    module: nn.Module,
    *inputs: Any,
    rounds: int = 15,
    backends: Iterable[str] | None = None,
    **named: Any,
) -> Tuning:
    """Time the backends that `auto` may choose on the calls that `module(*inputs)` makes.

    The result is stored on disk, in the directory of compiled kernels. It applies to this host, the
    configuration of the stack, and calls with similar numbers of steps and sequences (rounded up to
    the same powers of two). From then on `auto` takes the best backend that accepts a call, in this
    and other processes, and `explain` shows the times.

    `auto` keeps its own choice unless another backend is faster beyond doubt, in two measurements.
    A measurement that other programs disturbed is not stored: `auto` then chooses as before, and
    the result says why.

    Backends that compile for long come last, after the others are measured and stored, so that
    Ctrl-C loses only them. Progress is shown on stderr: a bar on a terminal, elsewhere one line
    before each long compilation. Where the logger `rnnjit` is enabled for INFO it gets the lines
    instead; above INFO, `logging.getLogger("rnnjit").setLevel("WARNING")`, nothing is shown.

    Calls are timed as `module` makes them: in training or evaluation mode, with a backward pass if
    they need gradients. Neither `module` nor torch's random generators change.

    Args:
        module: an nn.RNN, nn.LSTM, nn.GRU or one of their cells, an `rnnjit.Recurrent`, a compiled
            one, or any module that contains some. Layers of a `Recurrent` that are computed one by
            one, since they draw random numbers and the like, are not measured; a note says so.
        *inputs: the arguments for `module`, as in real use.
        rounds: interleaved samples of each time; fewer than 5 are not stored.
        backends: names of the backends to measure, or None for all. The one that `auto` takes by
            itself is measured too, since the others are compared with it.
        **named: its keyword arguments, such as `reset`: with resets, what is measured is the packed
            batch of the segments between them.

    Raises:
        CellError: a cell in a `Recurrent` computes what no backend could.
        TypeError: `module` is not a module, `rounds` is not an int, or `backends` is no list of
            names.
        ValueError: `module(*inputs)` calls no such module, `rounds` is less than 1, or `backends`
            is empty or names one that is not installed.
        Exception: the error of `module(*inputs)` itself.

    Example:
        >>> measured = tune(torch.nn.RNN(2, 3), torch.zeros(4, 1, 2), rounds=1, backends=["eager"])
        >>> "eager" in measured.calls[0].seconds
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(rounds, int):
        raise TypeError(f"rounds must be an int, got {type(rounds).__name__}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names = selected(backends).keys()
    calls: list[_Call] = []

    def record(seen: Seen) -> None:
        calls.append(_Call(seen, names, rounds))

    observe(module, inputs, record, named)
    if not calls:
        raise ValueError(
            "module(*inputs) calls no nn.RNN, nn.LSTM or nn.GRU, nor a cell of one, that an "
            "installed backend compiles, and no rnnjit.Recurrent: there is nothing to tune"
        )
    with torch.random.fork_rng(), Progress("rnnjit.tune") as progress:
        progress.expect(sum(call.steps() for call in calls))
        for call in calls:
            call.measure(progress, slow=False)
        for call in calls:
            call.measure(progress, slow=True)
        return Tuning(tuple(call.tuned() for call in calls))


class _Call:
    """An observed call, with copies of its arguments, and what was measured of it.

    Args:
        seen: the call.
        names: the backends that the user asked for.
        rounds: samples of each time.
    """

    def __init__(self, seen: Seen, names: Iterable[str], rounds: int) -> None:
        self._name, self._rounds = seen.name, rounds
        self._rnn = copy_sharing_parameters(seen.module)
        forget_pre_hooks(self._rnn)
        self._spec, self._problem, weights, self._unmeasured = part_of(self._rnn, seen)
        self._input, self._hx = _leaf(seen.input), _leaf(seen.hx)
        # Only a Recurrent is called with resets: layers of torch get the segments between them.
        resets = {"reset": seen.reset, "reset_to": seen.reset_to}
        self._options = {k: v for k, v in resets.items() if v is not None}
        self._leaves = [
            tensor
            for tensor in (_data(self._input), *_states(self._hx), *weights)
            if tensor.requires_grad
        ]
        self._accepting = {} if self._unmeasured else self._by_default()
        asked = {*names, *list(self._accepting)[:1]}
        self._pending = {n: b for n, b in self._accepting.items() if n in asked}
        self._seconds = {
            name: compile_seconds(backend, self._spec, self._problem)
            for name, backend in self._accepting.items()
        }
        self._runs: dict[str, Callable[[], object]] = {}
        self._failures: dict[str, str] = {}
        self._times: dict[str, Timing] = {}
        self._decision = Decision(None, "every backend failed")

    def steps(self) -> int:
        """How often `measure` reports progress, both times together."""
        slow = [self._seconds[name] >= LONG for name in self._pending]
        return len(slow) + self._rounds * ((not all(slow)) + any(slow))

    def measure(self, progress: Progress, *, slow: bool) -> None:
        """Measure, with those that were measured before, the backends that compile for long or not.

        What the times allow to conclude is stored at once.
        """
        taking = [name for name in self._pending if (self._seconds[name] >= LONG) is slow]
        for name in taking:
            self._first_call(self._pending.pop(name), progress)
        default = self._default()
        while default is not None and default not in {*self._runs, *self._pending}:
            self._first_call(self._accepting[default], progress)
            default = self._default()
        if not taking or default not in self._runs:
            return
        what = f"timing {self._name}".rstrip()
        self._times = self._interleaved(self._runs, lambda: progress.step(what))
        self._conclude(self._confirmed(decide(self._times, default), default))
        progress.found(str(self.tuned()))

    def _conclude(self, found: Decision) -> None:
        """Store a decision; one that was stored before stays if this one does not tell."""
        before, self._decision = self._decision, found
        if found.order is not None:
            seconds = {name: self._times[name].least for name in found.order}
            tuning_db.keep(self._spec, self._problem, seconds)
            if tuning_db.fetch(self._spec, self._problem) != seconds:
                self._decision = Decision(None, "the cache directory cannot be used")
        elif before.order is not None:
            self._decision = before._replace(why=f"{before.why}; after that: {found.why}")

    def tuned(self) -> TunedCall:
        """What was found."""
        if self._unmeasured:
            return TunedCall(self._name, self._problem, {}, {}, self._unmeasured)
        fastest = sorted(self._times, key=lambda name: self._times[name].least)
        seconds = {name: self._times[name].least for name in fastest}
        chosen = next((backend.name for backend in willing(self._spec, self._problem)), "")
        stored, why = self._decision.order is not None, self._decision.why
        return TunedCall(
            *(self._name, self._problem, seconds, self._failures),
            chosen=chosen,
            stored=stored,
            why=why,
        )

    def _by_default(self) -> dict[str, Backend]:
        """The backends that accept the call, in the order in which `auto` tries them untuned.

        Without `eager` for a `Recurrent`, which named runs the user's loop, and for `auto` the
        reference.
        """
        cells = isinstance(self._rnn, Recurrent)
        found = [
            verdict_for_auto(backend, self._spec, self._problem)
            for backend in registry.backends().values()
            if backend.automatic and not (cells and backend is EAGER)
        ]
        accepting = [each for each in found if not each.reasons]
        return {each.backend.name: each.backend for each in sorted(accepting, key=_defers)}

    def _default(self) -> str | None:
        """The backend that `auto` takes untuned: the first that accepts and has not failed."""
        return next((name for name in self._accepting if name not in self._failures), None)

    def _first_call(self, backend: Backend, progress: Progress) -> None:
        """Call a backend once, which compiles, and see whether it runs."""
        progress.begin(backend, "compiling", self._seconds[backend.name])
        run = self._run(backend)
        try:
            run()
        except Exception as error:
            if from_outside(error):
                raise
            self._failures[backend.name] = described(error)
        else:
            self._runs[backend.name] = run
        progress.step()

    def _confirmed(self, found: Decision, default: str) -> Decision:
        """The decision, if it replaces the default only after a second measurement."""
        if found.order is None or found.order[0] == default:
            return found
        pair = {name: self._runs[name] for name in (default, found.order[0])}
        again = decide(self._interleaved(pair), default)
        if again.order is not None and again.order[0] == found.order[0]:
            return found
        return Decision(None, f"{found.why}, but in a second measurement {again.why}")

    def _interleaved(
        self, runs: Mapping[str, Callable[[], object]], on_round: Callable[[], None] | None = None
    ) -> dict[str, Timing]:
        clock = sample if self._problem.device == "cpu" else _synchronised
        return interleave(runs, rounds=self._rounds, clock=clock, on_round=on_round)

    def _run(self, backend: Backend) -> Callable[[], object]:
        """The call on one backend, with its backward pass if gradients are needed."""
        module = compile_rnn(self._rnn, backend=backend)

        def forward() -> None:
            with torch.no_grad():
                module(self._input, self._hx, **self._options)

        def both() -> None:
            with torch.enable_grad():
                found = module(self._input, self._hx, **self._options)
                y, *h_n = found if type(found) is tuple else (found,)
                every = [_data(y), *(state for each in h_n for state in _states(each))]
                outputs = [output for output in every if output.requires_grad]
                grads = [torch.ones_like(output) for output in outputs]
                torch.autograd.grad(outputs, self._leaves, grads, allow_unused=True)

        return both if self._problem.needs_grad else forward


def _defers(verdict: Verdict) -> bool:
    return bool(verdict.defers)


def _synchronised(call: Callable[[], object], calls: int) -> float:
    """A `Clock` for a device that computes while the host runs on: it waits for the device."""

    def all_calls() -> None:
        for _ in range(calls):
            call()
        torch.accelerator.synchronize()

    torch.accelerator.synchronize()
    return sample(all_calls, 1) / calls


def _data(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def _states(hx: Any) -> tuple[Tensor, ...]:
    """The states of a call; empty if none were given."""
    if hx is None:
        return ()
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _leaf(value: Any) -> Any:
    """A copy whose tensors are leaves, with the same requires_grad."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return PackedSequence(_leaf(value.data), *tuple(value)[1:])
    if isinstance(value, (tuple, list)):
        return type(value)(map(_leaf, value))
    return value.detach().clone().requires_grad_(value.requires_grad)
