"""Protects compiled chunks: their products, the layout of their rows, and their results."""

import pytest
import torch
from covered import in_full
from short_chunks import SHORT_CHUNKS
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit import Rows
from rnnjit.execution.stack import run_stack
from rnnjit.ir import RNN_RELU, RNN_TANH, CellSpec
from rnnjit.ir.builder import detach, sigmoid, softplus
from rnnjit.recurrence.rows import offsets
from rnnjit.reference import ReferenceBackend
from rnnjit.testing import CASES, Case
from rnnjit.testing.checks import CHECKS
from rnnjit_inductor import InductorBackend
from rnnjit_inductor.graphs import MATRIX_PRODUCT, TILE_PRODUCT, panels
from rnnjit_inductor.layout import DenseLayout, PackedLayout
from rnnjit_inductor.plan import MATRIX, ROWS, Plan, plan

TILES = {"rows": ROWS, "matrix": MATRIX}
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("H", [1, 16, 33, 70])
def test_products(tile, H):
    torch.manual_seed(0)
    matrix = torch.randn(H, H, dtype=torch.float64)
    rows = torch.randn(8, tile.padded(H), dtype=torch.float64)
    rows[:, H:] = torch.nan  # padding must reach nothing
    R, L = tile
    laid = rows.view(R, 8 // R, -1, L)
    if tile == MATRIX:
        products = MATRIX_PRODUCT.forward(laid, [matrix.t()], 1)
        products.append(MATRIX_PRODUCT.backward([laid], [matrix]))
    else:
        products = TILE_PRODUCT.forward(laid, [panels(matrix, tile)], 1)
        products.append(TILE_PRODUCT.backward([laid], [panels(matrix, tile)]))
    for product in products:
        found = product.flatten(2).flatten(0, 1)
        torch.testing.assert_close(found[:, :H], rows[:, :H] @ matrix, **CLOSE)
        assert not found[:, H:].any()


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_products_of_several_gates(tile):
    torch.manual_seed(0)
    G, H, P, (R, L) = 3, 32, 64, tile
    w, x = torch.randn(G * H, P, dtype=torch.float64), torch.randn(8, P, dtype=torch.float64)
    dz = torch.randn(8, G * H, dtype=torch.float64)
    product = MATRIX_PRODUCT if tile == MATRIX else TILE_PRODUCT
    transposed = [panels(own.t(), tile) for own in w.chunk(G)] if product.cut else [w]
    own = [panels(own, tile) for own in w.chunk(G)] if product.cut else [w]

    def lay(rows):
        return rows.reshape(R, 8 // R, -1, L)

    def rows(laid):
        return laid.flatten(2).flatten(0, 1)

    found = torch.cat([rows(each) for each in product.forward(lay(x), transposed, G)], 1)
    torch.testing.assert_close(found, x @ w.t(), **CLOSE)
    gates = [lay(each) for each in dz.chunk(G, 1)]
    torch.testing.assert_close(rows(product.backward(gates, own)), dz @ w, **CLOSE)
    dz[:, H : 2 * H] = 0
    found = product.backward([gates[0], None, gates[2]], own)
    torch.testing.assert_close(rows(found), dz @ w, **CLOSE)
    assert product.backward([None] * G, own) is None


@pytest.mark.parametrize("from_last", [False, True])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sizes", [[4] * 6, [4] * 7, [3] * 5, [5, 4, 4, 2, 1], [2, 1, 1]], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_each_row_is_where_its_chunk_walks(sizes, packed, from_last, descending):
    if not packed and len(set(sizes)) > 1:
        pytest.skip("a dense batch has steps of one size")
    cut, K, H = Plan(2, ROWS, 1), 2, 3
    rows = Rows(len(sizes), sizes[0], sum(sizes), torch.tensor(sizes) if packed else None)
    starts = offsets(rows, torch.device("cpu")).tolist()
    values = (torch.arange(rows.N)[:, None] + torch.zeros(H)).contiguous()
    given = (rows, torch.tensor(starts)) if packed else (rows,)
    layout = (PackedLayout if packed else DenseLayout)(*given, from_last, descending, H, cut)
    laid = layout.lay(values)
    seen = 0
    for c, (start, size) in enumerate(layout.chunks):
        block = laid[start : start + K * size].view(K, size, -1)
        for i, states in enumerate(block.flip(0) if descending else block):
            for b in range(sizes[0]):
                steps = sum(size > b for size in sizes)
                walked = c * K + i
                if walked >= steps:
                    continue
                t = steps - 1 - walked if from_last else walked
                assert states[b, :H].tolist() == [starts[t] + b] * H
                seen += 1
    assert seen == rows.N - (0 if packed else rows.B * (rows.T % K))
    back = values.clone() if not packed else torch.zeros_like(values)
    layout.unlay(laid, back)
    assert torch.equal(back, values)


def both(module, x, h0):
    """y, h_n and the gradients by x, h0 and every weight."""
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    y, h_n = module(x, h0)
    loss = (y * torch.arange(y.numel()).view_as(y).cos()).sum() + h_n.square().sum()
    return [y, h_n, *torch.autograd.grad(loss, [x, h0, *module.parameters()])]


WALKS = [
    *((SHORT_CHUNKS, T) for T in (3, 8)),
    *(pytest.param("inductor", T, marks=pytest.mark.full) for T in (16, 37)),
]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("B", "H"), [*in_full((1,), (5, 64)), (3, 33), (8, 16), (5, 48)])
@pytest.mark.parametrize(("backend", "T"), WALKS)
def test_whole_chunks_and_what_is_left(backend, T, B, H, bidirectional):
    torch.manual_seed(0)
    rnn = nn.RNN(3, H, bidirectional=bidirectional, dtype=torch.float64)
    fast = rnnjit.compile(rnn, backend=backend)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    h0 = torch.randn(1 + bidirectional, B, H, dtype=torch.float64)
    for found, expected in zip(both(fast, x, h0), both(rnn, x, h0), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


PACKED = [
    *((SHORT_CHUNKS, lengths) for lengths in ([8, 7, 6, 4, 2, 1], [3, 3], [7], [4] * 3 + [2] * 6)),
    pytest.param("inductor", [40, 33, 32, 17, 3, 1], marks=pytest.mark.full),
]


@pytest.mark.parametrize(("backend", "lengths"), PACKED)
def test_packed(backend, lengths):
    torch.manual_seed(0)
    rnn = nn.RNN(3, 21, bidirectional=True, dtype=torch.float64)
    fast = rnnjit.compile(rnn, backend=backend)
    x = torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64)
    results = []
    for module in (fast, rnn):
        y, h_n = module(pack_padded_sequence(x, lengths))
        loss = (y.data.sin() * y.data).sum() + h_n.square().sum()
        grads = torch.autograd.grad(loss, module.parameters())
        results.append([y.data, h_n, *grads])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.full
@pytest.mark.usefixtures("two_threads")
def test_two_threads():
    torch.manual_seed(0)
    rnn = nn.RNN(3, 192, dtype=torch.float64)
    rows = Rows(18, 8, 144)
    assert plan(rnnjit.RNNSpec(3, 192).layer(0), rows, torch.float64, "cpu", 2, True).threads == 2
    x, h0 = torch.randn(18, 8, 3).double(), torch.randn(1, 8, 192).double()
    fast = rnnjit.compile(rnn, backend=InductorBackend(lambda *call: Plan(3, ROWS, 2)))
    for found, expected in zip(both(fast, x, h0), both(rnn, x, h0), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_a_step_of_several_gates_is_more_work():
    def threads(cell):
        layer = rnnjit.RNNSpec(3, 200, cell=cell).layer(0)
        return plan(layer, Rows(18, 4, 72), torch.float64, "cpu", 2, True).threads

    assert threads(RNN_TANH) == 1
    assert threads(GATED) == 2


def gated(zx, zh, h):
    """Its gradients are inputs, one value for two gates, and none for the third gate."""
    h = h + (zx[0] + zh[0]) + (zx[1] + zh[1]) + detach(sigmoid(zx[2] + zh[2]))
    return h, h


GATED = CellSpec.trace(gated, name="gated", gates=["a", "b", "c"], states=["h"])


def pairs(zx, zh, h):
    """No gradient reaches the state but through the product, and values are saved."""
    h = sigmoid(zx[0] + zh[0]) * softplus(zx[1] + zh[1])
    return h, h


PAIRS = CellSpec.trace(pairs, name="pairs", gates=["a", "b"], states=["h"])


@pytest.mark.parametrize(
    ("cell", "compiled"),
    [
        (GATED, False),
        (PAIRS, False),
        pytest.param(GATED, True, marks=pytest.mark.full),
        pytest.param(PAIRS, True, marks=pytest.mark.full),
    ],
    ids=["gated", "pairs", "gated-compiled", "pairs-compiled"],
)
@pytest.mark.parametrize("sizes", [[3] * 5, [4, 3, 3, 2, 1]], ids=["dense", "packed"])
def test_gradients_of_any_form(cell, sizes, compiled):
    torch.manual_seed(0)
    spec = rnnjit.RNNSpec(3, 5, cell=cell, bidirectional=True)
    packed = torch.tensor(sizes) if len(set(sizes)) > 1 else None
    rows = Rows(5, sizes[0], sum(sizes), packed)
    shapes = [(rows.N, 3), *spec.state_shapes(rows.B), *spec.weight_shapes]
    given = [(torch.randn(shape).double() / 4).requires_grad_() for shape in shapes]
    x, h0, *weights = given
    results = []
    for backend in (
        InductorBackend(lambda *call: Plan(2, ROWS, 1) if compiled else None),
        ReferenceBackend(),
    ):
        y, (h_n,) = run_stack(backend, spec, rows, x, (h0,), weights, False, True)
        loss = (y.sin() * y).sum() + h_n.square().sum()
        results.append([y, h_n, *torch.autograd.grad(loss, given)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


TANH = ("tanh", "batch-1", "nan", "inf", "packed-bidirectional-2-layers", "through-h_n", "packed")
RELU = ("nan-relu", "inf-relu", "packed-relu-h0")
MORE = (
    Case("inf", values="inf"),
    Case("inf-relu", values="inf", cell=RNN_RELU, num_layers=2),
    Case("packed-relu-h0", lengths=(6, 4, 4, 1), cell=RNN_RELU, h0=True),
)
SHORT = [
    *((ROWS, case) for case in TANH),
    *(pytest.param(ROWS, case, marks=pytest.mark.full) for case in RELU),
    *(pytest.param(tile, case, marks=pytest.mark.full) for tile in (MATRIX,) for case in TANH),
]


@pytest.mark.parametrize(("tile", "name"), SHORT)
def test_short_chunks_pass_the_kit(tile, name):
    def short(layer, rows, dtype, device, threads, keep):
        return Plan(2, tile, 1) if rows.T >= 2 and rows.N else None

    (case,) = (case for case in (*CASES, *MORE) if case.id == name)
    backend = InductorBackend(short)
    CHECKS["forward"].run(backend, case)
    CHECKS["gradients"].run(backend, case)
