"""Protects the constants of a trace: a change of any Python value that a step reads is seen."""

import copy
import functools
import gc
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from user_cells import Kept

import rnnjit
from rnnjit.cells import Cell, trace_cell
from rnnjit.cells.guards import Guards

I, H = 3, 4
BEFORE, AFTER = 0.5, 2.0

scale = BEFORE
scales = [BEFORE]
of_a_module = types.ModuleType("of_a_module")
of_a_module.scale = BEFORE


class Scaled(Cell):
    """The step of a subclass multiplies by `factor`, which says where the number comes from."""

    by_class = BEFORE

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.number, self.values, self.table = BEFORE, [BEFORE], {"a": (BEFORE,)}
        self.deep = [[[[[[BEFORE]]]]]]
        self.names = types.SimpleNamespace(scale=BEFORE)
        self.slots, self.chosen = Slots(), {BEFORE}
        self.array, self.scalar = np.array([BEFORE, 1.0]), np.float32(BEFORE)
        self.partial = functools.partial(pow, BEFORE)
        self.act = nn.LeakyReLU(BEFORE)

    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.factor() * self.hh(h))


class Slots:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = BEFORE


def by_helper():
    return scale


def set_global(name, value):
    globals()[name] = value


def closure():
    held = BEFORE

    def factor(self):
        return held

    def change(cell):
        nonlocal held
        held = AFTER

    return factor, change


def with_default(self, value=BEFORE):
    return value


def method(self):
    return self.of_class()


class Hook:
    """A hook on the submodule that multiplies."""

    def __call__(self, module, args, output):
        return 4 * output


#: For each kind of value the method that reads it, and what changes it from BEFORE to AFTER.
KINDS = {
    "attribute": (lambda self: self.number, lambda cell: setattr(cell, "number", AFTER)),
    "list": (lambda self: self.values[0], lambda cell: cell.values.__setitem__(0, AFTER)),
    "length": (lambda self: len(self.values) / 2, lambda cell: cell.values.extend([0.0] * 3)),
    "dict": (lambda self: self.table["a"][0], lambda cell: cell.table.update(a=(AFTER,))),
    "deep": (
        lambda self: self.deep[0][0][0][0][0][0],
        lambda cell: cell.deep[0][0][0][0][0].__setitem__(0, AFTER),
    ),
    "namespace": (lambda self: self.names.scale, lambda cell: setattr(cell.names, "scale", AFTER)),
    "slots": (lambda self: self.slots.scale, lambda cell: setattr(cell.slots, "scale", AFTER)),
    "set": (lambda self: max(self.chosen), lambda cell: cell.chosen.add(AFTER)),
    "array": (lambda self: float(self.array[0]), lambda cell: cell.array.fill(AFTER)),
    "numpy's number": (
        lambda self: float(self.scalar),
        lambda cell: setattr(cell, "scalar", np.float32(AFTER)),
    ),
    "new attribute": (
        lambda self: getattr(self, "new", BEFORE),
        lambda cell: setattr(cell, "new", AFTER),
    ),
    "partial": (
        lambda self: self.partial(1),
        lambda cell: setattr(cell, "partial", functools.partial(pow, AFTER)),
    ),
    "class": (lambda self: self.by_class, lambda cell: setattr(type(cell), "by_class", AFTER)),
    "method of the class": (
        method,
        lambda cell: setattr(type(cell), "of_class", lambda self: AFTER),
    ),
    "global": (lambda self: scale, lambda cell: set_global("scale", AFTER)),
    "global list": (lambda self: scales[0], lambda cell: scales.__setitem__(0, AFTER)),
    "global of a helper": (lambda self: by_helper(), lambda cell: set_global("scale", AFTER)),
    "module": (lambda self: of_a_module.scale, lambda cell: setattr(of_a_module, "scale", AFTER)),
    "closure": closure(),
    "default": (with_default, lambda cell: setattr(with_default, "__defaults__", (AFTER,))),
    "submodule's attribute": (
        lambda self: -self.act(torch.tensor(-1.0)),
        lambda cell: setattr(cell.act, "negative_slope", AFTER),
    ),
    "submodule": (
        lambda self: -self.act(torch.tensor(-1.0)),
        lambda cell: setattr(cell, "act", nn.LeakyReLU(AFTER)),
    ),
    "hook": (
        lambda self: -self.act(torch.tensor(-1.0)),
        lambda cell: cell.act.register_forward_hook(Hook()),
    ),
}


@pytest.fixture
def restored(monkeypatch):
    """What is changed here is put back."""
    monkeypatch.setitem(globals(), "scale", BEFORE)
    monkeypatch.setitem(globals(), "scales", [BEFORE])
    monkeypatch.setattr(of_a_module, "scale", BEFORE)
    monkeypatch.setattr(with_default, "__defaults__", (BEFORE,))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_what_a_step_reads_counts_from_the_next_call_on(kind):
    factor, change = KINDS[kind]
    members = {"factor": factor, "of_class": lambda self: BEFORE}
    cell = type("Mine", (Scaled,), members)(I, H).double()
    module = rnnjit.Recurrent(cell)
    fast = rnnjit.compile(module, inplace=True, backend=Kept())
    x = torch.randn(3, 2, I).double()

    def expected(value):
        h, found = torch.zeros(2, H).double(), []
        for row in x:
            zx = row @ module.weight_ih_l0.T + module.bias_ih_l0
            zh = h @ module.weight_hh_l0.T + module.bias_hh_l0
            h = torch.tanh(zx + value * zh)
            found.append(h)
        return torch.stack(found)

    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x)[0], expected(BEFORE))
        change(module.cells[0])
        for _ in range(2):
            torch.testing.assert_close(fast(x)[0], expected(AFTER))


def test_what_is_equal_is_not_traced_again():
    cell = type("Mine", (Scaled,), {"factor": lambda self: self.values[0] + self.number})(I, H)
    first = trace_cell(cell)
    cell.values, cell.number, cell.act = [BEFORE], float("0.5"), nn.LeakyReLU(BEFORE)
    assert trace_cell(cell) is first
    cell.number = 0.0
    other = trace_cell(cell)
    cell.number = -0.0
    assert trace_cell(cell) not in (first, other)


def test_guards_see_the_sign_of_zero_and_what_was_deleted():
    cell = type("Mine", (Scaled,), {"factor": lambda self: self.number})(I, H)
    cell.number = 0.0
    guards = Guards([cell])
    assert guards()
    assert not copy.deepcopy(guards)()
    cell.number = -0.0
    assert not guards()
    guards = Guards([cell])
    del cell.number
    assert not guards()


def test_values_may_hold_each_other_and_be_many():
    cell = type("Mine", (Scaled,), {"factor": lambda self: 1.0})(I, H)
    cell.values.append(cell.values)
    cell.many, cell.large = [[k] for k in range(5000)], list(range(20_000))
    cell.of_its_own = cell.factor
    assert Guards([cell])()
    assert trace_cell(cell) is trace_cell(cell)


def test_a_trace_keeps_no_value_alive_that_the_cell_holds():
    cell = type("Mine", (Scaled,), {"factor": lambda self: 1.0})(I, H)
    cell.names = types.SimpleNamespace(inside=Hook())
    trace_cell(cell)
    held = weakref.ref(cell.names.inside)
    cell.names = None
    gc.collect()
    assert held() is None
