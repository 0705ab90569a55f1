"""The kernels' own tanh, against wider arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

import rnnjit

WIDE = {
    torch.float32: np.float64,
    torch.float64: np.longdouble,
}


@pytest.mark.parametrize("backend", ["numba", "tvm"])
@pytest.mark.parametrize("dtype", list(WIDE))
@pytest.mark.parametrize(
    ("low", "high", "allowed"),
    [(1e-6, 0.1, 2.5), (0.1, 0.5, 2.5), (0.55, 1, 1.6), (1, 2, 1.1), (2, 4, 0.7), (4, 21, 0.6)],
)
def test_units_in_the_last_place(backend, dtype, low, high, allowed):
    """Gradients multiply its error by y / (1 - y^2): near 1 it has to be rounded rightly."""
    wide = WIDE[dtype]
    if np.finfo(wide).eps > torch.finfo(dtype).eps / 100:
        pytest.skip("there is no wider arithmetic on this machine")
    if rnnjit.backends()[backend].missing():
        pytest.skip("; ".join(rnnjit.backends()[backend].missing()))
    rnn = nn.RNN(1, 1, bias=False, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    z = low + (high - low) * torch.rand(1, 100_000, 1, generator=generator, dtype=dtype)
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(1)
        y = rnnjit.compile(rnn, backend=backend)(z)[0].numpy()
        negative = rnnjit.compile(rnn, backend=backend)(-z)[0].numpy()
    truth = np.tanh(z.numpy().astype(wide))
    unit = np.spacing(truth.astype(y.dtype)).astype(wide)
    assert float((np.abs(y.astype(wide) - truth) / unit).max()) < allowed
    assert np.array_equal(negative, -y)
