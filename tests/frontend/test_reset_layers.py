"""Protects resets by the kernels themselves, against eager on sequences that are cut by hand."""

import pytest
import torch
from covered import covered
from cut_by_hand import cut_by_hand
from layer_kinds import KINDS, as_hx, state_widths, states
from torch import nn
from user_cells import CELLS

import rnnjit
from rnnjit.reference import ReferenceBackend, layer_forward_states

T, B, I, H = 6, 4, 3, 5
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


class Resetting(ReferenceBackend):
    """The reference, which gets cells that reset themselves, and notes the cells that it gets."""

    resets_in_kernel = True

    def __init__(self):
        self.cells = []

    def records_states(self, layer, problem):
        return True

    def forward(self, layer, rows, *given):
        self.cells.append((layer.cell.name, rows.batch_sizes is None))
        return super().forward(layer, rows, *given)

    def forward_states(self, layer, rows, x, hx, weights, keep):
        self.cells.append((layer.cell.name, rows.batch_sizes is None))
        return layer_forward_states(layer, rows, x, hx, weights)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def starts_of(rnn, form):
    """What resets start from, as the layer takes it, and as `cut_by_hand` does."""
    L, D = rnn.num_layers, 1 + rnn.bidirectional
    shape = {"vectors": (L,), "rows": (L, T, B)}.get(form)
    if shape is None:
        zeros = [torch.zeros(L, T, B, D * width).double() for width in state_widths(rnn)]
        return None, zeros, []
    given = [random(*shape, D * width) for width in state_widths(rnn)]
    wide = [g if form == "rows" else g[:, None, None].expand(L, T, B, -1) for g in given]
    return as_hx(given), wide, given


STACKS = {
    "one": {},
    "two directions": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.parametrize(
    ("kind", "stack", "form", "given"),
    covered(["RNN", "LSTM", "GRU"], list(STACKS), ["zeros", "vectors", "rows"], [True, False]),
)
def test_values_and_gradients_are_those_of_sequences_cut_by_hand(kind, stack, form, given):
    torch.manual_seed(0)
    rnn, backend = KINDS[kind](I, H, **STACKS[stack]).double(), Resetting()
    L, D = rnn.num_layers, 1 + rnn.bidirectional
    x, mask = random(T, B, I), torch.rand(T, B) < 0.4
    mask[0, 1] = mask[T - 1, 2] = True
    hx = [random(L * D, B, width) for width in state_widths(rnn)]
    reset_to, wide, starts = starts_of(rnn, form)
    y, last = rnnjit.compile(rnn, backend=backend)(x, as_hx(hx) if given else None, mask, reset_to)
    assert backend.cells == [(f"{rnn.mode.split('_')[-1].lower()} with resets", True)] * L
    zeros = [torch.zeros_like(each) for each in hx]
    expected = cut_by_hand(rnn, x, hx if given else zeros, mask, wide)
    found = (y, *states(last))
    torch.testing.assert_close(found, expected, **CLOSE)
    leaves = [x, *rnn.parameters(), *starts, *(hx if given else ())]
    seeds = [torch.randn_like(each) for each in found]
    ours, theirs = (
        torch.autograd.grad(results, leaves, seeds, allow_unused=True)
        for results in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "form", "layout"),
    covered(["LSTM", "GRU"], ["zeros", "vectors", "rows"], ["batch_first", "unbatched"]),
)
def test_layouts_and_every_state_are_those_of_the_segments(kind, form, layout):
    torch.manual_seed(0)
    rnn = KINDS[kind](I, H, 2, batch_first=layout == "batch_first").double()
    x, mask = torch.randn(T, B, I).double(), torch.rand(T, B) < 0.4
    reset_to = starts_of(rnn, form)[0]
    to = None if reset_to is None else states(reset_to)
    if layout == "batch_first":
        x, mask = x.transpose(0, 1), mask.t()
        to = to and [each.transpose(1, 2) if each.dim() == 4 else each for each in to]
    else:
        x, mask = x[:, 0], mask[:, 0]
        to = to and [each[:, :, 0] if each.dim() == 4 else each for each in to]
    backend, found = Resetting(), []
    for each in (backend, ReferenceBackend()):
        module = rnnjit.compile(rnn, backend=each)
        found.append(module(x, None, mask, to and as_hx(to), return_states=True))
    assert len(backend.cells) == 2
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize(
    ("cell", "form"), covered(["LeakyRNN", "PeepholeLSTM"], ["zeros", "vectors", "rows"])
)
def test_users_cells_are_those_of_their_loop(cell, form):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(CELLS[cell](I, H), num_layers=2, bidirectional=True).double()
    count = len(module.cells[0].states)
    shape = {"vectors": (2, 2 * H), "rows": (2, T, B, 2 * H)}.get(form)
    starts = [random(*shape) for _ in range(count)] if shape else []
    mask, x, found = torch.rand(T, B) < 0.4, random(T, B, I), []
    backend = Resetting()
    for each in (module, rnnjit.compile(module, backend=backend)):
        torch.manual_seed(1)
        y, last, every = each(x, None, mask, as_hx(starts) if starts else None, return_states=True)
        results = [y, *states(last), *(state for layer in every for state in layer)]
        loss = sum((k + 1) * each.sin().sum() for k, each in enumerate(results))
        found.append((results, torch.autograd.grad(loss, (x, *each.parameters(), *starts))))
    assert len(backend.cells) == 2
    torch.testing.assert_close(found[1], found[0], **CLOSE)


@pytest.mark.parametrize("steps", [T, 1])
def test_no_value_is_read_by_the_host(steps):
    """Tensors on meta have no values: to read one is an error."""
    module = rnnjit.compile(nn.LSTM(I, H, 2, dropout=0.1), backend=Resetting()).to("meta")
    x = torch.zeros(steps, B, I, device="meta")
    mask = torch.zeros(steps, B, dtype=torch.bool, device="meta")
    start = tuple(torch.zeros(2, H, device="meta") for _ in range(2))
    for reset_to in (None, start):
        assert module(x, None, mask, reset_to)[0].shape == (steps, B, H)
    module.backend = ReferenceBackend()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        module(x, None, mask)


class Undecided(Resetting):
    """Takes the cells that reset themselves, but does not ask for them."""

    resets_in_kernel = False


class WithoutRows(Resetting):
    """Declines cells with row inputs."""

    def why_not_cell(self, cell):
        return ["row inputs are not supported"] if cell.row_inputs else []


class Forgetting(Resetting):
    """Does not return the states of every step."""

    def records_states(self, layer, problem):
        return False


@pytest.mark.parametrize("backend", [Undecided, WithoutRows, Forgetting, Resetting])
def test_where_sequences_are_cut_instead(backend):
    torch.manual_seed(0)
    backend = backend()
    rnn = KINDS["projected" if type(backend) is Resetting else "GRU"](I, H).double()
    x, mask = torch.randn(T, B, I).double(), torch.rand(T, B) < 0.4
    found = rnnjit.compile(rnn, backend=backend)(x, reset=mask)
    assert [dense for _, dense in backend.cells] == [False]
    torch.testing.assert_close(found, rnnjit.compile(rnn)(x, reset=mask), **CLOSE)


def test_a_result_needs_a_gradient_whatever_the_mask():
    rnn = nn.GRU(I, H).double().requires_grad_(False)
    x, mask, start = torch.randn(T, B, I).double(), torch.zeros(T, B).bool(), random(1, H)
    y, _ = rnnjit.compile(rnn, backend=Resetting())(x, None, mask, start)
    (grad,) = torch.autograd.grad(y.sum(), start)
    assert not grad.any()
    torch.testing.assert_close(y, rnn(x)[0], **CLOSE)
