"""Protects uses of torch.func over a model with a compiled layer: equal to eager's."""

import pytest
import torch
from eager_pair import CLOSE, agree
from layer_kinds import initial, kinds_on_few, states, width
from torch import nn
from torch.func import (
    functional_call,
    functionalize,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map

import rnnjit

# Forward-mode AD makes torch import decompositions of its own that warn.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
T, B, I, H = 4, 5, 3, 6


class Classifier(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.rnn = make(I, H, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width(self.rnn), 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(dim=1))


@pytest.fixture(params=kinds_on_few())
def models(request):
    make, backend = request.param
    torch.manual_seed(0)
    model = Classifier(make).double()
    return model, rnnjit.compile(model, backend=backend)


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(B, T, I, dtype=torch.float64), torch.randint(4, (B,))


def parameters_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def loss_of(model, weights, x, label):
    return F.cross_entropy(functional_call(model, weights, (x,)), label)


def test_clipped_per_sample_gradients_as_private_training_takes_them(models, data):
    x, labels = data

    def clipped(model):
        def loss(weights, sample, label):
            return loss_of(model, weights, sample[None], label[None])

        each = vmap(grad_and_value(loss), (None, 0, 0))(parameters_of(model), x, labels)
        grads, losses = each
        norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()
        factors = (0.5 / norms).clamp(max=1)
        sums = [torch.einsum("b,b...->...", factors, g) for g in grads.values()]
        return *sums, norms, losses

    def one_by_one(model):
        sums, norms, losses = None, [], []
        for sample, label in zip(x, labels, strict=True):
            losses.append(F.cross_entropy(model(sample[None]), label[None]))
            grads = torch.autograd.grad(losses[-1], list(model.parameters()))
            norms.append(torch.cat([g.flatten() for g in grads]).norm())
            grads = [g * (0.5 / norms[-1]).clamp(max=1) for g in grads]
            sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
        return *sums, torch.stack(norms), torch.stack(losses)

    eager, fast = models
    torch.testing.assert_close(clipped(fast), one_by_one(eager), **CLOSE)


def test_a_step_of_meta_learning_differentiates_through_training(models, data):
    """MAML: the gradient, after two inner steps, of the loss by the weights before them."""
    x, labels = data

    def meta_gradient(model):
        def outer(weights):
            for _ in range(2):
                grads = grad(lambda w: loss_of(model, w, x[:3], labels[:3]))(weights)
                weights = {name: w - 0.1 * grads[name] for name, w in weights.items()}
            return loss_of(model, weights, x[3:], labels[3:])

        return list(grad(outer)(parameters_of(model)).values())

    agree(meta_gradient, *models)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning")  # torch's own
@pytest.mark.full
def test_a_gauss_newton_product_of_forward_and_reverse_mode(models, data):
    x, _ = data

    def product(model):
        weights = parameters_of(model)
        direction = {name: torch.sin(1 + w) for name, w in weights.items()}

        def logits(w):
            return functional_call(model, w, (x,))

        out, tangent = jvp(logits, (weights,), (direction,))
        (back,) = vjp(logits, weights)[1](tangent)
        _, linear = linearize(logits, weights)
        torch.testing.assert_close(linear(direction), tangent)
        return out, tangent, *back.values()

    agree(product, *models)


def test_forward_over_reverse_and_reverse_over_reverse_hessians(models, data):
    x, labels = data

    def hessians(model):
        def loss(v):
            return loss_of(model, parameters_of(model), v, labels[:1])

        one = x[:1, :2]
        over_reverse = hessian(loss)(one)
        torch.testing.assert_close(over_reverse, jacrev(jacrev(loss))(one))
        return (over_reverse,)

    agree(hessians, *models)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_jacobians_in_chunks(models, data, chunk):
    x, _ = data
    eager, fast = models
    expected = torch.autograd.functional.jacobian(eager, x)
    torch.testing.assert_close(jacrev(fast, chunk_size=chunk)(x), expected, **CLOSE)
    each = vmap(jacfwd(lambda v: fast(v[None])[0]), chunk_size=chunk)(x)
    torch.testing.assert_close(each, expected.diagonal(dim1=0, dim2=2).movedim(-1, 0), **CLOSE)


@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_vmap_over_any_dimension_and_twice(models, in_dim):
    eager, fast = models
    torch.manual_seed(2)
    many = torch.randn(2, 3, B, T, I, dtype=torch.float64)
    expected = torch.stack([torch.stack([eager(x) for x in row]) for row in many])
    torch.testing.assert_close(vmap(fast, in_dim)(many[0].movedim(0, in_dim)), expected[0], **CLOSE)
    torch.testing.assert_close(vmap(vmap(fast))(many), expected, **CLOSE)


def test_vmap_over_initial_states_only(models, data):
    eager, fast = models
    given = [initial(eager.rnn, B, seed=seed) for seed in range(3)]
    found = vmap(fast.rnn, (None, 0))(data[0], tree_map(lambda *each: torch.stack(each), *given))
    for index, hx in enumerate(given):
        each = tree_map(lambda tensor, index=index: tensor[index], found)
        torch.testing.assert_close(each, eager.rnn(data[0], hx), **CLOSE)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_dropout_under_vmap_draws_as_was_asked(models, randomness):
    _, fast = models
    fast.rnn.dropout = 0.5
    x = torch.ones(6, 1, T, I, dtype=torch.float64)
    found = vmap(fast, randomness=randomness)(x)
    assert torch.allclose(found[0], found[1]) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(fast)(x)


def test_functionalized(models, data):
    agree(lambda model: (functionalize(model)(data[0]),), *models)


def test_gradients_of_packed_input_by_the_weights(models):
    """Vmap cannot look into a PackedSequence, but a gradient by the weights may be transformed."""
    eager, fast = (model.rnn for model in models)
    torch.manual_seed(3)
    given = pack_padded_sequence(torch.randn(B, T, I).double(), [4, 4, 3, 2, 1], batch_first=True)

    def loss(y, last):
        return y.data.square().sum() + sum(state.sin().sum() for state in states(last))

    found = grad(lambda w: loss(*functional_call(fast, w, (given,))))(parameters_of(fast))
    expected = torch.autograd.grad(loss(*eager(given)), list(eager.parameters()))
    torch.testing.assert_close(list(found.values()), list(expected), **CLOSE)


def test_swapped_parameters_of_a_whole_model_and_tied_ones(models, data):
    x, _ = data
    others = {name: w * 0.5 for name, w in parameters_of(models[1]).items()}
    del others["rnn.bias_hh_l0"]
    kept = parameters_of(models[1])

    def swapped(model):
        return functional_call(model, others, (x,)), functional_call(model, [others, {}], (x,))

    agree(swapped, *models)
    torch.testing.assert_close(parameters_of(models[1]), kept, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        functional_call(models[1], {"rnn.nonesuch": x}, (x,), strict=True)


def test_explain_names_the_transform(models, data):
    seen = []

    def watched(v):
        seen.append(rnnjit.explain(models[1], v).calls[0])
        return models[1](v).sum()

    grad(watched)(data[0])
    assert seen[0].chosen == "torch"
    assert "a torch.func transform is active" in str(seen[0])
