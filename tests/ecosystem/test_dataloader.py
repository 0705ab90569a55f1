"""Protects DataLoader workers, forked or spawned, with a module that their parent has run."""

import copy
import sys
from functools import partial

import pytest
import torch
from eager_pair import CLOSE
from encoded import Encoded, sequence, two_threads
from layer_kinds import KINDS, width
from torch import nn
from torch.utils.data import DataLoader

import rnnjit

SECONDS = 60
# A child of a process that has threads warns; these are torch's.
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def pair(kind):
    torch.manual_seed(0)
    rnn = KINDS[kind](3, 8, 2, bidirectional=True).double()
    return rnn, rnnjit.compile(rnn)


def expected_items(rnn):
    return [Encoded(rnn)[index] for index in range(12)]


@pytest.mark.parametrize(
    ("method", "threads", "kind"),
    [
        ("fork", 1, "RNN"),
        ("fork", 2, "LSTM"),
        pytest.param("spawn", 2, "projected", marks=pytest.mark.full),
        pytest.param("fork", 2, "GRU", marks=pytest.mark.full),
    ],
)
def test_items_that_workers_compute(method, threads, kind):
    """A forked worker with two threads must do without the parent's, which it does not have.

    What torch itself shares out between threads hangs there, as eager does on these batches.
    """
    rnn, fast = pair(kind)
    fast(torch.randn(6, 64, 3).double())  # the parent's threads are there before the fork
    loader = DataLoader(
        Encoded(fast),
        batch_size=4,
        num_workers=2,
        multiprocessing_context=method,
        worker_init_fn=two_threads if threads == 2 else None,
        timeout=SECONDS,
    )
    found = [torch.cat(column) for column in zip(*loader, strict=True)]
    expected = [torch.stack(c) for c in list(zip(*expected_items(rnn), strict=True))[:2]]
    torch.testing.assert_close(found[:2], expected, **CLOSE)
    assert found[2].tolist() == [threads] * 12


def test_training_on_what_forked_workers_encode():
    """The encoder is frozen in the workers while the parent trains another compiled layer."""
    rnn, fast = pair("projected")
    torch.manual_seed(1)
    upper = nn.GRU(2 * width(rnn), 5).double()

    def train(encoder, model, workers):
        data = Encoded(encoder)
        loader = DataLoader(
            data,
            batch_size=6,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            persistent_workers=bool(workers),
            timeout=SECONDS if workers else 0,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for y, _, _ in loader:
                optimizer.zero_grad()
                model(y.transpose(0, 1))[1].square().sum().backward()
                optimizer.step()
        return [p.detach() for p in model.parameters()]

    eager = train(rnn, copy.deepcopy(upper), workers=0)
    ours = train(fast, rnnjit.compile(upper), workers=2)
    torch.testing.assert_close(ours, eager, **CLOSE)


def test_a_spawned_worker_sees_weights_shared_with_the_parent():
    """Shared memory, as Hogwild training has it: a step in the parent is seen by the workers."""
    torch.manual_seed(0)
    rnn = nn.RNN(3, 8).double()
    fast = rnnjit.compile(rnn)
    fast.share_memory()
    loader = DataLoader(
        Encoded(fast, length=2),
        num_workers=1,
        multiprocessing_context="spawn",
        persistent_workers=True,
        timeout=SECONDS,
    )
    x = sequence(0)[:, None]
    for _ in range(2):
        first = next(iter(loader))[0][0]
        torch.testing.assert_close(first, rnn(x)[0][:, 0].detach(), **CLOSE)
        with torch.no_grad():
            fast.weight_hh_l0.mul_(-0.5)


def test_a_pool_of_forked_processes():
    rnn, fast = pair("GRU")
    fast(torch.randn(6, 64, 3).double())
    one_thread = partial(torch.set_num_threads, 1)  # as DataLoader has it
    with torch.multiprocessing.get_context("fork").Pool(2, one_thread) as pool:
        found = pool.map_async(Encoded(fast).__getitem__, range(12)).get(SECONDS)
    for got, expected in zip(found, expected_items(rnn), strict=True):
        torch.testing.assert_close(got[:2], expected[:2], **CLOSE)
