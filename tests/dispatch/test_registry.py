"""Protects the registry: finding, querying and choosing backends, and errors in doing so."""

import copy
import pickle
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.dispatch import choice as dispatch
from rnnjit.dispatch import registry
from rnnjit.testing import RecomputeBackend

PROBLEM = rnnjit.Problem(torch.float32, "cpu", 3, 2, 6, False, False)
SPEC = rnnjit.RNNSpec(4, 5)


class Stub(RecomputeBackend):
    """Declines for the reasons it was given; runs if there are none."""

    def __init__(self, name, priority=0, missing=(), declines=()):
        self.name, self.priority = name, priority
        self._missing, self._declines = list(missing), list(declines)
        self.asked = 0

    def missing(self):
        return self._missing

    def why_not(self, spec, problem):
        self.asked += 1
        return self._declines


FAST = Stub("fast", 50)
NOT_A_BACKEND = object()
MISNAMED = Stub("othername", 1)
STRANGE_PRIORITY = Stub("strange", "high")


def point(name, value):
    return EntryPoint(name, value, registry.GROUP)


@pytest.fixture
def install(monkeypatch):
    """Put other entry points in the place of the installed ones."""

    def put(*points):
        monkeypatch.setattr(registry, "entry_points", lambda group: list(points))
        registry._installed.cache_clear()
        return rnnjit.backends()

    yield put
    monkeypatch.undo()
    registry._installed.cache_clear()


def test_the_eager_backend_is_always_there_and_last():
    names = list(rnnjit.backends())
    assert names[-1] == "eager"
    assert rnnjit.backends()["eager"].missing() == []
    with pytest.raises(TypeError, match="does not support item assignment"):
        rnnjit.backends()["mine"] = None


class Young(RecomputeBackend):
    name = "young"
    priority = 500
    automatic = False


YOUNG = Young()


def test_auto_leaves_out_a_backend_that_is_not_automatic(install, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    assert next(iter(install(point("young", "third_party:YOUNG")))) == "young"
    assert dispatch.choose(SPEC, PROBLEM, None).name == "eager"
    assert dispatch.choose(SPEC, PROBLEM, YOUNG) is YOUNG
    rnn, x = torch.nn.RNN(4, 5), torch.randn(3, 2, 4)
    fast = rnnjit.compile(rnn, backend=YOUNG)
    by_name = rnnjit.explain(fast, x)
    fast.backend = "auto"
    by_auto = rnnjit.explain(fast, x)
    assert by_auto.calls[0].chosen == "eager"
    assert "  young: could run it, asked for by name" in str(by_auto)
    assert by_name.calls[0].chosen == "young"


class Modest(RecomputeBackend):
    name = "modest"
    priority = 500

    def defers(self, spec, problem):
        return ["eager is quicker at fewer than 5 steps"] if problem.T < 5 else []


MODEST = Modest()


def test_auto_leaves_calls_to_others_where_a_backend_defers(install, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    install(point("modest", "third_party:MODEST"))
    long = PROBLEM._replace(T=5, N=5 * PROBLEM.B)
    assert dispatch.choose(SPEC, PROBLEM, None).name == "eager"
    assert dispatch.choose(SPEC, long, None) is MODEST
    assert dispatch.choose(SPEC, PROBLEM, MODEST) is MODEST
    assert [backend.name for backend in dispatch.willing(SPEC, PROBLEM)] == ["eager", "modest"]
    shown = rnnjit.explain(rnnjit.compile(torch.nn.RNN(4, 5)), torch.randn(3, 2, 4))
    assert shown.calls[0].chosen == "eager"
    assert "  modest: could run it, but defers: eager is quicker at fewer than 5" in str(shown)


def test_auto_takes_a_backend_that_defers_where_it_was_measured(install, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    install(point("modest", "third_party:MODEST"))
    monkeypatch.setattr(
        "rnnjit.dispatch.tuning_db.recall", lambda spec, problem: {"modest": 1e-3, "eager": 2e-3}
    )
    assert dispatch.choose(SPEC, PROBLEM, None) is MODEST


def test_no_backend_defers_in_a_traced_call(install, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    install(point("modest", "third_party:MODEST"))
    assert dispatch.choose(SPEC, PROBLEM, None, traced=True) is MODEST


@pytest.mark.parametrize("answer", [7, KeyError("odd")])
def test_a_backend_that_fails_to_say_whether_it_defers(answer):
    class Odd(RecomputeBackend):
        def defers(self, spec, problem):
            if isinstance(answer, Exception):
                raise answer
            return answer

    (reason,) = dispatch.verdict_for_auto(Odd(), SPEC, PROBLEM).reasons
    assert "asked for its answer, it raised" in reason
    assert dispatch.choose(SPEC, PROBLEM, backend := Odd()) is backend


def test_one_reason_to_defer_may_be_a_string():
    class Plain(RecomputeBackend):
        def defers(self, spec, problem):
            return "always"

    assert dispatch.verdict_for_auto(Plain(), SPEC, PROBLEM).defers == ("always",)


def test_eager_cannot_be_replaced(install):
    found = install(point("eager", f"{__name__}:NOT_A_BACKEND"))
    assert type(found["eager"]).__name__ == "EagerBackend"


def test_a_backend_is_found_through_its_entry_point_and_ordered_by_priority(install, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    found = install(point("fast", "third_party:FAST"))
    assert list(found) == ["fast", "eager"]
    assert found["fast"] is FAST
    assert dispatch.choose(SPEC, PROBLEM, None) is FAST


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "gone",
            "no_such_module:B",
            "loading no_such_module:B failed: ModuleNotFoundError: No mod",
        ),
        ("gone", "rnnjit.spec:NO_SUCH", "loading rnnjit.spec:NO_SUCH failed: AttributeError"),
        ("thing", "third_party:NOT_A_BACKEND", "is a object, expected an instance of rnnjit.Back"),
        ("cls", "rnnjit.reference:EagerBackend", "expected an instance of rnnjit.Backend"),
        ("mine", "third_party:MISNAMED", "calls itself 'othername', expected 'mine'"),
        ("strange", "third_party:STRANGE_PRIORITY", "priority is 'high', expected a number"),
        ("auto", "third_party:FAST", "'auto' is no name for a backend"),
    ],
)
def test_a_broken_entry_point_declines_with_its_reason(install, monkeypatch, name, value, reason):
    import sys

    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    broken = install(point(name, value))[name]
    assert reason in broken.missing()[0]
    assert dispatch.verdict(broken, SPEC, PROBLEM).reasons == tuple(broken.missing())
    assert dispatch.choose(SPEC, PROBLEM, None).name == "eager"
    rnn, x = nn.RNN(4, 5), torch.randn(3, 2, 4)
    assert torch.equal(rnnjit.compile(rnn)(x)[0], rnn(x)[0])
    assert reason in str(rnnjit.explain(rnn, x))
    if name != "auto":
        fast = rnnjit.compile(rnn, backend=name)
        with pytest.raises(rnnjit.UnsupportedError) as caught:
            fast(x)
        assert caught.value.backend == name
        assert reason in str(caught.value)


def test_auto_falls_through_in_order_and_what_is_missing_is_not_asked():
    stubs = {
        "a": Stub("a", 3, missing=["a is not installed: pip install a"]),
        "b": Stub("b", 2, declines=["only float64"]),
        "c": Stub("c", 1),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "backends", lambda: stubs)
        assert dispatch.choose(SPEC, PROBLEM, None) is stubs["c"]
        assert [v.reasons for v in dispatch.verdicts(SPEC, PROBLEM)] == [
            ("a is not installed: pip install a",),
            ("only float64",),
            (),
        ]
        assert stubs["a"].asked == 0
        del stubs["c"]
        with pytest.raises(rnnjit.UnsupportedError, match="every installed backend declined"):
            dispatch.choose(SPEC, PROBLEM, None)


def test_a_named_backend_is_never_replaced():
    fast = rnnjit.compile(nn.RNN(4, 5), backend=Stub("mine", declines=["too small", "too slow"]))
    for _ in range(2):
        with pytest.raises(rnnjit.UnsupportedError) as caught:
            fast(torch.randn(3, 2, 4))
        assert caught.value.backend == "mine"
        assert caught.value.reasons == ("too small", "too slow")
    assert str(caught.value) == (
        "backend 'mine' cannot run this call: too small; too slow. "
        "Use backend='auto' to let another backend answer."
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_the_error_survives_copying_and_pickling(copied):
    error = rnnjit.UnsupportedError("mine", ["too small"])
    other = copied(error)
    assert type(other) is rnnjit.UnsupportedError
    assert isinstance(other, RuntimeError)
    assert (other.backend, other.reasons, str(other)) == ("mine", ("too small",), str(error))


def test_a_choice_is_made_once_for_each_problem_and_the_memory_of_them_is_bounded():
    stub = Stub("mine")
    fast = rnnjit.compile(nn.RNN(1, 1), backend=stub)
    with torch.no_grad():
        for _ in range(3):
            fast(torch.zeros(1, 2, 1))
        assert stub.asked == 1
        for batch in range(1100):
            fast(torch.zeros(1, batch, 1))
    assert stub.asked > 1000
    assert len(fast._choices) <= 512


def test_a_changed_configuration_is_chosen_for_anew():
    stub = Stub("mine")
    fast = rnnjit.compile(nn.RNN(2, 2), backend=stub)
    fast(torch.zeros(1, 1, 2))
    fast.mode = "RNN_RELU"
    y, _ = fast(torch.ones(1, 1, 2))
    assert stub.asked == 2
    assert bool((y >= 0).all())
    assert fast.nonlinearity == "tanh"  # as eager's attribute, which only construction reads


def test_resolve():
    assert registry.resolve("auto") is None
    assert registry.resolve("eager") is rnnjit.backends()["eager"]
    assert registry.resolve(FAST) is FAST


def test_a_backend_without_a_backward_pass_says_so():
    class ForwardOnly(rnnjit.Backend):
        name = "half"

        def why_not(self, spec, problem):
            return []

        def forward(self, *args):
            return RecomputeBackend().forward(*args)

    fast = rnnjit.compile(nn.RNN(4, 5), backend=ForwardOnly())
    assert repr(fast.backend) == "<ForwardOnly 'half'>"
    with pytest.raises(NotImplementedError, match="backend 'half' has no backward pass"):
        fast(torch.randn(3, 2, 4))[0].sum().backward()


def test_auto_asks_the_quickest_first_where_nothing_was_measured():
    automatic = [name for name, backend in rnnjit.backends().items() if backend.automatic]
    assert automatic == ["cuda", "numba", "tvm", "inductor", "eager"]
