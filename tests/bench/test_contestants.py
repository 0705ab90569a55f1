"""Protects the contestants of a benchmark: each computes what a plain loop in float64 does."""

import numpy as np
import pytest
import torch
from exact_rnn import exact
from msgspec import structs

from rnnjit.bench import arrays, protocol
from rnnjit.bench.contestants import contestants, find, of_int8, torch_modules
from rnnjit.bench.correctness_gate import CorrectnessGate
from rnnjit.bench.process import Worker
from rnnjit.bench.quantized_gate import QuantizedGate
from rnnjit.bench.records import Case
from rnnjit.dispatch.choice import why_not_cell
from rnnjit.dispatch.registry import backends
from rnnjit.ir import GRU, LSTM, RNN_TANH
from rnnjit.runtime.packages import install

SMALL, STEP = {"T": 4, "B": 3, "I": 2, "H": 5}, {"T": 1, "B": 3, "I": 2, "H": 5}
CASES = {
    "dense": Case(**SMALL),
    "training": Case(**SMALL, mode="training"),
    "stacked": Case(**SMALL, layers=2, bidirectional=True, nonlinearity="relu"),
    "packed": Case(**SMALL, layers=2, bidirectional=True, packed=True, mode="training"),
    "packed forward": Case(**SMALL, layers=2, bidirectional=True, packed=True),
    "float64": Case(**SMALL, dtype="float64", mode="training"),
    "streaming": Case(**STEP, layers=2, mode="streaming"),
    "cold start": Case(**SMALL, mode="cold start"),
    "cold training": Case(**SMALL, mode="cold training"),
    "backward": Case(**SMALL, layers=2, packed=True, mode="backward"),
    "last state": Case(**SMALL, mode="last state"),
    "lstm": Case(**SMALL, cell="lstm", layers=2, bidirectional=True, packed=True),
    "lstm training": Case(**SMALL, cell="lstm", layers=2, mode="training", packed=True),
    "lstm projected": Case(**SMALL, cell="lstm", layers=2, mode="training", proj_size=3),
    "lstm streaming": Case(**STEP, cell="lstm", layers=2, mode="streaming"),
    "lstm last state": Case(**SMALL, cell="lstm", mode="last state"),
    "gru": Case(**SMALL, cell="gru", layers=2, bidirectional=True, packed=True),
    "gru training": Case(**SMALL, cell="gru", bidirectional=True, mode="training"),
    "gru streaming": Case(**STEP, cell="gru", mode="streaming"),
    "gru float64": Case(**SMALL, cell="gru", dtype="float64", mode="training"),
    # Eager and rnnjit's backends run a cell here, the others their layer.
    "rnn cell": Case(**STEP, as_cell=True, mode="training"),
    "lstm cell": Case(**STEP, cell="lstm", as_cell=True),
    "lstm cell training": Case(**STEP, cell="lstm", as_cell=True, mode="training"),
    "lstm cell last state": Case(**STEP, cell="lstm", as_cell=True, mode="last state"),
    "gru cell": Case(**STEP, cell="gru", as_cell=True),
}
_TRAINING = {name for name, case in CASES.items() if case.trains}
DECLINED = {
    "unrolled": {"backward", *(name for name, case in CASES.items() if case.packed)},
    "onnxruntime": _TRAINING,
    "openvino": _TRAINING,
    "jax": {"backward"},
}


def offered(contestant):
    """The cases that a contestant is to be right in; a backend's are of the cells it computes."""
    backend = backends().get(contestant.name)
    return [
        name
        for name, case in CASES.items()
        if name not in DECLINED.get(contestant.name, ())
        and (backend is None or not why_not_cell(backend, COMPUTED[case.cell]))
    ]


COMPUTED = {"rnn": RNN_TANH, "lstm": LSTM, "gru": GRU}
OFFERED = [(each, offered(each)) for each in (*contestants(), find("auto"))]


# One of rnnjit's and one peer: each takes the time of a process, and of a compiler.
FAST = ("numba", "auto", "onnxruntime")
RUN = [
    pytest.param(each, names, marks=() if each.name in FAST else pytest.mark.full)
    for each, names in OFFERED
]


@pytest.mark.parametrize(("contestant", "names"), RUN, ids=lambda v: getattr(v, "name", ""))
def test_results_are_those_of_a_plain_loop(tmp_path, contestant, names):
    if reason := contestant.absent():
        pytest.skip(reason)
    if contestant.name == "unrolled":
        # Each takes some ten seconds to compile.
        names = ["training", "lstm projected", "gru training"]
    worker = Worker(contestant, 1)
    try:
        for name in names:
            case, path = CASES[name], tmp_path / "results"
            drawn = arrays.draw(case)
            arrays.save(tmp_path / "arrays", drawn)
            worker.ask(protocol.Prepare(case, str(tmp_path / "arrays")), 300)
            worker.ask(protocol.Results(str(path)), 300)
            expect(arrays.load_results(path), exact(case, drawn), name)
            # What is timed leaves the results as they are.
            worker.ask(protocol.Sample(3), 300)
            worker.ask(protocol.Results(str(path)), 300)
            expect(arrays.load_results(path), exact(case, drawn), name)
    finally:
        worker.close()


def expect(results, exactly, name):
    assert set(exactly) <= set(results)
    dtype = CASES[name].dtype
    for key, value in exactly.items():
        assert results[key].dtype == dtype, (name, key)
        atol = 1e-13 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(results[key], value, rtol=0, atol=atol, err_msg=f"{name} {key}")


@pytest.mark.parametrize(("contestant", "names"), OFFERED, ids=lambda v: getattr(v, "name", ""))
def test_what_is_not_offered_is_declined_with_a_reason(contestant, names):
    if reason := contestant.absent():
        pytest.skip(reason)
    two = Case(T=1, B=3, I=2, H=5, bidirectional=True, mode="streaming")
    assert "the end of a sequence" in contestant.declines(two)
    for name, case in CASES.items():
        assert bool(contestant.declines(case)) is (name not in names), name


def test_a_loss_on_the_last_state_is_of_that_alone():
    case = CASES["last state"]
    drawn = arrays.draw(case)
    assert not drawn.grad_y.any()
    spoilt = drawn._replace(grad_y=np.full_like(drawn.grad_y, np.nan))
    call = torch_modules.ready(case, spoilt, torch_modules.module_of(case, spoilt))
    expect(call.results(), exact(case, drawn), "last state")
    assert all(grad.isfinite().all() for grad in call.run())


def test_long_sequences_are_not_unrolled():
    unrolled = next(each for each in contestants() if each.name == "unrolled")
    assert "takes too long" in unrolled.declines(Case(T=1000, B=1, I=1, H=1))
    assert unrolled.declines(Case(T=64, B=1, I=1, H=1)) == ""
    assert unrolled.declines(Case(T=64, B=1, I=1, H=1, layers=3)) != ""


def test_eager_is_the_baseline_and_every_backend_takes_part():
    import rnnjit

    found = contestants()
    assert [each.name for each in found if each.kind == "baseline"] == ["eager"]
    backends = [each.name for each in found if each.kind == "backend"]
    assert backends == [name for name in rnnjit.backends() if name != "eager"]
    names = [each.name for each in found]
    assert {"unrolled", "onnxruntime", "openvino", "jax"} <= set(names)
    assert len(set(names)) == len(names)
    for each in found:
        if not each.absent():
            versions = each.versions()
            assert versions
            assert all(version[0].isdigit() for version in versions.values())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "jax"])
def test_a_peer_that_is_not_installed_says_how_to_install_it(monkeypatch, name):
    monkeypatch.setattr("rnnjit.bench.contestants.base.find_spec", lambda package: None)
    peer = next(each for each in contestants() if each.name == name)
    said, _, command = peer.absent().partition(": ")
    assert said == f"{' and '.join(peer.packages)} are not installed"
    assert command == install("bench", *peer.packages)
    assert f"'{name}>=" in command


def test_arrays_of_bfloat16_hold_its_bits():
    """Numpy has no bfloat16: torch rounds the same numbers, and a copy gives them back."""
    values = np.random.default_rng(0).standard_normal(1000) * 2.0 ** np.linspace(-60, 60, 1000)
    values[:3] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0.0
    bits = arrays.stored(values, "bfloat16")
    expected = torch.from_numpy(values).float().bfloat16()
    assert torch.equal(torch_modules.tensor_of(bits), expected)
    assert np.array_equal(torch_modules.array_of(expected), bits)
    assert arrays.itemsize("bfloat16") == 2


def test_eager_in_bfloat16_is_right_and_peers_of_numpy_decline():
    case = Case(T=4, B=2, I=3, H=5, dtype="bfloat16", mode="training", cell="gru")
    given = arrays.draw(case)
    found = torch_modules.ready(case, given, torch_modules.module_of(case, given)).results()
    assert CorrectnessGate(case, given).judge(found).wrong == ""
    assert "bfloat16" in find("jax").declines(case)
    forward = structs.replace(case, mode="forward")
    assert "float32" in find("onnxruntime").declines(forward)
    assert find("openvino").declines(forward) == ""


@pytest.mark.parametrize("mode", ["forward", "streaming"])
def test_openvino_computes_in_bfloat16(mode):
    pytest.importorskip("openvino")
    shape = {"T": 4, "B": 2} if mode == "forward" else {"T": 1, "B": 1}
    case = Case(**shape, I=3, H=5, dtype="bfloat16", mode=mode, cell="lstm")
    given = arrays.draw(case)
    found = find("openvino").prepare(case, given).results()
    assert all(array.dtype == np.uint16 for array in found.values())
    assert CorrectnessGate(case, given).judge(found).wrong == ""


@pytest.fixture
def here():
    """Contestants that run in this process change its settings for good."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["eager", pytest.param("numba", marks=pytest.mark.full)])
def test_float16_is_computed_and_judged_and_engines_decline_it(name):
    case = Case(T=4, B=2, I=3, H=5, dtype="float16", cell="gru")
    given = arrays.draw(case)
    exactly, found = exact(case, given), find(name).prepare(case, given).results()
    assert CorrectnessGate(case, given).judge(found).wrong == ""
    for key, value in exactly.items():
        assert found[key].dtype == np.float16
        np.testing.assert_allclose(found[key], value, rtol=0, atol=4e-3, err_msg=key)
    for engine in ("onnxruntime", "openvino"):
        assert "float32, not float16" in find(engine).declines(case)


INT8 = Case(T=4, B=2, I=16, H=24, dtype="int8", cell="lstm")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["torch-int8", "numba", "onnxruntime"])
def test_int8_layers_round_and_those_in_float32_do_not(name):
    if reason := find(name).absent():
        pytest.skip(reason)
    stream = structs.replace(INT8, mode="streaming", T=1)
    for case in (INT8, stream):
        given = arrays.draw(case)
        with torch.enable_grad():
            exactly = exact(case, given)
        found = find(name).prepare(case, given).results()
        judged = QuantizedGate(case, given).judge(found)
        assert judged.wrong == ""
        errors = [np.abs(found[key] - value).max() for key, value in exactly.items()]
        assert judged.error == pytest.approx(max(errors))
        assert judged.error > 1e-3


@pytest.mark.usefixtures("here")
def test_what_is_named_float32_does_not_round():
    given = arrays.draw(INT8)
    exactly, contestant = exact(INT8, given), find("eager-float32")
    found = contestant.prepare(INT8, given).results()
    for key, value in exactly.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=2e-6, err_msg=key)
    assert "name eager for float32" in contestant.declines(structs.replace(INT8, dtype="float32"))


def test_the_baseline_of_int8_is_torchs_layer_or_eager_in_float32():
    gru, rnn = (structs.replace(INT8, cell=cell) for cell in ("gru", "rnn"))
    of_torch, of_eager = of_int8([INT8, gru]), of_int8([INT8, rnn])
    for found, first in ((of_torch, "torch-int8"), (of_eager, "eager-float32")):
        assert [each.name for each in found if each.kind == "baseline"] == [first]
        backends = [each.name for each in found if each.kind == "backend"]
        assert backends == ["numba", "auto-float32"]
        assert {each.name for each in found} >= {"torch-int8", "onnxruntime"}
        assert all(not found[0].declines(case) for case in (INT8, gru))
    assert not of_eager[0].declines(rnn)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("torch-int8", {"cell": "rnn"}, "no int8 nn.RNN"),
        ("torch-int8", {"proj_size": 3}, "projected"),
        ("torch-int8", {"mode": "training"}, "only infer"),
        ("onnxruntime", {"cell": "gru"}, "leaves GRU in float32"),
        ("onnxruntime", {"cell": "rnn"}, "leaves RNN in float32"),
        ("openvino", {}, "float32, not int8"),
        ("jax", {}, "no int8 matrices"),
        ("unrolled", {}, "no int8 matrices"),
        ("eager", {}, "no int8 matrices"),
        ("numba", {"mode": "training"}, "no gradient"),
        ("tvm", {}, "int8"),
    ],
)
def test_what_has_no_int8_layer_says_so(name, change, says):
    assert says in find(name).declines(structs.replace(INT8, **change))


def test_onnxruntimes_layer_must_be_quantized():
    """Its quantize_dynamic leaves what it does not know, without a word."""
    case = structs.replace(INT8, cell="gru")
    with pytest.raises(RuntimeError, match=r"left an operator in float32: .*GRU"):
        find("onnxruntime").prepare(case, arrays.draw(case))
