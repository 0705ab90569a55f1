"""What tests of this folder share."""

import copy
from functools import partial

import pytest
import torch
from eager_pair import FEW
from trained_pair import Model

import rnnjit


@pytest.fixture(params=FEW, ids=lambda b: b.name)
def compiled_inplace(request):
    return partial(rnnjit.compile, backend=request.param, inplace=True)


@pytest.fixture(params=["before", "after"])
def operated(request, compiled_inplace):
    """A function that does surgery on an eager model and a compiled one, before or after."""

    def operate(surgery):
        torch.manual_seed(0)
        eager = Model().double()
        fast = copy.deepcopy(eager)
        torch.manual_seed(1)
        surgery(eager)
        if request.param == "before":
            torch.manual_seed(1)
            surgery(fast)
            return eager, compiled_inplace(fast)
        fast = compiled_inplace(fast)
        torch.manual_seed(1)
        surgery(fast)
        return eager, fast

    return operate
