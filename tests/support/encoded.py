"""A data set whose items a recurrent module computes, in whichever process they are asked for."""

import torch
from layer_kinds import states
from torch.utils.data import Dataset


def sequence(index):
    """The raw item `[6, 3]`."""
    return torch.arange(18, dtype=torch.float64).view(6, 3).add(index).sin()


class Encoded(Dataset):
    """Items: the module's output, its gradient by the input, and torch's threads there."""

    def __init__(self, module, length=12):
        self.module = module
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        x = sequence(index).requires_grad_()
        y, last = self.module(x[:, None].expand(-1, 64, -1))
        loss = y.square().sum() + sum(state.sum() for state in states(last))
        (slope,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            y, _ = self.module(x[:, None].expand(-1, 64, -1).contiguous())
        return y[:, 0], slope, torch.get_num_threads()


def two_threads(worker):
    """Workers start with one thread."""
    torch.set_num_threads(2)
