"""Protects the kit itself: which checks run, which are skipped, and how errors are judged."""

import ast
import inspect
import subprocess
import sys
from collections import Counter

import pytest
import torch

import rnnjit
from rnnjit.dispatch.registry import BrokenBackend
from rnnjit.ir import GRU, LSTM
from rnnjit.testing import CASES, CHECKS, Case, RecomputeBackend, conformance, count, plugin, run
from rnnjit.testing.calls import build, forward, gradients
from rnnjit.testing.cases import product_cases
from rnnjit.testing.checks import check_gradients
from rnnjit.testing.compare import Standard, compare, expect_same
from rnnjit.testing.poison import poisoned
from rnnjit.testing.procedures import with_gradients, without_gradients
from rnnjit.testing.suite import device_of, pairs
from rnnjit.testing.tolerances import TOLERANCES, Expected, judge
from rnnjit.testing.user_cells import USER_CELLS

HALF = {"tanh-bf16", "relu-bf16", "tanh-f16", "lstm-bf16", "gru-f16"}
EPS = torch.finfo(torch.float32).eps


class NoPacked(RecomputeBackend):
    name = "no-packed"

    def why_not(self, spec, problem):
        return ["packed input is not supported"] if problem.packed else []


class NoPackedLSTM(RecomputeBackend):
    """Computes nn.LSTM, though not packed, and no nn.GRU."""

    name = "no-packed-lstm"

    def why_not_cell(self, cell):
        return ["nn.GRU is not supported"] if cell == GRU else []

    def why_not(self, spec, problem):
        return ["packed nn.LSTM is not supported"] if problem.packed and spec.cell == LSTM else []


class NoHalf(RecomputeBackend):
    name = "no-half"
    dtypes = (torch.float32, torch.float64)


class Recorder(RecomputeBackend):
    name = "recorder"

    def __init__(self):
        self.asked = []

    def why_not(self, spec, problem):
        self.asked.append((spec, problem))
        return []


class Elsewhere(RecomputeBackend):
    name = "elsewhere"
    devices = ("meta", "cpu")

    def why_not(self, spec, problem):
        return [f"nothing is computed on {problem.device}"]


def parameters(decorated):
    (mark,) = decorated.pytestmark
    return {parameter.id: parameter for parameter in mark.args[1]}


def decorate(*backends, **options):
    @conformance(*backends, **options)
    def test(backend, case, check):
        check(backend, case)

    return parameters(test)


def test_case_ids_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_describes_the_call_it_makes(case):
    backend, call = Recorder(), build(case)
    fast = rnnjit.compile(call.module, backend=backend)
    without_gradients(fast, call)
    with_gradients(fast, call)
    # The layers of a user's cell may be asked for one by one.
    alone = case.lowered.num_layers == case.num_layers
    asked = backend.asked if alone else [backend.asked[0], backend.asked[len(backend.asked) // 2]]
    expected = [
        (case.lowered, case.problem(needs_grad=False)),
        (case.lowered, case.problem(needs_grad=True)),
    ]
    # To a quantized layer both calls are the same.
    assert set(asked) == set(expected) if case.quantized else asked == expected


@pytest.mark.parametrize("name", ["tanh", "leaky-int8"])
def test_a_case_always_makes_the_same_tensors_and_leaves_the_generator_alone(name):
    (case,) = (case for case in CASES if case.id == name)
    state = torch.get_rng_state()
    first, second = (build(case).inputs() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_ids_name_backend_check_and_case():
    found = decorate(RecomputeBackend())
    assert "recompute-gradients-relu-bf16" in found
    assert len(found) == count()


def test_every_installed_backend_is_run_or_skipped():
    found = decorate()
    for name in rnnjit.backends():
        assert f"{name}-unavailable" in found or f"{name}-refusal-tanh" in found


def test_an_unavailable_backend_is_one_skip_with_its_reasons():
    found = decorate(BrokenBackend("gone", "gone is not installed: pip install gone"))
    assert list(found) == ["gone-unavailable"]
    (mark,) = found["gone-unavailable"].marks
    assert mark.name == "skip"
    assert "pip install gone" in mark.kwargs["reason"]


def test_a_declined_case_leaves_only_the_refusal_check():
    found = decorate(NoHalf())
    assert [name for name in found if name.endswith("tanh-bf16")] == ["no-half-refusal-tanh-bf16"]


def test_xfails_are_strict():
    marks = decorate("eager", xfails={"eager-forward-relu": "a reason"})["eager-forward-relu"].marks
    (mark,) = [mark for mark in marks if mark.name == "xfail"]
    assert mark.kwargs == {"reason": "a reason", "strict": True}


def test_an_unknown_xfail_is_an_error():
    with pytest.raises(ValueError, match="eager-forward-nothing"):
        conformance("eager", xfails={"eager-forward-nothing": "gone"})


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("auto", ValueError, "'auto' is no backend"),
        ("nonesuch", ValueError, "'nonesuch' is not installed"),
        (3, TypeError, "got int"),
    ],
)
def test_only_one_backend_at_a_time_can_be_meant(backend, error, message):
    with pytest.raises(error, match=message):
        conformance(backend)
    with pytest.raises(error, match=message):
        run(backend)


def test_a_case_names_every_state_and_its_gradient():
    call = build(Case("named", cell=LSTM, hidden_size=5, proj_size=2, h0=True))
    names = [name for name, _ in call.module.named_parameters()]
    assert list(call.inputs()) == ["x", "h0", "c0", *names]
    assert names[-1] == "weight_hr_l0"
    shapes = {name: list(grad.shape) for name, grad in call.incoming().items()}
    assert shapes == {"grad_y": [7, 5, 2], "grad_h_n": [1, 5, 2], "grad_c_n": [1, 5, 5]}


@pytest.mark.parametrize("name", ["x", "h0", "c0", "weight_hr_l0", "bias_hh_l0"])
def test_anything_can_be_frozen_by_its_name(name):
    case = Case("frozen", cell=LSTM, hidden_size=5, proj_size=2, h0=True, frozen=frozenset({name}))
    call = build(case)
    assert call.inputs().keys() - call.leaves().keys() == {name}


@pytest.mark.parametrize("loss", ["y", "h_n", "c_n"])
def test_a_loss_goes_through_one_output_alone(loss):
    call = build(Case("loss", cell=LSTM, loss=loss, h0=True))
    y, last = call.module(*call.arguments())
    output = {"y": y, "h_n": last[0], "c_n": last[1]}[loss]
    expected = torch.autograd.grad((output * call.incoming()[f"grad_{loss}"]).sum(), call.x)[0]
    y, h_n, _ = forward(call.module, call)
    torch.testing.assert_close(gradients(call, y, h_n)["the gradient of x"], expected)


def test_run_counts_and_reports_progress(monkeypatch):
    few = [case for case in CASES if case.id in ("tanh", "packed", "plain-gru", *HALF)]
    monkeypatch.setattr("rnnjit.testing.suite.CASES", few)
    seen = []
    report = run(NoHalf(), on_result=seen.append)
    assert report.ok
    assert tuple(seen) == report.results
    assert report.passed + report.declined == count() == len(seen)
    declined = {result.case for result in seen if result.outcome == "declined"}
    assert declined == HALF
    said = {result.message for result in seen if result.case == "tanh-f16"} - {""}
    assert said == {"torch.float16 is not supported: only torch.float32, torch.float64 are"}


def test_the_full_kit_checks_every_case_of_the_product_too():
    product = Counter(pair.case.id for pair in pairs(full=True)) - Counter(
        pair.case.id for pair in pairs()
    )
    assert set(product) == {case.id for case in product_cases()}
    assert count(full=True) == count() + product.total()
    assert min(product.values()) == 4


@pytest.mark.parametrize(
    ("devices", "device"),
    [(None, "cpu"), ((), "cpu"), (("meta", "cpu"), "meta"), (("cpu",), "cpu"), ("cuda", "cpu")],
)
def test_the_device_is_the_first_that_a_backend_names(devices, device):
    backend = RecomputeBackend()
    backend.devices = devices
    assert device_of(backend) == device


def test_run_fails_a_backend_that_declines_what_is_required():
    report = run(NoPacked(), quick=True)
    assert {result.id for result in report.failures} == {
        "no-packed-refusal-packed",
        "no-packed-refusal-packed-bidirectional-2-layers",
        "no-packed-refusal-packed-bidirectional-2-layers-projected-lstm",
        "no-packed-refusal-packed-bidirectional-2-layers-projected-lstm-int8",
        "no-packed-refusal-packed-bidirectional-gru",
        "no-packed-refusal-packed-bidirectional-peephole-f64",
    }
    assert "packed input is not supported" in report.failures[0].message


def test_run_fails_a_backend_that_computes_a_cell_but_not_in_every_required_case():
    report = run(NoPackedLSTM(), quick=True)
    name = "no-packed-lstm-refusal-packed-bidirectional-2-layers-projected-lstm"
    assert [failure.id for failure in report.failures] == [name, f"{name}-int8"]
    for failure in report.failures:
        assert "must be taken: packed nn.LSTM is not supported" in failure.message


def test_a_report_counts_by_cell_too():
    report = run(NoPackedLSTM(), quick=True)
    by_cell = report.by_cell
    int8 = [f"{name} int8" for name in ("tanh", "lstm", "gru", "leaky")]
    assert list(by_cell) == ["tanh", "relu", "lstm", "gru", *USER_CELLS, *int8]
    for outcome in ("passed", "failed", "declined"):
        assert getattr(report, outcome) == sum(getattr(own, outcome) for own in by_cell.values())
    gru = by_cell["gru"]
    assert {result.check for result in gru.results if result.outcome == "passed"} == {"refusal"}
    assert {result.message for result in gru.results} == {"", "nn.GRU is not supported"}


def test_run_runs_nothing_on_a_machine_that_lacks_something():
    report = run(BrokenBackend("gone", "no such device"))
    assert report.missing == ("no such device",)
    assert report.results == ()
    assert not report.ok


def test_the_quick_subset_makes_every_check():
    assert {result.check for result in run("eager", quick=True).results} == set(CHECKS)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(40),
        lambda: torch.empty_like(torch.zeros(40)),
        lambda: torch.zeros(3).new_empty(40, dtype=torch.float64),
        lambda: torch.empty_strided((5, 8), (8, 1)),
    ],
)
def test_memory_is_poisoned(allocate):
    mode = torch.get_deterministic_debug_mode()
    with poisoned():
        assert allocate().isnan().all()
    assert torch.get_deterministic_debug_mode() == mode


def test_every_dtype_of_the_cases_has_tolerances():
    for case in CASES:
        assert (case.dtype, "forward") in TOLERANCES
        assert (case.dtype, "backward") in TOLERANCES
    assert (torch.int8, "forward") in TOLERANCES


@pytest.mark.parametrize(
    ("error", "own", "passes"),
    [(0, 0, True), (3 * EPS, 0, True), (5 * EPS, 0, False), (13 * EPS, 5 * EPS, True)],
)
def test_errors_are_judged_by_eagers_own(error, own, passes):
    truth = torch.ones(3, dtype=torch.float64)
    eager = (truth + own).float()
    got = (truth + error).float()
    expected = Expected(eager, truth, own=own, scale=1)
    if passes:
        judge("y", "forward", got, expected)
    else:
        with pytest.raises(AssertionError, match=r"y is off by .* at \[0\]"):
            judge("y", "forward", got, expected)


def test_eager_is_measured_again_before_a_backend_is_failed():
    def cancelling(module, call):
        return {"y": (call.x + 1000).sum() - 1000 * call.x.numel()}

    call = build(Case("doubt", T=3, B=1, input_size=3))
    first, thorough = Standard(cancelling, call), Standard(cancelling, call)
    thorough.measure(40)
    expected, allowed = first.expected("y"), 1.9 * thorough.expected("y").own
    got = (expected.truth + allowed).float()
    with pytest.raises(AssertionError):
        judge("y", "forward", got, expected)
    compare({"y": got}, first)
    with pytest.raises(AssertionError):
        compare({"y": got + 2 * allowed}, first)


@pytest.mark.parametrize(
    ("got", "eager"),
    [
        ([1.0, 2.0], [float("nan"), 2.0]),
        ([float("nan"), 2.0], [1.0, 2.0]),
        ([float("-inf"), 2.0], [float("inf"), 2.0]),
        ([1.0], [1.0, 1.0]),
    ],
)
def test_special_values_and_shapes_must_be_eagers(got, eager):
    eager = torch.tensor(eager)
    with pytest.raises(AssertionError, match="eager"):
        judge("y", "forward", torch.tensor(got), Expected(eager, eager.double(), 0, 1))


def test_a_case_runs_by_name_too():
    check_gradients("auto", Case("by-name"))


def test_the_plugin_imports_nothing_at_run_time():
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(inspect.getsource(plugin)).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported == {"__future__", "typing"}


@pytest.mark.parametrize("options", [[], ["--rnnjit-quick"]])
def test_the_option_leaves_the_quick_subset(pytester, options):
    pytester.makepyfile(
        """
        from rnnjit.testing import conformance

        @conformance("eager")
        def test_conformance(backend, case, check):
            pass

        def test_other():
            pass
        """
    )
    result = pytester.runpytest_inprocess("--strict-markers", "-p", "no:benchmark", *options)
    kept = count(quick=bool(options))
    result.assert_outcomes(passed=kept + 1, deselected=count() - kept)


def test_a_backend_is_asked_on_its_own_device():
    assert build(Case("anywhere", device="meta")).x.device.type == "meta"
    messages = [result.message for result in run(Elsewhere(), quick=True).results]
    assert all(message.endswith("nothing is computed on meta") for message in messages if message)
    assert any(messages)
    (skipped,) = {name.split("-")[1] for name in decorate(Elsewhere())}
    assert skipped == "refusal"


def test_the_kit_works_where_torch_s_own_test_helpers_froze_its_flags():
    code = (
        "import torch.testing._internal.common_utils\n"
        "from rnnjit import testing\n"
        "report = testing.run('eager', quick=True)\n"
        "assert report.passed and report.ok, report.failures\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_results_are_the_same_but_for_the_bits_of_nan():
    one = torch.tensor([float("nan"), 1.0])
    expect_same("a call", {"y": -one * torch.tensor([1.0, -1.0])}, {"y": one})
    for other in (torch.tensor([1.0, 1.0]), one.nextafter(torch.tensor(2.0))):
        with pytest.raises(AssertionError, match="a call gave other bits for y than the first"):
            expect_same("a call", {"y": other}, {"y": one})
