"""Protects the kit's strength on int8 matrices: what is wrong with integers or scales must fail.

The quick subset must catch every defect.
"""

from unittest import mock

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from rnnjit import reference
from rnnjit.ir import LSTM
from rnnjit.quantization import Product, quantize_rows
from rnnjit.testing import CASES, CHECKS, Case, RecomputeBackend, run
from rnnjit.testing.calls import build, forward
from rnnjit.testing.int8 import MARGIN
from rnnjit.testing.suite import pairs

QUICK = [pair for pair in pairs(quick=True) if pair.case.quantized]


class Healthy(RecomputeBackend):
    """Computes products by `product`, and the layer of `layer`."""

    name = "int8"
    product = Product

    def layer(self, layer, weights):
        return weights

    def forward(self, layer, rows, x, hx, weights, keep):
        own = list(weights)
        if layer.quantized:
            count = layer.weights_per_direction
            for d in range(layer.num_directions):
                part = slice(d * count, (d + 1) * count)
                own[part] = self.layer(layer, own[part])
        with mock.patch.object(reference, "Product", self.product):
            return super().forward(layer, rows, x, hx, own, keep)


class Own(Product):
    """Products with `rows` in the place of `quantize_rows`, and `sums` in that of exact sums."""

    def __init__(self, values, scale, bias=None):
        super().__init__(values, scale, bias)
        self.values, self.scale, self.bias = values.double(), scale, bias

    def rows(self, x):
        return quantize_rows(x)

    def sums(self, numbers):
        return numbers @ self.values.t()

    def __call__(self, x):
        numbers, scale = self.rows(x)
        found = self.sums(numbers.double()).to(x.dtype) * (scale[:, None] * self.scale)
        return found if self.bias is None else self.bias + found


class OneScaleForAllRows(Own):
    """Quantizes activations by the largest of all rows, as torch's dynamic modules do."""

    def rows(self, x):
        largest = x.nan_to_num(0, 0, 0).abs().max()
        numbers = (x * (127 / largest)).nan_to_num(0).round().clamp(-127, 127)
        return numbers, torch.where(x.isfinite().all(1), largest / 127, torch.nan)


class ScaleOfTheRowBefore(Own):
    def rows(self, x):
        numbers, scale = quantize_rows(x)
        return numbers, scale.roll(1)


class ScaleOfTheFirstRow(Own):
    """Takes the scale of a matrix's first row for all its rows."""

    def __init__(self, values, scale, bias=None):
        super().__init__(values, scale[:1].expand(len(scale)), bias)


class _Rounded(Own):
    def rows(self, x):
        factor = 127 / x.abs().amax(1)
        numbers = self.rounded(x * factor[:, None]).clamp(-127, 127)
        return numbers.nan_to_num(0), quantize_rows(x)[1]


class HalfToEven(_Rounded):
    def rounded(self, numbers):
        return numbers.round()


class HalfUp(_Rounded):
    """Rounds half up: wrong in the middle of two integers alone."""

    def rounded(self, numbers):
        return (numbers + 0.5).floor()


class HalfAwayFromZero(_Rounded):
    def rounded(self, numbers):
        return (numbers.abs() + 0.5).floor() * numbers.sign()


class Truncating(_Rounded):
    def rounded(self, numbers):
        return numbers.trunc()


class NotRounded(_Rounded):
    """Multiplies float activations with the int8 matrix."""

    def rounded(self, numbers):
        return numbers


class Unsigned(Own):
    """Multiplies numbers from 1 to 255, as vpdpbusd does, and takes off what that adds."""

    def sums(self, numbers):
        return self.of_unsigned(numbers + 128) - 128 * self.values.sum(1)

    def of_unsigned(self, numbers):
        return numbers @ self.values.t()


class SumsLeftOut(Unsigned):
    def sums(self, numbers):
        return self.of_unsigned(numbers + 128)


class Saturating(Unsigned):
    """Adds pairs of products in 16 bits, which saturate, as vpmaddubsw does."""

    def of_unsigned(self, numbers):
        terms = numbers[:, None] * self.values
        pairs = torch.nn.functional.pad(terms, (0, terms.shape[2] % 2)).unflatten(2, (-1, 2))
        return pairs.sum(3).clamp(-(2**15), 2**15 - 1).sum(2)


class NaNHasAScale(Own):
    """Leaves what is not finite out of a row."""

    def rows(self, x):
        return quantize_rows(x.nan_to_num(0, 0, 0))


class GatesSwapped(Healthy):
    """Takes the first two gates' matrices, scales and biases for each other's."""

    def layer(self, layer, weights):
        gates, H = len(layer.cell.gates), layer.hidden_size
        if gates == 1:
            return weights
        order = torch.cat([torch.arange(H, 2 * H), torch.arange(H), torch.arange(2 * H, gates * H)])
        return [w[order] if len(w) == gates * H else w for w in weights]


class GateScalesSwapped(Healthy):
    """Takes the scales of w_ih for those of w_hh, and the reverse."""

    def layer(self, layer, weights):
        own, matrices = list(weights), 3 if layer.proj_size else 2
        first = len(own) - 2 * matrices
        own[first], own[first + 1] = own[first + 1], own[first]
        return own


class NotProjected(Healthy):
    """Keeps the first columns of the output in the place of its projection."""

    def layer(self, layer, weights):
        own = list(weights)
        if layer.proj_size:
            place = 4 if layer.bias else 2
            own[place] = 127 * torch.eye(*own[place].shape, dtype=torch.int8, device="cpu")
            own[-4] = torch.full_like(own[-4], 1 / 127)  # three scales, three sums
        return own


class ScalesOfOneDirection(Healthy):
    """Takes the scales of the first direction in both."""

    def forward(self, layer, rows, x, hx, weights, keep):
        count, own = layer.weights_per_direction, list(weights)
        for k in range(1, 1 + 2 * (3 if layer.proj_size else 2)):
            own[-k] = own[count - k]
        return super().forward(layer, rows, x, hx, own, keep)


class OutputNotQuantized(Own):
    """Projects the output itself, not its numbers."""

    def rows(self, x):
        if self.bias is None and len(self.values) < self.values.shape[1]:
            scale = quantize_rows(x)[1]
            return x / scale[:, None], scale
        return super().rows(x)


class Stale(Healthy):
    """Keeps scales by the identity of their matrix."""

    def __init__(self):
        self.kept = {}

    def layer(self, layer, weights):
        matrices = 3 if layer.proj_size else 2
        first = len(weights) - 2 * matrices
        scales = [scale.clone() for scale in weights[first : first + matrices]]
        # The matrix is kept too, lest its id be given to another.
        scales, _ = self.kept.setdefault(id(weights[0]), (scales, weights[0]))
        return [*weights[:first], *scales, *weights[-matrices:]]


def with_product(product):
    backend = Healthy()
    backend.product = product
    return backend


def fails(backend, check="forward"):
    """Whether a backend fails a check in some case of the quick subset."""
    for pair in QUICK:
        if pair.name == check:
            try:
                pair.check.run(backend, pair.case)
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize("product", [Product, HalfToEven, Unsigned])
def test_healthy_products_pass(product):
    assert not fails(with_product(product))


@pytest.mark.parametrize(
    "product",
    [
        *(OneScaleForAllRows, ScaleOfTheRowBefore, ScaleOfTheFirstRow, HalfUp, HalfAwayFromZero),
        *(Truncating, NotRounded, SumsLeftOut, Saturating, NaNHasAScale, OutputNotQuantized),
    ],
)
def test_wrong_products_fail(product):
    assert fails(with_product(product))


@pytest.mark.parametrize(
    "backend",
    [GatesSwapped(), GateScalesSwapped(), NotProjected(), ScalesOfOneDirection()],
    ids=lambda backend: type(backend).__name__,
)
def test_wrong_weights_fail(backend):
    assert fails(backend)


def test_stale_scales_fail():
    assert not fails(Healthy(), "stale_weights")
    assert fails(Stale(), "stale_weights")
    assert not fails(Stale())


class Without(RecomputeBackend):
    name = "without"
    quantized = False


class Declining(RecomputeBackend):
    """Declares int8 matrices, and declines those of nn.LSTM."""

    name = "declining"

    def why_not(self, spec, problem):
        return ["no int8 nn.LSTM"] if spec.quantized and spec.cell == LSTM else []


def test_a_backend_without_int8_matrices_declines_them_and_says_why(monkeypatch):
    monkeypatch.setattr("rnnjit.testing.suite.CASES", [pair.case for pair in QUICK[:1]])
    report = run(Without())
    assert report.ok
    assert set(report.by_cell) == {"tanh int8"}
    said = {result.check: result.message for result in report.results}
    assert said.pop("refusal") == ""
    assert set(said.values()) == {"layers of int8 matrices are not supported"}


@pytest.mark.parametrize(
    ("quantized", "message"),
    [(True, "must be taken: no int8 nn.LSTM"), ("yes", "quantized must be a bool, it is 'yes'")],
)
def test_what_a_backend_declares_it_must_take(quantized, message):
    backend = Declining()
    backend.quantized = quantized
    case = next(case for case in CASES if case.id == "step-lstm-int8")
    with pytest.raises(AssertionError, match=message):
        CHECKS["refusal"].run(backend, case)


def test_results_that_require_a_gradient_fail():
    call = build(Case("recorded", quantized=True, T=1))
    assert call.x.requires_grad
    with pytest.raises(AssertionError, match="requires a gradient"):
        forward(lambda x, hx: (x * 2, x), call)


def test_a_sequence_is_in_doubt_where_a_number_is_next_to_the_middle_of_two():
    """The numbers of x alone are in doubt: one row of h has one number, 127 or -127."""
    call = build(Case("doubt", quantized=True, T=2, B=3, input_size=2, hidden_size=1))
    x = torch.full((2, 3, 2), 127.0, dtype=torch.float64, device="cpu")
    x[1, :, 1] = torch.tensor([0.5, 0.5 + 0.9 * MARGIN, 0.5 + 1.1 * MARGIN], device="cpu")
    assert call.standard.doubtful(x).tolist() == [False, True, False]
    order = torch.tensor([2, 0, 1], device="cpu")
    packed = pack_padded_sequence(x[:, order], [1, 2, 2], enforce_sorted=False)
    assert call.standard.doubtful(packed).tolist() == [False, False, True]


def test_a_case_that_is_always_in_doubt_is_an_error(monkeypatch):
    monkeypatch.setattr("rnnjit.testing.calls._DRAWS", 2)
    case = Case("doubtful", quantized=True, T=20, hidden_size=99)
    with pytest.raises(ValueError, match="needs fewer steps"):
        build(case)
