"""A model of two recurrent modules, and what a few steps of training it give."""

from contextlib import nullcontext

import torch
from eager_pair import CLOSE
from layer_kinds import state_widths, states, width
from torch import nn

T, B, I, H = 5, 4, 3, 6
STEPS = 2


class Model(nn.Module):
    def __init__(self, make=nn.RNN):
        super().__init__()
        self.rnn = make(I, H, 2, bidirectional=True)
        self.other = make(2 * width(self.rnn), H)
        self.norm = nn.BatchNorm1d(sum(state_widths(self.other)))

    def forward(self, x):
        y, _ = self.rnn(x)
        y, last = self.other(y)
        return self.norm(torch.cat([state[-1] for state in states(last)], dim=1)), y


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(T, B, I, dtype=torch.float64, generator=generator)


def train(model, between=lambda model: None, around=nullcontext):
    """What a few steps of training give: outputs, gradients and the state that they end in."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    seen = []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        with around():
            last, y = model(batch(step))
        (last.square().sum() + y.sin().sum()).backward()
        between(model)
        seen += [
            last.detach(),
            y.detach(),
            *(g.clone() for p in model.parameters() if (g := p.grad) is not None),
        ]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return *seen, *model(batch(9)), *(t.detach() for t in model.state_dict().values())


def assert_trains_alike(models, **how):
    eager, fast = models
    assert list(fast.state_dict()) == list(eager.state_dict())
    torch.testing.assert_close(train(fast, **how), train(eager, **how), **CLOSE)


class Tagger(nn.Module):
    """Gives every step of every sequence three numbers."""

    def __init__(self, make=nn.RNN):
        super().__init__()
        self.rnn = make(I, H, 2, bidirectional=True)
        self.head = nn.Linear(2 * width(self.rnn), 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0]).tanh()


def loss_of(model, x):
    """A mean over the batch, of which halves of equal size can be averaged."""
    return (model(x) - x.cos()).square().mean()
