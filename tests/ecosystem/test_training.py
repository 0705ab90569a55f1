"""Protects training that looks into autograd: penalties, curvature, hooks, offloading."""

import copy

import pytest
import torch
from eager_pair import agree
from layer_kinds import kinds_on_few, states, width
from torch import nn
from torch.autograd.graph import Node, register_multi_grad_hook, save_on_cpu
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit

T, B, I, H = 6, 4, 3, 5


class Critic(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.rnn = make(I, H, 2, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(2 * width(self.rnn), 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


@pytest.fixture(params=kinds_on_few())
def critics(request):
    """Two models that share nothing, so that both can be trained."""
    make, backend = request.param
    torch.manual_seed(0)
    model = Critic(make).double()
    return model, rnnjit.compile(copy.deepcopy(model), backend=backend)


def noise(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_critic_trained_with_a_gradient_penalty(critics):
    """WGAN-GP: the norm of the gradient by interpolated samples is drawn to one."""

    def train(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for step in range(4):
            torch.manual_seed(step)
            real, fake = noise(T, B, I, seed=step), noise(T, B, I, seed=step + 99).mul(0.5)
            mixed = torch.lerp(real, fake, noise(1, B, 1).sigmoid()).requires_grad_()
            (slope,) = torch.autograd.grad(model(mixed).sum(), mixed, create_graph=True)
            penalty = (slope.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().mean()
            loss = model(fake).mean() - model(real).mean() + 10 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return *losses, *(p.detach() for p in model.parameters())

    agree(train, *critics)


def test_conjugate_gradients_on_hessian_vector_products(critics):
    def direction(model):
        model.eval()
        parameters = list(model.parameters())
        loss = model(noise(T, B, I)).square().mean()
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        gradient = torch.cat([g.flatten() for g in grads])

        def product(v):
            found = torch.autograd.grad(gradient @ v, parameters, retain_graph=True)
            return torch.cat([g.flatten() for g in found]) + v

        step, residual = torch.zeros_like(gradient), -gradient.detach()
        towards = residual.clone()
        for _ in range(5):
            curved = product(towards)
            length = residual @ residual / (towards @ curved)
            step, after = step + length * towards, residual - length * curved
            towards, residual = after + after @ after / (residual @ residual) * towards, after
        return gradient, step

    agree(direction, *critics)


def test_offloading_of_packed_input_in_eval_mode(critics):
    eager, fast = critics
    given = noise(T, B, I).requires_grad_()

    def gradients(model):
        model.eval()
        with save_on_cpu():
            y, last = model.rnn(pack_padded_sequence(given, [6, 4, 4, 1]))
        loss = y.data.sin().sum() + sum(state.sum() for state in states(last))
        return torch.autograd.grad(loss, (given, *model.rnn.parameters()))

    agree(gradients, eager, fast)


def test_anomaly_mode_names_the_call_that_went_wrong(critics):
    _, fast = critics
    x = noise(T, B, I).requires_grad_()
    with pytest.warns(UserWarning, match="Anomaly Detection"):
        anomaly = torch.autograd.detect_anomaly()
    with anomaly:
        fast.rnn.weight_hh_l1.data.fill_(float("nan"))
        y, _ = fast.rnn(x)
        with (
            pytest.warns(UserWarning, match="Traceback of forward call") as caught,
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            y.sum().backward()
    assert any("y, _ = fast.rnn(x)" in str(warning.message) for warning in caught)


def test_hooks_of_modules_tensors_and_nodes(critics):
    """All kinds of backward hook at once see what they see in eager, and may change it."""

    def watched(model):
        seen, handles = [], []

        def keep(*gradients):  # torch gives None for the states of nn.LSTM, a tuple of its own
            seen.extend(gradient for gradient in gradients if gradient is not None)

        x = noise(T, B, I).requires_grad_()
        model.eval()
        rnn = model.rnn
        handles.append(
            rnn.register_full_backward_hook(
                lambda m, gi, go: keep(*gi, *go) or (2 * gi[0], *gi[1:])
            )
        )
        handles.append(rnn.register_full_backward_pre_hook(lambda m, go: (go[0] * 3, *go[1:])))
        handles += [
            p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
            for p in rnn.parameters()
        ]
        handles.append(rnn.weight_hh_l0.register_hook(lambda grad: grad.clamp(-0.01, 0.01)))
        handles.append(
            register_multi_grad_hook(list(rnn.parameters()), lambda grads: seen.extend(grads))
        )
        y, last = rnn(x)
        handles += [state.register_hook(lambda grad: grad + 1) for state in states(last)]
        assert isinstance(y.grad_fn, Node)
        handles.append(y.grad_fn.register_prehook(lambda grads: (grads[0] * 0.5, *grads[1:])))
        (y.square().sum() + sum(state.sum() for state in states(last))).backward()
        for handle in handles:
            handle.remove()
        order = sorted(range(len(seen)), key=lambda i: (seen[i].shape, float(seen[i].sum())))
        grads = [p.grad.clone() for p in rnn.parameters()]
        model.zero_grad()
        return x.grad, *grads, *(seen[i] for i in order)

    agree(watched, *critics)


def test_hooks_over_all_modules(critics):
    def watched(model):
        seen = []
        kinds = nn.modules.module
        handles = [
            kinds.register_module_forward_pre_hook(lambda m, a: seen.append(m._get_name())),
            kinds.register_module_forward_hook(lambda m, a, o: seen.append(m._get_name())),
            kinds.register_module_full_backward_hook(lambda m, i, o: seen.append(m._get_name())),
        ]
        try:
            model(noise(T, B, I).requires_grad_()).sum().backward()
        finally:
            for handle in handles:
                handle.remove()
        return seen

    eager, fast = critics
    assert watched(fast) == watched(eager)


def test_an_optimizer_inside_the_backward_pass(critics):
    """The weights are changed while the pass goes on: each after its own gradient."""

    def train(model):
        optimizers = {p: torch.optim.SGD([p], lr=0.05) for p in model.parameters()}

        def step(p):
            optimizers[p].step()
            p.grad = None

        handles = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
        for seed in range(3):
            torch.manual_seed(seed)
            model(noise(T, B, I, seed=seed)).square().sum().backward()
        for handle in handles:
            handle.remove()
        return [p.detach() for p in model.parameters()]

    agree(train, *critics)


def test_saved_tensors_may_be_forbidden(critics):
    eager, fast = critics
    for model in (eager, fast):
        with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
            model(noise(T, B, I)).sum().backward()
            with pytest.raises(RuntimeError, match="not here"), save_on_cpu():
                model(noise(T, B, I))
