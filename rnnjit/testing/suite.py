"""The pairs of check and case that make the kit, and the decorator that hands them to pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from rnnjit.backend import Backend
from rnnjit.dispatch.choice import verdict
from rnnjit.dispatch.registry import backends as installed
from rnnjit.dispatch.registry import resolve
from rnnjit.testing.case import Case
from rnnjit.testing.cases import CASES, product_cases
from rnnjit.testing.checks import CHECKS, Check

TestT = TypeVar("TestT", bound=Callable[..., Any])


class Pair(NamedTuple):
    """A check and the case that it is made of.

    Attributes:
        name: of the check.
        check: the check.
        case: the case.
    """

    name: str
    check: Check
    case: Case

    def id_for(self, backend: Backend) -> str:
        """`<backend>-<check>-<case>`."""
        return f"{backend.name}-{self.name}-{self.case.id}"

    def declined_by(self, backend: Backend) -> list[str]:
        """Why the backend declines the case, if this check is one to be left out for it.

        The refusal check is made of every case. An answer that fails is for that check to report.
        """
        if self.name == "refusal":
            return []
        try:
            problem = self.case.problem(needs_grad=self.check.needs_grad)
            return list(verdict(backend, self.case.lowered, problem).reasons)
        except Exception:  # noqa: BLE001 - a backend under test may fail in any way
            return []


def pairs(*, quick: bool = False, full: bool = False, device: str = "cpu") -> Iterator[Pair]:
    """The pairs of the kit, with their tensors on a device.

    Args:
        quick: only those of the quick subset.
        full: those of every combination of a layer's options, too (`product_cases`).
        device: type of the device.
    """
    chosen = [case for case in CASES if case.quick or not quick]
    for case in (*chosen, *(product_cases() if full else ())):
        case = replace(case, device=device)
        for name, check in CHECKS.items():
            if check.applies(case):
                yield Pair(name, check, case)


def device_of(backend: Backend) -> str:
    """The type of the device on which a backend is held against eager."""
    devices = backend.devices
    # Anything else is for the refusal check to report.
    return devices[0] if isinstance(devices, tuple) and devices else "cpu"


def named(backend: str | Backend) -> Backend:
    """The one backend meant by an argument.

    Raises:
        TypeError: it is neither a string nor a `Backend`.
        ValueError: no installed backend has that name, or it is "auto".
    """
    found = resolve(backend)
    if found is None:
        raise ValueError("'auto' is no backend: name one, or give none for all that are installed")
    return found


def conformance(
    *backends: str | Backend, xfails: Mapping[str, str] | None = None
) -> Callable[[TestT], TestT]:
    """Parametrize a pytest function `test(backend, case, check)` with the whole kit.

    Test ids read `<backend>-<check>-<case>`. What a backend declines is not run, except for the
    check that it declines properly. A backend that this machine cannot run is one skipped test
    that gives the reasons.

    Args:
        *backends: names of installed backends, or instances; none for all that are installed.
        xfails: reasons for the tests that are known to fail, by their ids. One that passes after
            all is a failure.

    Raises:
        TypeError: a backend is neither a string nor a `Backend`.
        ValueError: no installed backend has that name, or an id in `xfails` is none of the kit's.

    Example:
        >>> @conformance("eager")
        ... def test_conformance(backend, case, check):
        ...     check(backend, case)
    """
    import pytest

    chosen = [named(backend) for backend in backends] or list(installed().values())
    expected = dict(xfails or {})
    known = {pair.id_for(backend) for backend in chosen for pair in pairs()}
    unknown = sorted(expected.keys() - known)
    if unknown:
        raise ValueError(f"xfails names tests that the kit does not have: {', '.join(unknown)}")
    parameters = []
    for backend in chosen:
        missing = backend.missing()
        if missing:
            skip = pytest.mark.skip(reason=f"{backend.name}: {'; '.join(missing)}")
            parameters.append(
                pytest.param(backend, None, None, id=f"{backend.name}-unavailable", marks=skip)
            )
            continue
        for pair in pairs(device=device_of(backend)):
            if pair.declined_by(backend):
                continue
            name = pair.id_for(backend)
            marks = [] if pair.case.quick else [pytest.mark.rnnjit_thorough]
            if name in expected:
                marks.append(pytest.mark.xfail(reason=expected[name], strict=True))
            parameters.append(
                pytest.param(backend, pair.case, pair.check.run, id=name, marks=marks)
            )
    return pytest.mark.parametrize(("backend", "case", "check"), parameters)
