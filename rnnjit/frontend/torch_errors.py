"""Gives the errors of malformed calls the types and the words of torch.

Our checks come before any kernel, and say which argument is wrong and what to do. Tests and log
filters that were written for torch look for its exceptions and its sentences. Most of these come
from C++ and differ between versions, so they are not copied. Where our checks refuse a call,
torch's own `forward` gets the same arguments, and the user sees torch's sentence, then ours.

Torch is not asked where it does not check what it reads (see `_may_ask`): there, ours stands alone.
"""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.frontend.arguments import StateDtypeError, check_weights
from rnnjit.frontend.capture import capture, is_quantized, weight_names, weights_of
from rnnjit.frontend.packed import check_batch_sizes, check_order
from rnnjit.runtime.torch_private import flat_weights_stay

#: What the checks of a call raise. Anything else, a signal handler's say, is not about the call.
REFUSALS = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
#: Types whose message can be replaced. A subclass may need other arguments, or carry more.
_PLAIN = frozenset({*REFUSALS, NotImplementedError})
#: Layers whose weights torch hands to oneDNN, which reads as many elements as it expects, and whose
#: states it does not check if the input is packed. It ends the process at some of these calls.
_UNCHECKED = (nn.LSTM,)
#: Elements of the zeros that torch may make of sizes that nothing vouches for.
_LARGEST = 2**24


def refusal(error: Exception, module: Any, x: Any, hx: Any) -> Exception:
    """The exception to raise for a call that our checks refuse.

    Args:
        error: what our checks raised.
        module: the compiled module.
        x: the input, as the caller gave it.
        hx: the initial state, as the caller gave it.

    Returns:
        An exception of the type that torch raises, with torch's sentence before ours; or `error`
        itself if torch takes the call or must not be asked.
    """
    theirs = _raised_by_torch(module, x, hx) if _may_ask(module, x, hx) else None
    if theirs is None or isinstance(theirs, Warning):
        return _renamed(error, module)
    return _of_both(theirs, error, module)


def promoted(error: StateDtypeError, module: Any, x: Any, hx: Any) -> Any:
    """What torch's own `forward` returns for a call whose states differ in dtype.

    Torch promotes dtypes where a state meets no weight. Whether it takes a call depends on the
    number of steps, on the layers and on oneDNN, which it uses on some processors: it is asked.

    Args:
        error: what our checks raised.
        module: the compiled module, not quantized.
        x: the input, as the caller gave it.
        hx: the initial states, as the caller gave them.

    Raises:
        RuntimeError: torch refuses the call, too; its sentence stands before ours.
    """
    try:
        if isinstance(x, PackedSequence) and not x.batch_sizes.is_contiguous():
            # Torch reads the memory of sizes as if they had no gaps.
            own = x._replace(batch_sizes=x.batch_sizes.contiguous())
            y, h_n = module._torch_class.forward(module, own, hx)
            return y._replace(batch_sizes=x.batch_sizes), h_n
        return module._torch_class.forward(module, x, hx)
    except REFUSALS as raised:
        theirs = _of_both(raised.with_traceback(None), error, module)
    raise theirs from None


def _of_both(theirs: Exception, error: Exception, module: Any) -> Exception:
    """Torch's exception with our words after its own; as it is if it is of another class."""
    if type(theirs) not in _PLAIN:
        return theirs
    said, added = (str(_renamed(each, module)).strip() for each in (theirs, error))
    return type(theirs)(_joined(said.partition("\n\n")[0], added))  # a list of kernels may follow


def _renamed(error: Exception, module: Any) -> Exception:
    """An error in which the module goes by the name of the class that the user wrote."""
    names = f"'{type(module).__name__}' object", f"'{module._source_class.__name__}' object"
    if isinstance(error, AttributeError) and names[0] in str(error):
        return AttributeError(str(error).replace(*names))
    return error


def _joined(said: str, added: str) -> str:
    """Torch's sentence and ours, or one of them if it contains the other."""
    if said in added or added in said:
        return max(said, added, key=len)
    if "\n" in said:
        return f"{said}\n{added}"
    return f"{said} {added}" if said.endswith((".", "!", "?")) else f"{said}: {added}"


def _raised_by_torch(module: Any, x: Any, hx: Any) -> Exception | None:
    """What torch's own `forward` raises; it leaves the state of the random generators."""
    devices = [tensor.device for tensor in _tensors(x, hx) if _elsewhere(tensor)][:1]
    kind, draws = devices[0].type if devices else "cuda", getattr(module, "training", False) is True
    with torch.random.fork_rng(devices, enabled=draws, device_type=kind):
        try:
            module._torch_class.forward(module, x, hx)
        except Exception as error:  # noqa: BLE001 - whatever torch raises is what the user gets
            return error.with_traceback(None)
    return None


def _may_ask(module: Any, x: Any, hx: Any) -> bool:
    """Whether torch's own `forward` checks everything that it would read in such a call.

    It does not check the values of `batch_sizes` in all of its kernels, nor their strides and
    device, nor what it hands to oneDNN and, on devices, to vendors' libraries. Nor may it allocate
    what only a mistake asks for.
    """
    if is_quantized(module):
        return False  # its forward takes no int8 matrices
    packed, unchecked = isinstance(x, PackedSequence), issubclass(module._torch_class, _UNCHECKED)
    if packed and (unchecked or not _packing_is_checked(x, hx)):
        return False
    fits = _weights_fit(module)
    if any(map(_elsewhere, (*_tensors(x, hx), *_weights(module)))):
        return fits and _checked_elsewhere(x, hx)
    if hx is None and (packed or not fits) and _state_size(module, x) > _LARGEST:
        return False
    return fits or not unchecked


def _packing_is_checked(packed: PackedSequence, hx: Any) -> bool:
    """Whether torch reads no other memory than that of the parts of a PackedSequence."""
    data: Any = packed.data
    sizes: Any = packed.batch_sizes
    orders = (packed.sorted_indices, packed.unsorted_indices)
    if not isinstance(data, Tensor):
        return True
    if any(isinstance(o, Tensor) and not o.is_cpu and o.device != data.device for o in orders):
        return False
    if not isinstance(sizes, Tensor) or sizes.is_meta:
        return True
    if sizes.dtype is not torch.int64 or sizes.layout is not torch.strided:
        return True  # torch refuses to take them for integers in memory
    try:
        check_batch_sizes(sizes, data, given_state=hx is not None)
    except IndexError:
        return True  # there are none
    except (RuntimeError, TypeError):
        return False
    return sizes.is_contiguous()


def _state_size(module: Any, x: Any) -> int:
    """At most how many elements the zeros have that torch makes of the sizes that it is given."""
    try:
        batch = int(x.batch_sizes[0]) if isinstance(x, PackedSequence) else max(x.shape[:2])
        return 2 * batch * index(getattr(module, "num_layers", 1)) * index(module.hidden_size)
    except Exception:  # noqa: BLE001 - torch then fails before it makes any
        return 0


def _weights_fit(module: Any) -> bool:
    """Whether the weights fit the configuration, and torch would use them as they are."""
    try:
        spec, weights = capture(module), weights_of(module)
        check_weights(spec, weight_names(module), weights)
    except REFUSALS:
        return False
    return isinstance(module, nn.RNNCellBase) or flat_weights_stay(module, weights)


def _checked_elsewhere(x: Any, hx: Any) -> bool:
    """Whether torch checks a call with these arguments on a device other than the CPU."""
    ready: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no types here
    if ready and torch.cuda.is_current_stream_capturing():
        return False  # what torch computes before it raises would become part of the graph
    if any(t.layout is not torch.strided or t.is_nested or t.is_quantized for t in _tensors(x, hx)):
        return False
    if not isinstance(x, PackedSequence):
        return True
    try:
        counts = check_batch_sizes(x.batch_sizes, x.data, given_state=hx is not None)
        for order in (x.sorted_indices, x.unsorted_indices):
            check_order("order", order, counts[0], x.data)
    except REFUSALS:
        return False
    return True


def _weights(module: Any) -> list[Tensor]:
    try:
        return [weight for weight in weights_of(module) if isinstance(weight, Tensor)]
    except REFUSALS:
        return []


def _tensors(x: Any, hx: Any) -> list[Tensor]:
    """The tensors among the arguments of a call."""
    data = x.data if isinstance(x, PackedSequence) else x
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    return [each for each in (data, *states) if isinstance(each, Tensor)]


def _elsewhere(tensor: Tensor) -> bool:
    """Whether a tensor has memory outside the CPU's."""
    return not (tensor.is_cpu or tensor.is_meta)
