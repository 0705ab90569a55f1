"""A traced cell run by the reference, and the loop over the user's own step that it must equal."""

import torch

from rnnjit import LayerSpec, Rows
from rnnjit.cells import trace_cell
from rnnjit.ir import normal_form
from rnnjit.ir.torch_evaluator import evaluate_tensors
from rnnjit.reference import layer_forward, layer_forward_states


def loop(cell, x, hx, step="forward"):
    """Y `[T, B, H]` and the last states of the user's own step, one step after another."""
    outputs, count = [], len(hx)
    for each in x:
        found = getattr(cell, step)(each, *hx)
        found = found if isinstance(found, tuple) else (found,)
        if isinstance(found[-1], tuple):
            found = (found[0], *found[1])
        outputs.append(found[0])
        hx = tuple(found[len(found) - count :])
    return torch.stack(outputs), hx


def run_traced(cell, x, hx, step="forward", normal=False, **given):
    """The same by the traced cell and the reference, as a front-end puts it together."""
    traced = trace_cell(cell, step, **given)
    T, B = x.shape[:2]
    H = hx[0].shape[-1]
    drawn = [[draw(B, x.dtype, x.device) for draw in traced.draws] for _ in range(T)]
    draws = [torch.cat(each) for each in zip(*drawn, strict=True)]
    rows = x.reshape(T * B, -1)
    columns = [rows] if traced.input_size else [rows[:, :0]]
    inputs = torch.cat([*columns, *traced.row_inputs(cell, rows, draws)], dim=1)
    weights = traced.weights(cell)
    spec, states = traced.spec, tuple(each[None] for each in hx)
    form = normal_form(spec)
    layer = LayerSpec(form.cell if normal else spec, traced.input_size, H, 1, traced.bias)
    assert tuple(each.shape for each in weights) == layer.weight_shapes
    if not normal:
        y, h_n = layer_forward(layer, Rows(T, B, T * B), inputs, states, weights)
        return y.view(T, B, H), tuple(each[0] for each in h_n)
    if form.initial is not None:
        parameters = weights[len(weights) - len(spec.parameters) :] if spec.parameters else ()
        given = [*states, *(each.expand(1, B, H) for each in parameters)]
        states = tuple(each.expand(1, B, H) for each in evaluate_tensors(form.initial, given))
    found = layer_forward_states(layer, Rows(T, B, T * B), inputs, states, weights)
    y = (found.y, *found.states)[form.output] if form.output else found.y
    return y.view(T, B, H), tuple(found.h_n[k][0] for k in form.states)


def gradients(cell, x, hx, run, seed=0, **given):
    """The results of a run, and the gradients of a weighted sum of all of them."""
    torch.manual_seed(seed)
    leaves = [x, *hx, *cell.parameters()]
    y, h_n = run(cell, x, hx, **given)
    generator = torch.Generator().manual_seed(1)
    results = [y, *h_n]
    seeds = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in results]
    wanted = [each for each in leaves if each.requires_grad]
    pairs = [(r, s) for r, s in zip(results, seeds, strict=True) if r.requires_grad]
    outputs, grads = map(list, zip(*pairs, strict=True))
    found = torch.autograd.grad(outputs, wanted, grads, allow_unused=True)
    zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    return results, zeros


def assert_equals_loop(cell, T=4, B=3, values=None, step="forward", tolerance=1e-11, **given):
    """The traced cell equals the user's loop in float64: results, states and all gradients."""
    generator = torch.Generator().manual_seed(2)
    sizes = {"input_size": cell.input_size, "hidden_size": cell.hidden_size, **given}
    count = len(given.get("states") or cell.states)

    def random(*shape):
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if values is not None:
            chosen = torch.randint(len(values), shape, generator=generator)
            tensor = torch.tensor(values, dtype=torch.float64)[chosen]
        return tensor.requires_grad_()

    x = random(T, B, sizes["input_size"])
    hx = tuple(random(B, sizes["hidden_size"]) for _ in range(count))
    expected = gradients(cell, x, hx, loop, step=step)
    for normal in (False, True):
        found = gradients(cell, x, hx, run_traced, step=step, normal=normal, **given)
        for ours, theirs in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_backward_program(spec, tolerance=1e-11):
    """The programs that backends run: a step that saves, and the gradient from what it saved."""
    cell = normal_form(spec).cell
    generator = torch.Generator().manual_seed(4)
    B, H = 3, 5
    inputs = {
        name: torch.randn(B, H, generator=generator, dtype=torch.float64, requires_grad=True)
        for name in cell.step.inputs
    }
    results = evaluate_tensors(cell.step, list(inputs.values()))
    saving = evaluate_tensors(cell.step_saving, list(inputs.values()))
    outputs = ["out", *(f"new_{state}" for state in cell.states)]
    grads = [torch.randn(B, H, generator=generator, dtype=torch.float64) for _ in outputs]
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if r.requires_grad]
    expected = torch.autograd.grad(
        *([each[0] for each in pairs], list(inputs.values()), [each[1] for each in pairs]),
        allow_unused=True,
    )
    given = {
        **inputs,
        **dict(zip(outputs, saving, strict=False)),
        **{f"saved_{k}": each for k, each in enumerate(saving[len(outputs) :])},
        **{f"grad_{name}": grad for name, grad in zip(outputs, grads, strict=True)},
    }
    found = evaluate_tensors(cell.backward, [given[name] for name in cell.backward.inputs])
    for name, ours, theirs in zip(cell.step.inputs, found, expected, strict=True):
        zero = torch.zeros(B, H, dtype=torch.float64)
        pair = [zero if each is None else each for each in (ours, theirs)]
        message = f"the gradient of {name} in {cell.backward}"
        torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance, msg=message)
