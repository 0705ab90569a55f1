"""Protects cells that reset their own states, against eager and loops cut by hand, in float64."""

import pytest
import torch
from covered import in_turn

from rnnjit.ir import LSTM, CellSpec, normal_form, with_resets
from rnnjit.ir.builder import relu, tanh
from rnnjit.ir.torch_evaluator import evaluate_tensors

H = 3


def leaky(zx, zh, v, share, noise):
    v = (1.0 - share) * v + share * (zx[0] + zh[0]) + noise
    return relu(v), v


LEAKY = CellSpec.trace(
    leaky,
    name="leaky",
    gates=["z"],
    states=["v"],
    parameters=["share"],
    operand=lambda v, share: tanh(share * v),
    row_inputs=["noise"],
)
STARTS = ("zeros", "vectors", "rows")


@pytest.mark.parametrize(("name", "starts"), in_turn(["leaky", "lstm"], STARTS))
def test_a_step_hands_on_the_states_that_the_mask_says(name, starts):
    cell = {"leaky": LEAKY, "lstm": LSTM}[name]
    torch.manual_seed(0)
    count, S = len(cell.program.inputs), len(cell.states)
    given = dict(zip(cell.program.inputs, torch.randn(count, 4, H).double(), strict=True))
    mask = torch.tensor([True, False, True, False])[:, None].double().expand(4, H)
    anew = [torch.randn(4, H).double() for _ in cell.states]
    anew = [torch.zeros(4, H).double()] * S if starts == "zeros" else anew
    own = with_resets(cell, starts, every=True)
    extra = dict(zip(own.row_inputs[len(cell.row_inputs) :], [mask, *anew], strict=False))
    extra |= dict(zip(own.parameters[len(cell.parameters) :], anew, strict=False))
    extra |= dict.fromkeys(own.states[S:], torch.full((4, H), float("nan")))
    values = [{**given, **extra}[each] for each in own.program.inputs]
    out, *states = evaluate_tensors(own.program, values)
    expected_out, *expected = evaluate_tensors(cell.program, list(given.values()))
    assert torch.equal(out, expected_out)
    for handed, reached, state, start in zip(states[:S], states[S:], expected, anew, strict=True):
        assert torch.equal(reached, state)
        assert torch.equal(handed[::2], start[::2])
        assert torch.equal(handed[1::2], state[1::2])


def test_its_shape():
    own = with_resets(LEAKY, "rows", every=True)
    assert own.states == ("v", "reached_0_")
    assert own.row_inputs == ("noise", "reset_", "start_0_")
    assert with_resets(LEAKY, "vectors").parameters == ("share", "start_0_")
    assert with_resets(LSTM).row_inputs == ("reset_",)
    form = normal_form(with_resets(LSTM))
    assert (form.cell.states, form.states, form.output) == (("h", "c", "output_"), (0, 1), 2)
    form = normal_form(with_resets(LSTM, every=True))
    assert (form.states, form.output) == ((0, 1, 2, 3), 2)


def test_names_that_the_cell_has_taken():
    def step(zx, zh, reset_, start_0_):
        h = tanh(zx[0] + start_0_)
        return h, h

    cell = CellSpec.trace(
        step, name="c", gates="z", states=["reset_"], row_inputs=["start_0_"], parameters=()
    )
    assert with_resets(cell, "rows").row_inputs == ("start_0_", "reset__", "start_0__")
