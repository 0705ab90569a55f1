"""Protects captum's attributions of a compiled classifier: those of an eager one."""

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from eager_pair import CLOSE
from layer_kinds import kinds_on_few, width
from torch import nn

import rnnjit

B, T, I, CLASSES = 3, 6, 4, 5


class Classifier(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.embedding = nn.Embedding(10, I)
        self.rnn = make(I, 7, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.head = nn.Linear(2 * width(self.rnn), CLASSES)

    def forward(self, x):
        vectors = x if x.is_floating_point() else self.embedding(x)
        return self.head(self.rnn(vectors)[0].mean(dim=1))


@pytest.fixture(params=kinds_on_few())
def models(request):
    make, backend = request.param
    torch.manual_seed(0)
    model = Classifier(make).double().eval()
    return model, rnnjit.compile(model, backend=backend)


X = torch.randn(B, T, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WORDS = torch.arange(B * T).view(B, T) % 10
BASELINE = torch.zeros_like(X)
TARGET = torch.tensor([0, 4, 2])

METHODS = {
    "saliency": lambda m: Saliency(m).attribute(X, target=TARGET),
    "input x gradient": lambda m: InputXGradient(m).attribute(X, target=TARGET),
    "integrated gradients": lambda m: IntegratedGradients(m).attribute(
        X, BASELINE, target=TARGET, n_steps=12, internal_batch_size=9
    ),
    "gradient shap": lambda m: GradientShap(m).attribute(
        X, torch.cat([BASELINE, BASELINE + 0.5]), target=TARGET, n_samples=3
    ),
    "smoothed": lambda m: NoiseTunnel(Saliency(m)).attribute(X, target=TARGET, nt_samples=3),
    "ablation": lambda m: FeatureAblation(m).attribute(X, target=TARGET),
    "occlusion": lambda m: Occlusion(m).attribute(X, (2, I), target=TARGET),
    # captum takes no nested tuples, such as what nn.LSTM returns.
    "activations of a layer": lambda m: LayerActivation(
        m, m.head if m.rnn.mode == "LSTM" else m.rnn
    ).attribute(X),
    "gradients at the layer": lambda m: LayerGradientXActivation(m, m.rnn).attribute(
        X, target=TARGET, attribute_to_layer_input=True
    ),
    "words": lambda m: LayerIntegratedGradients(m, m.embedding).attribute(
        WORDS, torch.zeros_like(WORDS), target=TARGET, n_steps=12
    ),
}


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("attribute", METHODS.values(), ids=METHODS)
def test_attributions(models, attribute):
    found = []
    for model in models:
        torch.manual_seed(2)
        np.random.seed(2)
        found.append(attribute(model))
    torch.testing.assert_close(found[1], found[0], **CLOSE)
    first = found[1][0] if isinstance(found[1], tuple) else found[1]
    assert first.abs().max() > 0


def test_integrated_gradients_are_complete(models):
    """They add up to what the output changes from the baseline to the input."""
    _, fast = models
    found, delta = IntegratedGradients(fast).attribute(
        X, BASELINE, target=TARGET, n_steps=100, return_convergence_delta=True
    )
    change = (fast(X) - fast(BASELINE))[torch.arange(B), TARGET]
    torch.testing.assert_close(found.sum((1, 2)), change, rtol=1e-5, atol=1e-6)
    assert delta.abs().max() < 1e-5
    assert not fast.training
