"""Models that hold modules of TorchScript."""

import pytest
import torch
from torch import nn

import rnnjit

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A layer that is scripted with what is before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.norm(x))[0]


class Model(nn.Module):
    """A layer that is compiled behind an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.rnn = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.encoder(x))[0]


def scripted() -> nn.Module:
    return torch.jit.script(Encoder())


def traced() -> nn.Module:
    return torch.jit.trace(Encoder(), X, check_trace=False)


def written() -> nn.Module:
    """An encoder that is TorchScript by its class."""

    class Written(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Encoder()

        @torch.jit.script_method
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    return Written()


@pytest.mark.parametrize("make", [scripted, traced, written])
def test_a_copy_shares_the_tensors_of_a_scripted_module(make):
    torch.manual_seed(0)
    model = Model(make())
    with pytest.warns(rnnjit.RNNJitWarning, match=r"eager: GRU at 'encoder\S*rnn' \(TorchScript"):
        fast = rnnjit.compile(model)
    for own, copied in ((model.parameters, fast.parameters), (model.buffers, fast.buffers)):
        assert all(a is b for a, b in zip(own(), copied(), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    before = [parameter.clone() for parameter in model.encoder.parameters()]
    fast(X).square().sum().backward()
    optimizer.step()
    after = fast.encoder.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    torch.testing.assert_close(fast(X), model(X))
    model.eval()
    assert all(module.training for module in fast.modules())
    assert not any(module.training for module in model.modules())


def test_a_scripted_model_alone_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"Compile the model that was scripted"):
        rnnjit.compile(scripted())


def test_a_scripted_module_of_another_kind_brings_no_warning(recwarn):
    rnnjit.compile(Model(torch.jit.script(nn.Linear(4, 4))))
    assert not [each for each in recwarn if issubclass(each.category, rnnjit.RNNJitWarning)]
