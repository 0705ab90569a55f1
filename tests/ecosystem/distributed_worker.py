"""One of two processes that train together, started by test_distributed.py.

    python distributed_worker.py WAY KIND RANK STORE RESULT

trains a compiled `trained_pair.Tagger` with layers of one of `layer_kinds.KINDS`, in the way that
WAY names, on this rank's half of every batch, and writes its gradients and what it ended in to
RESULT, a file. STORE is a file by which the processes meet.
"""

import contextlib
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from layer_kinds import KINDS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from trained_pair import Tagger, batch, loss_of

import rnnjit

STEPS = 3


def halves(step):
    """The sequences of a batch that are this rank's."""
    return batch(step).chunk(2, dim=1)[dist.get_rank()]


def whole(tensor):
    """A copy of a tensor with all ranks' shards."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def named(model):
    return [(name.removeprefix("module."), p) for name, p in model.named_parameters()]


def train(model, accumulate=False):
    """The gradients of every step and the parameters at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x = halves(step)
        first, second = x.chunk(2, dim=1)
        if accumulate:
            with model.no_sync():
                (loss_of(model, first) / 2).backward()
            (loss_of(model, second) / 2).backward()
        else:
            loss_of(model, x).backward()
        gradients.append({name: whole(p.grad) for name, p in named(model)})
        optimizer.step()
    return gradients, {name: whole(p) for name, p in named(model)}, ranges_of(model)


def ranges_of(model):
    """Who computes the layers: torch's profiler has their names."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model(halves(0))
    return sorted(e.key for e in found.key_averages() if e.key.startswith("rnnjit: "))


def compiled(make):
    torch.manual_seed(0)
    return rnnjit.compile(Tagger(make).double())


def by_ddp(make):
    """Data-parallel with each of its options."""
    options = {
        "plain": {},
        "static graph": {"static_graph": True},
        "bucket views": {"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-3},
        "unused parameters": {"find_unused_parameters": True},
    }
    results = {n: train(DistributedDataParallel(compiled(make), **o)) for n, o in options.items()}
    results["accumulated"] = train(DistributedDataParallel(compiled(make)), accumulate=True)
    return results


def by_fsdp(make):
    """Sharded parameters: as one group, by module, and kept whole from forward to backward."""
    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for name, keep, inner in (
        ("whole", True, False),
        ("modules", True, True),
        ("kept", False, True),
    ):
        model = compiled(make)
        if inner:
            fully_shard(model.rnn, mesh=mesh, reshard_after_forward=keep)
        fully_shard(model, mesh=mesh, reshard_after_forward=keep)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        results[name] = train(model)
    return results


def main(way, kind, rank, store, result):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{store}", timedelta(seconds=60), world_size=2, rank=int(rank)
    )
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        torch.save({"ddp": by_ddp, "fsdp": by_fsdp}[way](KINDS[kind]), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
