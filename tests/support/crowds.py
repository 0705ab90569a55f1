"""Compiled layers whose results are known, and threads that call them at once."""

from __future__ import annotations

import copy
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from typing import NamedTuple

import torch
from processes import SECONDS
from teams import always
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

# Small calls are divided between threads, however late these come.
always()

#: By name: the module's options, and T, B, I, H. Two threads share all but the first; of `columns`
#: they share the hidden features, and meet after each step.
SHAPES = {
    "small": ({}, (6, 3, 5, 20)),
    "slices": ({}, (9, 16, 24, 48)),
    "columns": ({}, (9, 1, 40, 200)),
    "directions": ({"bidirectional": True, "num_layers": 2}, (5, 6, 20, 40)),
    "packed": ({"nonlinearity": "relu"}, (9, 7, 30, 70)),
}


class Known(NamedTuple):
    """A compiled module, its arguments, and what it gives when nothing else runs.

    Attributes:
        rnn: PyTorch's own layer, with the same Parameters.
        alone: y, h_n and the gradients of x and of every weight.
    """

    rnn: nn.RNN
    fast: nn.Module
    x: torch.Tensor
    lengths: list[int] | None
    alone: list[torch.Tensor]

    def forward(self, module=None):
        """Y and h_n without gradients."""
        with torch.no_grad():
            y, h_n = (module or self.fast)(self._input(self.x))
        return [y.data if isinstance(y, PackedSequence) else y, h_n]

    def both(self, module=None):
        """The same and all gradients."""
        return self.backward(*self.graph(module))

    def graph(self, module=None):
        """A leaf x, the module's weights, and the outputs."""
        module = module or self.fast
        x = self.x.clone().requires_grad_()
        y, h_n = module(self._input(x))
        return [x, *module.parameters()], [y.data if isinstance(y, PackedSequence) else y, h_n]

    @staticmethod
    def backward(leaves, outputs):
        """The outputs and their gradients."""
        seeds = [output.detach() for output in outputs]
        grads = torch.autograd.grad(outputs, leaves, seeds)
        return [*(output.detach() for output in outputs), *grads]

    def _input(self, x):
        return x if self.lengths is None else pack_padded_sequence(x, self.lengths)

    def right(self, found, exact=True):
        """Raise unless results are those that the module gives alone."""
        for got, expected in zip(found, self.alone, strict=False):
            if exact:
                # Not compared by torch, whose parallel operators hang in a forked child.
                same = got.numpy().tobytes() == expected.numpy().tobytes()
                assert same, "other bits than alone"
            else:
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def known(backend, name, threads=2, exact=True):
    """A case of `SHAPES`, whose results alone were held against eager in float64.

    If not `exact`, the backend promises no bits, of calls with and without gradients either.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    options, (T, B, I, H) = SHAPES[name]
    rnn = nn.RNN(I, H, **options)
    lengths = sorted(range(T - B + 1, T + 1), reverse=True) if name == "packed" else None
    case = Known(rnn, rnnjit.compile(rnn, backend=backend), torch.randn(T, B, I), lengths, [])
    case.alone.extend(case.both())
    wide = Known(copy.deepcopy(rnn).double(), rnn, case.x.double(), lengths, [])
    for got, eager, truth in zip(case.alone, case.both(rnn), wide.both(wide.rnn), strict=True):
        expected = Expected(eager, truth, largest(errors_of(eager, truth)), largest(truth))
        judge("results alone", "backward", got, expected)
    case.right(case.forward(), exact)
    return case


def at_once(count, work):
    """Run `work(i)` on that many threads, begun together; the process fails if one raises."""
    gate = threading.Barrier(count)
    failures = []

    def run(i):
        gate.wait()
        try:
            work(i)
        except BaseException:  # noqa: BLE001 - all are reported
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"{len(failures)} threads failed, the first: {failures[0]}")


def in_child(work):
    """Run `work()` in a forked child and return its exit status; 0 is all well."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        # The parent's watchdog does not survive the fork.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(SECONDS // 2)
        work()
    except BaseException:  # noqa: BLE001 - all are reported
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def interrupted(seconds, work):
    """Whether Ctrl-C after some time ended `work()`."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0)
    except KeyboardInterrupt:
        # Torch's no_grad, which `work` may use, can be ended between its lines like all of Python.
        torch.set_grad_enabled(True)
        return True
    return False
