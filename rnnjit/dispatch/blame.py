"""Tells the exceptions of a backend's own code from those that the user's code raises in a call.

A signal handler may raise inside a backend, for example on a time limit. A saved-tensor hook may
raise while autograd saves tensors; torch.utils.checkpoint ends a forward pass in this way. Only an
exception of the backend's own is its failure, for which another backend may run the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType

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
    if not (recorded and saved_tensor_hooks()) and not from_outside(error):
        setattr(error, _OWN, True)


def blamed(error: BaseException) -> bool:
    """Whether `blame` recorded an exception."""
    return getattr(error, _OWN, False)


def from_outside(error: BaseException) -> bool:
    """Whether a signal handler raised an exception, or that from which it was raised.

    A handler gets the frame that it interrupts as an argument. In a traceback its frame comes right
    after that frame.
    """
    return any(getattr(each, _OUTSIDE, False) or _from_handler(each) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _from_handler(error: BaseException) -> bool:
    interrupted: FrameType | None = None
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if interrupted is not None:
            for value in frame.f_locals.values():
                given = value if type(value) is tuple else (value,)
                if any(each is interrupted for each in given):
                    return True
        interrupted, step = frame, step.tb_next
    return False
