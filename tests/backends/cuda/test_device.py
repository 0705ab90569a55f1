"""Protects the CUDA backend in use on a GPU; `benchmarks/gpu.py` runs the kit on each family."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit_cuda import CudaBackend
from rnnjit_cuda.kernels import FAMILIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

#: Hidden sizes that are planned in registers, in shared memory and over the grid.
SIZES = {"register": 48, "block": 136, "grid": 520}
warns = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")


@pytest.fixture
def batch():
    """Sequences in every multiprocessor, so that middle-sized layers stay in their blocks."""
    return torch.cuda.get_device_properties(0).multi_processor_count


def pair(H, B, T=9, **options):
    """An eager module on the CPU in float64, the compiled one on the GPU, and an input for each."""
    torch.manual_seed(0)
    eager = nn.RNN(5, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, 5, dtype=torch.float64)
    module = nn.RNN(5, H, device="cuda", **options)
    module.load_state_dict(eager.state_dict())
    return eager, rnnjit.compile(module, backend="cuda"), x, x.float().cuda()


def close(got, expected):
    torch.testing.assert_close(got.double().cpu(), expected, rtol=0, atol=5e-6)


def test_a_device_is_found():
    assert CudaBackend().missing() == []


@pytest.mark.parametrize("family", SIZES)
def test_each_family_of_kernels_is_used(family, batch, monkeypatch):
    from rnnjit_cuda.launch import DriverLauncher

    ran = []
    launch = DriverLauncher.__call__
    monkeypatch.setattr(
        DriverLauncher,
        "__call__",
        lambda s, key, *rest: (ran.append(key.family), launch(s, key, *rest)),
    )
    eager, module, x, x_gpu = pair(SIZES[family], batch)
    close(module(x_gpu)[0], eager(x)[0])
    assert ran == [family]


@pytest.mark.parametrize("family", SIZES)
def test_it_runs_in_torch_s_current_stream(family, batch):
    eager, module, x, x_gpu = pair(SIZES[family], batch)
    module(x_gpu)
    side, slow = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(20):
            slow = torch.tanh(slow @ slow)
        # There only behind the products; until then it is what `late` was filled with.
        late = torch.full_like(x_gpu, 7.0).copy_(x_gpu + 0 * slow[0, 0])
        y, h_n = module(late)
    side.synchronize()
    close(y, eager(x)[0])
    close(h_n, eager(x)[1])


@pytest.mark.parametrize("family", SIZES)
def test_it_can_be_captured_in_a_cuda_graph(family, batch):
    eager, module, x, x_gpu = pair(SIZES[family], batch)
    given = torch.zeros_like(x_gpu)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            module(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = module(given)
    for scale in (1.0, -0.5):
        given.copy_(x_gpu * scale)
        graph.replay()
        close(y, eager(x * scale)[0])


@warns
@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_the_host_waits_for_nothing(family, packed, batch):
    _, module, _, x_gpu = pair(SIZES[family], batch, bidirectional=True)
    inputs = x_gpu.requires_grad_()
    if packed:
        lengths = torch.linspace(9, 2, batch).long()
        rows = pack_padded_sequence(x_gpu.detach(), lengths)
        inputs = rows._replace(data=rows.data.requires_grad_())

    def run():
        y, h_n = module(inputs)
        ((y.data if packed else y).sum() + h_n.sum()).backward()

    run()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_out_of_memory_is_torch_s_own_error_and_leaves_the_module_usable():
    eager, module, x, x_gpu = pair(520, 64)
    module(x_gpu)
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + 2**26) / torch.cuda.get_device_properties(
        0
    ).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            module(torch.zeros(400, 640, 5, device="cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    close(module(x_gpu)[0], eager(x)[0])


def test_tensors_elsewhere_are_eager_s_error():
    _, module, x, x_gpu = pair(48, 2)
    with pytest.raises(RuntimeError):
        nn.RNN(5, 48).cuda()(x.float())
    with pytest.raises(RuntimeError, match=r"cpu.*cuda|cuda.*cpu"):
        module(x.float())
    with pytest.raises(RuntimeError, match=r"cpu.*cuda|cuda.*cpu"):
        module(x_gpu, torch.zeros(1, 2, 48))


def test_more_steps_than_a_grid_has_blocks_in_y():
    eager, module, x, x_gpu = pair(12, 2, T=70_000)
    x, x_gpu = x.requires_grad_(), x_gpu.requires_grad_()
    expected, got = eager(x)[0], module(x_gpu)[0]
    close(got, expected)
    expected.sum().backward()
    got.sum().backward()
    torch.testing.assert_close(x_gpu.grad.double().cpu(), x.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", SIZES)
def test_gradients_in_evaluation_mode_and_gradients_of_gradients(family):
    eager, module, x, x_gpu = pair(SIZES[family], 3)
    found = []
    for model, given in ((eager, x), (module, x_gpu)):
        model.eval()
        given = given.detach().requires_grad_()
        (first,) = torch.autograd.grad(model(given)[0].square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given)
        found.append((first.detach(), second))
    for expected, got in zip(*found, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(got.double().cpu() / scale, expected / scale, rtol=0, atol=1e-5)


def test_gradients_of_packed_sequences_of_a_large_layer_both_ways(batch):
    eager, module, x, x_gpu = pair(520, batch, bidirectional=True)
    lengths = torch.linspace(9, 2, batch).long()
    found = []
    for model, given in ((eager, x), (module, x_gpu)):
        given = given.detach().requires_grad_()
        y, h_n = model(pack_padded_sequence(given, lengths))
        inputs = (given, *model.parameters())
        found.append(torch.autograd.grad(y.data.square().sum() + h_n.sum(), inputs))
    for expected, got in zip(*found, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(got.double().cpu() / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("H", "chosen"), [(64, "eager"), (520, "cuda")])
def test_auto_leaves_small_dense_layers_to_cudnn(H, chosen):
    module = rnnjit.compile(nn.RNN(5, H, device="cuda"))
    report = rnnjit.explain(module, torch.zeros(9, 3, 5, device="cuda"))
    assert report.calls[0].chosen == chosen


def test_weights_that_are_not_contiguous():
    eager, module, x, x_gpu = pair(48, 4)
    weight = module.weight_hh_l0
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    close(module(x_gpu)[0], eager(x)[0])


def test_no_tf32_unless_torch_allows_it():
    eager, module, x, x_gpu = pair(520, 8)
    before = torch.backends.cuda.matmul.allow_tf32
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", before)
        torch.backends.cuda.matmul.allow_tf32 = False
        close(module(x_gpu)[0], eager(x)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_batches(family):
    backend = CudaBackend()
    backend.families = (family,)
    module = rnnjit.compile(nn.RNN(3, 20, device="cuda"), backend=backend)
    x = torch.zeros(4, 0, 3, device="cuda", requires_grad=True)
    y, h_n = module(x)
    assert (y.shape, h_n.shape) == ((4, 0, 20), (1, 0, 20))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert module.weight_hh_l0.grad.abs().max() == 0


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("H", [48, 80, 520])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_layers_of_more_gates_and_their_gradients(kind, H, packed):
    torch.manual_seed(0)
    eager = kind(5, H, dtype=torch.float64, bidirectional=True)
    module = kind(5, H, device="cuda", bidirectional=True)
    module.load_state_dict(eager.state_dict())
    lengths = torch.linspace(9, 2, 7).long()
    data = torch.randn(9, 7, 5, dtype=torch.float64)
    found = []
    for model in (eager, rnnjit.compile(module, backend="cuda")):
        weights = tuple(model.parameters())
        given = data.to(weights[0]).requires_grad_()
        y, ends = model(pack_padded_sequence(given, lengths) if packed else given)
        ends = ends if isinstance(ends, tuple) else (ends,)
        y = y.data if packed else y
        loss = y.square().sum() + sum(end.sin().sum() for end in ends)
        grads = torch.autograd.grad(loss, (given, *weights))
        found.append([each.detach() for each in (y, *ends, *grads)])
    for expected, got in zip(*found, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(got.double().cpu() / scale, expected / scale, rtol=0, atol=1e-5)


OWN = {
    "leaky": lambda H: rnnjit.cells.LeakyRNN(5, H, sigma=0.1),
    "peephole": lambda H: rnnjit.cells.PeepholeLSTM(5, H),
    "spiking": lambda H: rnnjit.cells.LIF(5, H),
    "independent": lambda H: rnnjit.cells.IndRNN(5, H),
}


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("H", [48, 80, 520])
@pytest.mark.parametrize("name", OWN)
def test_layers_of_cells_that_users_write_and_their_gradients(name, H, packed):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(OWN[name](H), bidirectional=True).to("cuda", torch.float64)
    data = torch.randn(9, 7, 5, dtype=torch.float64, device="cuda")
    lengths, found = torch.linspace(9, 2, 7).long(), []
    for model in (module, rnnjit.compile(module, backend="cuda")):
        torch.manual_seed(1)
        given = data.clone().requires_grad_()
        y, ends = model(pack_padded_sequence(given, lengths) if packed else given)
        ends = ends if isinstance(ends, tuple) else (ends,)
        y = y.data if packed else y
        loss = y.square().sum() + sum(end.sin().sum() for end in ends)
        grads = torch.autograd.grad(loss, (given, *model.parameters()))
        found.append([each.detach() for each in (y, *ends, *grads)])
    for expected, got in zip(*found, strict=True):
        scale = expected.abs().max().clamp(min=1e-12)
        torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-10)


@warns
@pytest.mark.parametrize("name", OWN)
def test_the_host_waits_for_nothing_in_cells_that_users_write(name):
    module = rnnjit.compile(rnnjit.Recurrent(OWN[name](48)).cuda(), backend="cuda")
    x = torch.randn(9, 4, 5, device="cuda", requires_grad=True)

    def run():
        y, _ = module(x)
        y.sum().backward()

    run()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@warns
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_the_host_waits_for_nothing_where_sequences_are_reset(kind):
    torch.manual_seed(0)
    module = kind(5, 48, 2, bidirectional=True, device="cuda", dtype=torch.float64)
    x = torch.randn(9, 4, 5, device="cuda", dtype=torch.float64, requires_grad=True)
    mask, found = torch.rand(9, 4, device="cuda") < 0.3, []
    cutting = CudaBackend()
    cutting.resets_in_kernel = False

    def run(fast):
        y, _ = fast(x, reset=mask)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, *module.parameters()))

    for backend, mode in ((CudaBackend(), "error"), (cutting, "default")):
        fast = rnnjit.compile(module, backend=backend)
        run(fast)
        try:
            torch.cuda.set_sync_debug_mode(mode)
            found.append(run(fast))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_calls_that_auto_leaves_to_cudnn_have_second_gradients(kind, options):
    torch.manual_seed(0)
    eager = kind(5, 16, dtype=torch.float64, batch_first=True, **options)
    module = kind(5, 16, device="cuda", batch_first=True, **options)
    module.load_state_dict(eager.state_dict())
    compiled = rnnjit.compile(module)
    data = torch.randn(3, 6, 5, dtype=torch.float64)
    report = rnnjit.explain(compiled, data.float().cuda())
    assert report.calls[0].chosen == ("eager" if kind is not nn.RNN or not options else "cuda")
    found = []
    for model in (eager, compiled):
        leaves = (*model.parameters(),)
        given = data.to(leaves[0]).requires_grad_()
        leaves = (given, *leaves)
        first = torch.autograd.grad(model(given)[0].square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))
    for expected, got in zip(*found, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(got.double().cpu() / scale, expected / scale, rtol=0, atol=1e-4)
