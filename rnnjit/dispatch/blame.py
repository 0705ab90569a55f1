"""Tells the exceptions of a backend's own code from those that the user's code raises in a call.

A signal handler may raise inside a backend, for example on a time limit. A saved-tensor hook may
raise while autograd saves tensors; torch.utils.checkpoint ends a forward pass in this way. Only an
exception of the backend's own is its failure, for which another backend may run the call.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from types import CodeType, FrameType
from typing import Any

from rnnjit.runtime.torch_private import saved_tensor_hooks

_OWN = "_rnnjit_raised_by_backend"
#: What `rnnjit.runtime.compile_once` sets on an exception that ended its wait.
_OUTSIDE = "rnnjit_from_outside"


def blame(error: Exception, *, recorded: bool) -> None:
    """Record that an exception comes from a method of a backend, unless it is the user's.

    Args:
        error: the exception, which is being handled where the method was called.
        recorded: whether autograd records what the method does, and so calls the user's hooks.
    """
    hooked = recorded and saved_tensor_hooks()
    # A warning is an exception only where the user wants it to be.
    if not hooked and not isinstance(error, Warning) and not from_outside(error):
        setattr(error, _OWN, True)


def blamed(error: BaseException) -> bool:
    """Whether `blame` recorded an exception."""
    return getattr(error, _OWN, False)


def from_outside(error: BaseException) -> bool:
    """Whether a signal handler raised an exception, or that from which it was raised.

    Its traceback then has the frame of a function that is a handler, or of one that got the frame
    before it as an argument: a handler gets that which it interrupts.
    """
    handlers = _handlers()
    return any(
        getattr(each, _OUTSIDE, False) or _from_handler(each, handlers) for each in _chain(error)
    )


def _handlers() -> set[CodeType]:
    """The code of the signal handlers that are set."""
    found = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        for each in (handler, vars(type(handler)).get("__call__")):
            code = getattr(each, "__code__", None)  # a bound method has that of its function
            if isinstance(code, CodeType):
                found.add(code)
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _from_handler(error: BaseException, handlers: set[CodeType]) -> bool:
    interrupted: FrameType | None = None
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if frame.f_code in handlers:
            return True
        if interrupted is not None:
            for value in frame.f_locals.values():
                given = value if type(value) is tuple else (value,)
                if any(each is interrupted for each in given):
                    return True
        interrupted, step = frame, step.tb_next
    return False
