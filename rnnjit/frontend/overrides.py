"""Calls that torch's own layer must run, since something else interprets torch's functions in them.

Such are objects with a `__torch_function__` (tensor subclasses, wrappers that are no tensors, the
weights of per-sample gradients, the proxies of torch.fx) and torch.jit.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import has_torch_function

from rnnjit.errors import RNNJitWarning
from rnnjit.frontend.compiled_class import COMPILED_ATTRIBUTES
from rnnjit.runtime.torch_private import function_mode, parameters_of, refer_weakly

_PLAIN = frozenset({Tensor, Parameter, type(None)})


def overriding(module: nn.Module, x: Any, hx: Any) -> str:
    """Why torch's own layer must run a call, or "" if it need not.

    Args:
        module: the module that is called.
        x: its input.
        hx: its initial state.
    """
    if function_mode():
        return "a TorchFunctionMode is active, which must see torch's own layer"
    data = x.data if isinstance(x, PackedSequence) else x
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    weights = parameters_of(module).values()
    for kind, values in (("an argument", (data, *states)), ("a weight", weights)):
        for value in values:
            if type(value) not in _PLAIN and has_torch_function((value,)):
                name = type(value).__name__
                return f"{kind} is a {name}, whose __torch_function__ must see torch's own layer"
    return ""


def fx_node(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The node by which torch.fx records a call of a module, as it does for torch's own layers.

    Args:
        module: the module that is called.
        *args: its arguments.
        **kwargs: its keyword arguments, None for those that were not given.

    Returns:
        A proxy, or None if torch.fx does not trace a model that contains the module.
    """
    found: list[fx.Proxy] = []
    given = {name: value for name, value in kwargs.items() if value is not None}
    every = (*args, *given.values())
    fx.node.map_aggregate(
        every, lambda arg: found.append(arg) if isinstance(arg, fx.Proxy) else arg
    )
    if not found or getattr(found[0].tracer, "root", module) is module:
        return None
    tracer: Any = found[0].tracer
    while args and args[-1] is None:
        args = args[:-1]
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)


def as_torch_module(module: nn.Module, source: type[nn.Module]) -> nn.Module:
    """A module of an uncompiled class that shares the tensors of a compiled one.

    Args:
        module: a compiled module.
        source: the class of the module that it was compiled from.
    """
    plain: nn.Module = object.__new__(source)  # a `__new__` of the user's may need arguments
    vars(plain).update({k: v for k, v in vars(module).items() if k not in COMPILED_ATTRIBUTES})
    vars(plain)["_modules"] = dict(vars(module)["_modules"])
    refer_weakly(plain)
    return plain


def warn_unquantized(torch_class: type[nn.Module]) -> None:
    """Warn that torch.ao.quantization leaves a compiled module as it is, where it knows torch's.

    It finds modules by their type, and assigns `qconfig` to every module before.
    """
    from torch.ao.quantization import get_default_dynamic_quant_module_mappings

    if torch_class in get_default_dynamic_quant_module_mappings():
        warnings.warn(
            f"torch.ao.quantization does not quantize a compiled {torch_class.__name__}: quantize "
            "the model before rnnjit.compile",
            RNNJitWarning,
            stacklevel=2,
        )


def scriptable(module: nn.Module, source: type[nn.Module]) -> nn.Module:
    """The module that torch.jit.script takes for a compiled one, with a warning.

    torch.jit.script compiles it, and puts it into the model that is scripted as well.
    """
    warnings.warn(
        "torch.jit.script runs torch's own layer in the place of a compiled one, and leaves it in "
        "the Python model: script a copy (copy.deepcopy) to keep the model compiled",
        RNNJitWarning,
        stacklevel=2,
    )
    return as_torch_module(module, source)
