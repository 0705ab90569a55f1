"""Protects training that looks into autograd: penalties, curvature, hooks, offloading."""

import copy
from functools import partial

import pytest
import torch
from eager_pair import FEW, agree
from torch import nn
from torch.autograd.graph import Node, register_multi_grad_hook, save_on_cpu
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit

T, B, I, H = 6, 4, 3, 5


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(I, H, 2, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(2 * H, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


@pytest.fixture(params=FEW, ids=lambda b: b.name)
def compiled(request):
    return partial(rnnjit.compile, backend=request.param)


def critics(compiled):
    """Two models that share nothing, so that both can be trained."""
    torch.manual_seed(0)
    model = Critic().double()
    return model, compiled(copy.deepcopy(model))


def noise(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_critic_trained_with_a_gradient_penalty(compiled):
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

    agree(train, *critics(compiled))


def test_conjugate_gradients_on_hessian_vector_products(compiled):
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

    agree(direction, *critics(compiled))


def test_offloading_of_packed_input_in_eval_mode(compiled):
    eager, fast = critics(compiled)
    given = noise(T, B, I).requires_grad_()

    def gradients(model):
        model.eval()
        with save_on_cpu():
            y, h = model.rnn(pack_padded_sequence(given, [6, 4, 4, 1]))
        return torch.autograd.grad(y.data.sin().sum() + h.sum(), (given, *model.rnn.parameters()))

    agree(gradients, eager, fast)


def test_anomaly_mode_names_the_call_that_went_wrong(compiled):
    _, fast = critics(compiled)
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


def test_hooks_of_modules_tensors_and_nodes(compiled):
    """All kinds of backward hook at once see what they see in eager, and may change it."""

    def watched(model):
        seen, handles = [], []
        x = noise(T, B, I).requires_grad_()
        model.eval()
        rnn = model.rnn
        handles.append(
            rnn.register_full_backward_hook(
                lambda m, gi, go: seen.extend((*gi, *go)) or (2 * gi[0],)
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
        y, h = rnn(x)
        handles.append(h.register_hook(lambda grad: grad + 1))
        assert isinstance(y.grad_fn, Node)
        handles.append(y.grad_fn.register_prehook(lambda grads: (grads[0] * 0.5, *grads[1:])))
        (y.square().sum() + h.sum()).backward()
        for handle in handles:
            handle.remove()
        order = sorted(range(len(seen)), key=lambda i: (seen[i].shape, float(seen[i].sum())))
        grads = [p.grad.clone() for p in rnn.parameters()]
        model.zero_grad()
        return x.grad, *grads, *(seen[i] for i in order)

    agree(watched, *critics(compiled))


def test_hooks_over_all_modules(compiled):
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

    eager, fast = critics(compiled)
    assert watched(fast) == watched(eager)


def test_an_optimizer_inside_the_backward_pass(compiled):
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

    agree(train, *critics(compiled))


def test_saved_tensors_may_be_forbidden(compiled):
    eager, fast = critics(compiled)
    for model in (eager, fast):
        with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
            model(noise(T, B, I)).sum().backward()
            with pytest.raises(RuntimeError, match="not here"), save_on_cpu():
                model(noise(T, B, I))
