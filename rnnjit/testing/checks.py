"""What the kit demands: plain functions `check_x(backend, case)` that raise AssertionError.

Each compiles the case's module for `backend` and holds it against the module itself, torch's own
layer, or in the place of a quantized one against `rnnjit.testing.int8`. `backend` is a `Backend`,
or a name as `rnnjit.compile` takes it. While the backend runs, fresh memory is filled with NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import rnnjit
from rnnjit.backend import Backend
from rnnjit.dispatch.choice import verdict, why_not_cell
from rnnjit.errors import UnsupportedError, described
from rnnjit.spec import Problem, RNNSpec
from rnnjit.testing.calls import Call, build, forward, gradients, named_states
from rnnjit.testing.case import Case
from rnnjit.testing.cases import REQUIRED_CELLS
from rnnjit.testing.compare import Standard, compare, expect_same, same_bits, standard
from rnnjit.testing.poison import poisoned
from rnnjit.testing.procedures import (
    CHANGES,
    Procedure,
    all_states,
    double_backward,
    interleaved,
    overwritten,
    with_gradients,
    without_gradients,
)


def check_forward(backend: Backend | str, case: Case) -> None:
    """Without gradients, the output and the last states are eager's."""
    _compare(without_gradients, backend, case)


def check_gradients(backend: Backend | str, case: Case) -> None:
    """With gradients, the output, the last states and all gradients are eager's."""
    _compare(with_gradients, backend, case)


def check_refusal(backend: Backend, case: Case) -> None:
    """There are reasons to decline exactly when the call raises `UnsupportedError` with them.

    They are dispatch's, which come from what the backend declares or from its methods. A required
    case may not be declined by a backend that computes the cell, and every backend computes those
    of `REQUIRED_CELLS`; a quantized one by a backend that declares `quantized`. A case that is
    accepted must run.
    """
    _check_declared(backend)
    for needs_grad in (False, True):
        reasons = _reasons(backend, case, needs_grad=needs_grad)
        if reasons != _reasons(backend, case, needs_grad=needs_grad):
            raise AssertionError("the backend gave two answers to one question")
        if reasons and _must_take(backend, case):
            raise AssertionError(f"declined, but it must be taken: {'; '.join(reasons)}")
        call = build(case)
        fast = _compiled(backend, call)
        try:
            with torch.set_grad_enabled(needs_grad), poisoned():
                y, h_n, _ = forward(fast, call)
                if needs_grad:
                    gradients(call, y, h_n)
        except UnsupportedError as error:
            if error.backend != backend.name or error.reasons != reasons:
                raise AssertionError(
                    f"raised {error!r}, but the backend gave the reasons {reasons}"
                ) from error
        except Exception as error:
            said = "accepted the call" if not reasons else f"declined ({'; '.join(reasons)})"
            raise AssertionError(
                f"the backend {said}, and then it raised {described(error)}"
            ) from error
        else:
            if reasons:
                raise AssertionError(f"ran, although declined: {'; '.join(reasons)}")


def check_inputs_untouched(backend: Backend | str, case: Case) -> None:
    """Neither pass writes to the input, an initial state, a weight or an incoming gradient."""
    call = build(case)
    watched = call.inputs() | call.incoming()
    before = {name: tensor.detach().clone() for name, tensor in watched.items()}
    fast = _compiled(backend, call)
    without_gradients(fast, call)
    with_gradients(fast, call)
    for name, tensor in watched.items():
        if not same_bits(before[name], tensor):
            raise AssertionError(f"{name} was written to")


def check_fresh_outputs(backend: Backend | str, case: Case) -> None:
    """Outputs share memory with nothing: not with an input, not with each other."""
    call = build(case)
    fast = _compiled(backend, call)
    with torch.no_grad():
        y, h_n, _ = forward(fast, call)
        outputs = {"y": y} | named_states(case, h_n, "_n")
        others = outputs | call.inputs()
        for name, output in outputs.items():
            del others[name]
            before = {other: tensor.clone() for other, tensor in others.items()}
            output.fill_(7)
            for other, tensor in others.items():
                if not same_bits(before[other], tensor):
                    raise AssertionError(f"{other} shares memory with {name}")


def check_interleaved_calls(backend: Backend | str, case: Case) -> None:
    """A second call changes neither the outputs of the first nor its backward pass."""
    _compare(interleaved, backend, case)


def check_stale_weights(backend: Backend | str, case: Case) -> None:
    """A weight changed in any way between two calls counts from the next call on.

    The floating-point weights of a quantized layer change, its scales among them, and by
    `load_state_dict` the int8 matrices and their sums.
    """
    call = build(case)
    fast = _compiled(backend, call)
    with_gradients(fast, call)
    for how, change in CHANGES.items():
        change(call.module)
        got = with_gradients(fast, call)
        try:
            compare(got, Standard(with_gradients, call))
        except AssertionError as error:
            raise AssertionError(f"after the weights changed through {how}: {error}") from error


def check_overwritten_output(backend: Backend | str, case: Case) -> None:
    """The gradients are right even if the caller overwrites the outputs before the way back."""
    _compare(overwritten, backend, case)


def check_repeated(backend: Backend | str, case: Case) -> None:
    """One call made again gives the same bits, and so does going back through one call again."""
    call = build(case)
    fast = _compiled(backend, call)
    with poisoned():
        y, h_n, _ = forward(fast, call)
        outputs = {"y": y} | named_states(case, h_n, "_n")
        grads = gradients(call, y, h_n)
        expect_same("the second pass back through the same call", gradients(call, y, h_n), grads)
    for _ in range(2):
        again = with_gradients(fast, call)
        expect_same("a second call", again, {**outputs, **grads})


def check_double_backward(backend: Backend | str, case: Case) -> None:
    """Gradients of gradients are eager's."""
    _compare(double_backward, backend, case, double_backward)


def check_all_states(backend: Backend | str, case: Case) -> None:
    """With `return_states`, the states of every step and the gradients through them are eager's."""
    _compare(all_states, backend, case, all_states)


class Check(NamedTuple):
    """One demand of the kit.

    Attributes:
        run: `run(backend, case)`; raises AssertionError if the backend does not meet the demand.
        needs_grad: whether the calls it makes are recorded for autograd.
        applies: whether it is made of a case.
    """

    run: Callable[[Backend, Case], None]
    needs_grad: bool
    applies: Callable[[Case], bool]


def _always(case: Case) -> bool:
    return True


def _thorough(case: Case) -> bool:
    return case.thorough


def _recorded(case: Case) -> bool:
    return not case.quantized


def _thorough_recorded(case: Case) -> bool:
    return case.thorough and not case.quantized


def _weights_may_change(case: Case) -> bool:
    """Whether a case is sharp with any weights.

    Of a quantized layer that is one step alone, whose integers do not depend on scales and biases.
    """
    one_step = case.steps == 1 and case.num_layers == 1 and not case.proj_size
    return case.thorough and (one_step or not case.quantized)


def _steps_are_calls(case: Case) -> bool:
    """Whether torch's own layer, called step by step, gives all states, and y does not."""
    several = len(case.states) > 1 and case.T > 1
    time_major = not (case.batch_first or case.unbatched or case.lengths)
    return several and time_major and case.num_layers == 1 and not case.bidirectional


CHECKS: dict[str, Check] = {
    "refusal": Check(check_refusal, False, _always),
    "forward": Check(check_forward, False, _always),
    "gradients": Check(check_gradients, True, _recorded),
    "inputs_untouched": Check(check_inputs_untouched, True, _thorough),
    "fresh_outputs": Check(check_fresh_outputs, False, _thorough),
    "interleaved_calls": Check(check_interleaved_calls, True, _thorough),
    "stale_weights": Check(check_stale_weights, True, _weights_may_change),
    "overwritten_output": Check(check_overwritten_output, True, _thorough_recorded),
    "repeated": Check(check_repeated, True, _always),
    "double_backward": Check(
        check_double_backward, True, lambda case: case.thorough and case.dtype == torch.float64
    ),
    "all_states": Check(check_all_states, True, _steps_are_calls),
}


def _compare(
    procedure: Procedure,
    backend: Backend | str,
    case: Case,
    of_eager: Procedure = with_gradients,
) -> None:
    """Hold what a procedure gives against what eager gives where nobody interferes."""
    call = build(case)
    compare(procedure(_compiled(backend, call), call), standard(of_eager, case))


def _compiled(backend: Backend | str, call: Call) -> nn.Module:
    # `compile` leaves a layer whose cell the backend lacks as it is: here the call is to say so.
    fast = rnnjit.compile(call.module, backend="eager")
    fast.backend = backend  # type: ignore[assignment]  # a property of the compiled class
    return fast


def _check_declared(backend: Backend) -> None:
    """What a backend declares is of the form that dispatch reads."""
    for name, kind, of in (
        ("devices", tuple, str),
        ("dtypes", tuple, torch.dtype),
        ("operations", frozenset, str),
    ):
        value = getattr(backend, name)
        if value is None:
            continue
        if not isinstance(value, kind) or not all(isinstance(item, of) for item in value):
            raise AssertionError(
                f"{name} must be a {kind.__name__} of {of.__name__} or None, it is {value!r}"
            )
    if not isinstance(backend.quantized, bool):
        raise AssertionError(f"quantized must be a bool, it is {backend.quantized!r}")


def _reasons(backend: Backend, case: Case, *, needs_grad: bool) -> tuple[str, ...]:
    """Why dispatch declines the case for a backend, whose own answers must be lists of reasons."""
    spec, problem = case.lowered, case.problem(needs_grad=needs_grad)
    methods: dict[str, Callable[[], object]] = {
        "why_not_cell": lambda: backend.why_not_cell(spec.cell),
        "missing": backend.missing,
        "why_not": lambda: backend.why_not(spec, problem),
    }
    for name, ask in methods.items() if _declares(backend, spec, problem) else ():
        try:
            answer = ask()
        except Exception as error:
            raise AssertionError(
                f"{name} raised {described(error)}; it must return reasons"
            ) from error
        if not isinstance(answer, list) or not all(isinstance(r, str) and r for r in answer):
            raise AssertionError(f"{name} must return a list of reasons, it returned {answer!r}")
        if answer:
            break
    return verdict(backend, spec, problem).reasons


def _must_take(backend: Backend, case: Case) -> bool:
    """Whether a backend may not decline a case."""
    cell, declared = case.lowered.cell, backend.quantized or not case.quantized
    return (
        case.required and declared and (cell in REQUIRED_CELLS or not why_not_cell(backend, cell))
    )


def _declares(backend: Backend, spec: RNNSpec, problem: Problem) -> bool:
    """Whether a call is one of those about which a backend is asked at all."""
    devices, dtypes, operations = backend.devices, backend.dtypes, backend.operations
    return (
        (devices is None or problem.device in devices)
        and (dtypes is None or problem.dtype in dtypes)
        and (operations is None or spec.cell.operations <= operations)
        and (backend.quantized or not spec.quantized)
    )
