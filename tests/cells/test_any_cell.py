"""Protects traced cells that nobody thought of: random steps against their own loop."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced_loops import assert_backward_program, assert_equals_loop

from rnnjit.cells import Cell, trace_cell

UNARY = (
    *(torch.tanh, torch.sigmoid, torch.neg, torch.relu, torch.abs, F.softplus, F.silu, F.elu),
    *(F.hardtanh, F.leaky_relu, torch.square, torch.detach, torch.sin, lambda x: 1 - x),
    *(lambda x: torch.log1p(x * x), lambda x: torch.sqrt(x**2 + 1), lambda x: x.clamp(-1, 0.5)),
    *(lambda x: (x > 0.1).to(x.dtype), lambda x: 0.3 * x + 0.1, lambda x: torch.exp(-x.abs())),
)
BINARY = (
    *(torch.add, torch.sub, torch.mul, torch.minimum, torch.maximum),
    *(lambda x, y: x / (1 + y * y), lambda x, y: torch.where(x < y, x, 2 * y)),
    *(lambda x, y: torch.where((x > 0) & ~(y > 0.2), y, 0.5), lambda x, y: torch.lerp(x, y, 0.7)),
)
#: The number in `UNARY` of what states do not have, and parameters and x do.
SINE = UNARY.index(torch.sin)


class Any(Cell):
    """A step that is drawn once: a list of operators on the values before them."""

    def __init__(self, seed):
        dice = random.Random(seed)
        self_states = ("h", "c")[: dice.choice([1, 2])]
        super().__init__(
            *(dice.choice([1, 2, 4]), dice.choice([2, 3, 4]), dice.choice([1, 2, 3]), self_states),
            bias=dice.random() < 0.7,
            dtype=torch.float64,
        )
        H = self.hidden_size
        self.a, self.b = (nn.Parameter(torch.randn(H, dtype=torch.float64)) for _ in "ab")
        self.matrix = nn.Parameter(torch.randn(self.gates, H, dtype=torch.float64))
        self.split, self.operand = dice.choice(["chunk", "view", "slices"]), dice.choice("hrda")
        self.norm = dice.random() < 0.2
        self.noise = dice.random() < 0.3
        self.steps = tuple(
            (dice.random() < 0.45, dice.random() < 0.1, *(dice.randrange(10**6) for _ in "opq"))
            for _ in range(dice.randrange(3, 16))
        )

    def blocks(self, z):
        G, H = self.gates, self.hidden_size
        if self.split == "chunk":
            return z.chunk(G, -1)
        if self.split == "view":
            return z.view(-1, G, H).unbind(1)
        return [z[:, g * H : (g + 1) * H] for g in range(G)]

    def forward(self, x, *states):
        h = states[-1]
        operand = {"h": states[0], "r": torch.relu(h), "d": h, "a": h * self.a}[self.operand]
        zx, zh = self.ih(x), self.hh(operand)
        if self.norm:
            zx = F.layer_norm(zx, zx.shape[1:])
        values = [*states, *self.blocks(zx + zh), *self.blocks(zh), *self.blocks(zx)]
        on_states = [True] * (len(states) + 2 * self.gates) + [False] * self.gates
        values += [self.a, torch.exp(self.b), *self.matrix, x[:, :1], torch.tanh(zx[:, -1:])]
        if self.noise:
            values.append(0.1 * torch.randn_like(h) * self.b)
        on_states += [False] * (len(values) - len(on_states))
        for unary, stopped, operator, one, other in self.steps:
            p, q = one % len(values), other % len(values)
            state = on_states[p] or (on_states[q] and not unary)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not stopped):
                if unary:
                    number = operator % len(UNARY)
                    number = 0 if state and number == SINE else number
                    values.append(UNARY[number](values[p]))
                else:
                    values.append(BINARY[operator % len(BINARY)](values[p], values[q]))
            on_states.append(state)
        new = [torch.tanh(values[-1 - k]) + 0.1 * each for k, each in enumerate(states)]
        return (values[-1] + values[-2] * new[0], *new)


@pytest.mark.parametrize(
    "seeds",
    [range(20), *(pytest.param(range(s, s + 60), marks=pytest.mark.full) for s in (20, 80, 140))],
    ids=str,
)
def test_a_random_step_is_its_own_loop(seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        cell = Any(seed)
        try:
            assert_equals_loop(cell, T=3, B=3, tolerance=1e-9)
            assert_backward_program(trace_cell(cell).spec, tolerance=1e-9)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
