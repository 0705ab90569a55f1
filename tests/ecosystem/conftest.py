"""What tests of this folder share."""

import copy

import pytest
import torch
from layer_kinds import kinds_on_few
from trained_pair import Model

import rnnjit


@pytest.fixture(params=kinds_on_few("before", "after"))
def operated(request):
    """A function that does surgery on an eager model and a compiled one, before or after."""
    make, backend, when = request.param

    def operate(surgery):
        torch.manual_seed(0)
        eager = Model(make).double()
        fast = copy.deepcopy(eager)
        if when == "after":
            fast = rnnjit.compile(fast, backend=backend, inplace=True)
        for model in (eager, fast):
            torch.manual_seed(1)
            surgery(model)
        if when == "before":
            fast = rnnjit.compile(fast, backend=backend, inplace=True)
        return eager, fast

    return operate
