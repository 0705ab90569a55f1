"""Every private name of torch that rnnjit uses: what for, and what happens in a torch without it.

No other module uses one. A name that is gone never fails an import: what it served is done by
public means, or is taken to be as the slower and safer way needs it to be.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

#: By name: what it is used for; what happens where torch lacks it.
NAMES = {
    "torch._C._functorch.peek_interpreter_stack": (
        "whether a torch.func transform is active",
        "one is taken to be: every call runs on torch's own operators",
    ),
    "torch._C._functorch.is_legacy_batchedtensor": (
        "whether a gradient is one of `is_grads_batched`",
        "it is taken to be: every backward pass is the reference's",
    ),
    "torch._C._are_functorch_transforms_active": (
        "whether a transform is active while torch.compile traces",
        "one is taken to be: the reference is traced",
    ),
    "torch._C._is_any_autocast_enabled": (
        "a quick look whether any device type is under autocast",
        "the device types are asked one by one",
    ),
    "torch._C._len_torch_dispatch_stack": (
        "whether a TorchDispatchMode is active",
        "one is taken to be: every call runs on torch's own operators",
    ),
    "torch._C._len_torch_function_stack": (
        "whether a TorchFunctionMode is active",
        "none is taken to be: such a mode does not see torch's layer",
    ),
    "torch._C._get_function_stack_at": ("as above", "as above"),
    "torch.utils._device.DeviceContext": (
        "a TorchFunctionMode that only sets a default device",
        "it is taken for any other mode: torch's own layers run below it",
    ),
    "torch._C._autograd._top_saved_tensors_default_hooks": (
        "whether the user's hooks run where autograd saves tensors",
        "they are taken to: an error of a differentiable backend is never replaced",
    ),
    "torch._C._get_tracing_state": (
        "whether torch.jit.trace is at work",
        "torch.jit.is_tracing is asked",
    ),
    "torch.autograd.forward_ad._current_level": (
        "whether forward-mode automatic differentiation is active",
        "it is taken to be: every call runs on torch's own operators",
    ),
    "torch.autograd.profiler._is_profiler_enabled": (
        "whether a profiler runs, by an attribute, for a streaming step has no time for a call",
        "one is taken to run: layers are named, and there is no fast path",
    ),
    "torch._C._dynamo.guards.TensorGuards": (
        "comparing tensors with those of an earlier call, for the fast path and streams",
        "there is no fast path, and a stream checks every step in full",
    ),
    "torch._C._dynamo.guards.GlobalStateGuard": (
        "comparing grad mode, autocast and thread count with those of an earlier call",
        "there is no fast path",
    ),
    "torch._C._dispatch_tls_local_include_set": (
        "letting a backward pass use autograd inside an operator",
        "a traced backward pass of a differentiable backend raises",
    ),
    "torch._C._dispatch_tls_local_exclude_set": ("as above", "as above"),
    "torch._C._ForceDispatchKeyGuard": ("as above", "as above"),
    "torch._C.DispatchKey": ("as above", "as above"),
    "torch._C._cuda_getCurrentRawStream": (
        "the address of the current CUDA stream",
        "torch.cuda.current_stream is asked",
    ),
    "torch._library.fake_impl.allocate_size": (
        "a size that is unknown while tracing, also where the graph might break",
        "torch breaks the graph there, if it may",
    ),
    "torch.utils._python_dispatch.TorchDispatchMode": (
        "seeing the operators that a step of a user's cell calls",
        "cells of one's own are not compiled, and the error says so",
    ),
    "torch._inductor.standalone_compile": (
        "compiling a graph without torch.compile's guards",
        "the inductor backend is missing, and says so",
    ),
    "torch._guards.TracingContext": ("as above", "as above"),
    "torch._guards.tracing": ("as above", "as above"),
    "torch._subclasses.fake_tensor.FakeTensorMode": ("as above", "as above"),
    "torch.fx.experimental.symbolic_shapes.DimDynamic": ("as above", "as above"),
    "torch.fx.experimental.symbolic_shapes.ShapeEnv": ("as above", "as above"),
    "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext": ("as above", "as above"),
    "torch._inductor.codecache.CppPythonBindingsCodeCache": (
        "finding the shared library that Inductor compiled for the CPU, to keep it",
        "a new process traces and lowers what it has in Inductor's cache, for seconds",
    ),
    "torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors": (
        "calling such a library, which takes handles of tensors",
        "as above",
    ),
    "torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs": ("as above", "as above"),
    "torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr": ("as above", "as above"),
    "torch._guards.TracingContext.try_get": (
        "whether torch.compile traces, so that a compiled module says that it is no nn.RNN",
        "it is taken not to: torch.compile breaks the graph at compiled modules",
    ),
    "torch._C._dynamo.eval_frame.set_code_exec_strategy": (
        "keeping torch.compile from tracing our own functions, called where it broke a graph",
        "torch.compiler.disable does, which costs time in every call",
    ),
    "torch._C._dynamo.eval_frame._FrameExecStrategy": ("as above", "as above"),
    "torch._C._dynamo.eval_frame._FrameAction": ("as above", "as above"),
    "torch._inductor.config": (
        "which C++ compilers Inductor tries",
        "the one in CXX, else the platform's own, is taken to be",
    ),
    "torch._dynamo.eval_frame.check_if_dynamo_supported": (
        "whether torch's compiler runs on this Python",
        "it is taken to",
    ),
}


def find(path: str) -> Any:
    """What a dotted path in `NAMES` leads to, or None; imports no module that was not there."""
    found: Any = torch
    for name in path.split(".")[1:]:
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


def imported(path: str) -> Any:
    """As `find`, after importing the module that should hold the name; or None."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, AttributeError):  # the module may itself need a name that is gone
        return None


_peek_interpreter_stack = find("torch._C._functorch.peek_interpreter_stack")
_is_legacy_batchedtensor = find("torch._C._functorch.is_legacy_batchedtensor")
_transforms_active = find("torch._C._are_functorch_transforms_active")
_is_any_autocast_enabled = find("torch._C._is_any_autocast_enabled")
_len_torch_dispatch_stack = find("torch._C._len_torch_dispatch_stack")
_get_tracing_state = find("torch._C._get_tracing_state")
_len_function_stack = find("torch._C._len_torch_function_stack")
_function_stack_at = find("torch._C._get_function_stack_at")
_DeviceContext: Any = imported("torch.utils._device.DeviceContext")
_top_hooks = find("torch._C._autograd._top_saved_tensors_default_hooks")
_frame_strategy: Any = imported("torch._C._dynamo.eval_frame._FrameExecStrategy")
_frame_action: Any = imported("torch._C._dynamo.eval_frame._FrameAction")
_set_code_strategy: Any = imported("torch._C._dynamo.eval_frame.set_code_exec_strategy")
_cuda_stream = find("torch._C._cuda_getCurrentRawStream")
#: The base of modes that see every operator; None in a torch without it.
TorchDispatchMode: Any = find("torch.utils._python_dispatch.TorchDispatchMode")
TensorGuards: Any = imported("torch._C._dynamo.guards.TensorGuards")
GlobalStateGuard: Any = imported("torch._C._dynamo.guards.GlobalStateGuard")
#: Whether torch has what the fast path compares tensors and surroundings by.
HAS_GUARDS = TensorGuards is not None and GlobalStateGuard is not None

_forward_ad: Any = import_module("torch.autograd.forward_ad")
_profiler: Any = import_module("torch.autograd.profiler")
#: What this torch lacks of the names that tell whether a transform or a mode is active.
UNSEEN = tuple(
    path
    for path in (
        "torch._C._functorch.peek_interpreter_stack",
        "torch.autograd.forward_ad._current_level",
        "torch._C._len_torch_dispatch_stack",
    )
    if find(path) is None
)


def transforming() -> bool:
    """Whether a torch.func transform is active."""
    return _peek_interpreter_stack is None or _peek_interpreter_stack() is not None


def transforming_while_traced() -> bool:
    """Whether a torch.func transform is active, for code that torch.compile traces."""
    return _transforms_active is None or bool(_transforms_active())


def forward_mode() -> bool:
    """Whether forward-mode automatic differentiation is active."""
    try:
        return bool(_forward_ad._current_level >= 0)
    except AttributeError:
        return True


def dispatch_mode() -> bool:
    """Whether a TorchDispatchMode is active."""
    return _len_torch_dispatch_stack is None or _len_torch_dispatch_stack() > 0


def function_mode() -> bool:
    """Whether a TorchFunctionMode is active that may change what torch's functions compute."""
    if _len_function_stack is None or not _len_function_stack() or _function_stack_at is None:
        return False
    stack = map(_function_stack_at, range(_len_function_stack()))
    return any(_DeviceContext is None or type(mode) is not _DeviceContext for mode in stack)


def saved_tensor_hooks() -> bool:
    """Whether default hooks for saved tensors are set, as by torch.utils.checkpoint."""
    return _top_hooks is None or _top_hooks(False) is not None


def any_autocast() -> bool:
    """Whether autocast is enabled for any type of device."""
    if _is_any_autocast_enabled is None:
        return any(map(torch.is_autocast_enabled, ("cpu", "cuda", "xpu", "mps")))
    return bool(_is_any_autocast_enabled())


def scripting() -> bool:
    """Whether torch.jit.trace is at work."""
    if _get_tracing_state is None:
        return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]  # torch has no types here
    return _get_tracing_state() is not None


def traced_by_dynamo() -> bool:
    """Whether torch.compile is tracing, asked by code that runs while it does."""
    context = find("torch._guards.TracingContext.try_get")
    return context is not None and context() is not None


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def constant_in_graphs(function: FunctionT) -> FunctionT:
    """A decorator: a traced graph has the result of a call as a constant.

    As `torch.compiler.assume_constant_result`, which imports the compiler to set this attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # of functions alone
    return function


def never_traced(function: FunctionT) -> FunctionT:
    """A decorator: torch.compile never traces a function, nor what it calls, frame by frame.

    Where torch.compile breaks a graph, it traces the functions that are then called one by one. It
    drops tensors as soon as no later instruction names them, but kernels get their addresses.
    A trace that begins outside still inlines the function.
    """
    strategy, action, mark = _frame_strategy, _frame_action, _set_code_strategy
    if strategy is None or action is None or mark is None:
        return cast("FunctionT", _disabled(function))
    mark(function.__code__, strategy(action.SKIP, action.SKIP))
    return function


def _disabled(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `torch.compiler.disable`, which imports torch's compiler, but only once something has."""
    found: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not found:
            found.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]  # torch has no types here
        return found[0](*args, **kwargs)

    return call


def profiler_runs() -> bool:
    """Whether one of torch's profilers is running, in any thread."""
    try:
        return bool(_profiler._is_profiler_enabled)
    except AttributeError:
        return True


def untransformed_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` for calls outside of every transform of torch.func.

    It is the method of the class that torch derives `torch.autograd.Function` from. That class's
    own binds the arguments and looks for transforms, which takes half of a small call's time.
    """
    found: Callable[..., Any] = getattr(
        super(torch.autograd.Function, function), "apply", function.apply
    )
    return found


def legacy_batched(tensor: Tensor) -> bool:
    """Whether a gradient is one of `torch.autograd.grad(is_grads_batched=True)`."""
    return _is_legacy_batchedtensor is None or bool(_is_legacy_batchedtensor(tensor))


def versions(first: Tensor, others: tuple[Tensor, ...]) -> int:
    """How often torch's operators have written to tensors; -1 where torch does not count."""
    try:
        total = first._version
        for tensor in others:
            total += tensor._version
    except (AttributeError, RuntimeError):
        return -1  # tensors of inference mode have no counter
    return total


def tensor_guards(
    tensors: tuple[Tensor, ...], varying: tuple[int, ...] = ()
) -> Callable[..., bool]:
    """A function of as many tensors that says whether they are like these.

    It compares types, dtypes, devices, shapes, strides, dispatch keys (and with these transforms,
    modes and lazy signs) and `requires_grad`. Only for a torch that has them, see `HAS_GUARDS`.

    Args:
        tensors: the tensors.
        varying: for each of the first tensors a dimension whose size may differ, as may all strides
            of that tensor.
    """
    sizes: list[list[int | None]] = [list(tensor.shape) for tensor in tensors]
    strides: list[list[int | None]] = [list(tensor.stride()) for tensor in tensors]
    for index, dimension in enumerate(varying):
        sizes[index][dimension] = None
        strides[index] = [None] * len(strides[index])
    check: Callable[..., bool] = TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check
    return check


def current_cuda_stream(index: int) -> int:
    """The address of the current stream of a CUDA device."""
    if _cuda_stream is None:
        return int(torch.cuda.current_stream(index).cuda_stream)
    return int(_cuda_stream(index))


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """A module's own parameters by name, None among them; torch's own dictionary where it is."""
    try:
        found: dict[str, Any] = module.__dict__["_parameters"]
    except KeyError:
        return dict(module.named_parameters(recurse=False))
    return found


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """A module's own buffers by name."""
    found = module.__dict__.get("_buffers")
    return dict(module.named_buffers(recurse=False)) if found is None else found


def tensors_of(module: nn.Module) -> dict[str, Any]:
    """A module's own parameters and buffers by name."""
    return parameters_of(module) | buffers_of(module)


def children_of(module: nn.Module) -> dict[str, Any]:
    """A module's own submodules by name, one that stands twice among them twice."""
    found = module.__dict__.get("_modules")
    return dict(module.named_children()) if found is None else found


def flat_weights_of(module: nn.Module) -> list[Any]:
    """The list of weights that an nn.RNNBase keeps beside its parameters."""
    return list(getattr(module, "_flat_weights", ()))


#: What the forward pass of torch's layers uses and a subclass may override.
LAYER_INTERNALS = (
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
    "_init_flat_weights",
    "_update_flat_weights",
    "_weights_have_changed",
)


def flat_weights_assigned(module: nn.Module) -> bool:
    """Whether somebody gave an nn.RNNBase a list of weights other than its parameters.

    Torch's own forward pass uses that list, unless a parameter was replaced since it was made.
    """
    if hasattr(type(module), "_flat_weights"):
        return True
    own, found = parameters_of(module), False
    refs = getattr(module, "_flat_weight_refs", ())
    names, weights = flat_weight_names(module) or (), flat_weights_of(module)
    for name, weight, ref in zip(names, weights, refs, strict=False):
        if own.get(name) is not None:
            if ref is not None and ref() is not own[name]:
                return False
            found |= weight is not own[name]
    return found


class FlatWeightRefs(nn.RNNBase):
    """A base of compiled layers: refers to its weights strongly where torch does so weakly.

    Where `torch.__future__.set_swap_module_params_on_conversion` is on, torch swaps the contents of
    two tensors, and refuses if there is a weak reference to either. A compiled module shares its
    Parameters with the original. The original can be converted, since only it refers to them
    weakly. In the compiled module the data of the Parameters is assigned instead.
    """

    @property  # type: ignore[override]  # torch has an attribute
    def _flat_weight_refs(self) -> list[Callable[[], Any] | None]:
        try:
            found: list[Callable[[], Any] | None] = self.__dict__["_strong_weight_refs"]
        except KeyError:
            raise AttributeError("_flat_weight_refs") from None
        return found

    @_flat_weight_refs.setter
    def _flat_weight_refs(self, refs: list[Callable[[], Any] | None]) -> None:
        self.__dict__["_flat_weight_refs"] = ()  # torch deletes it in its __getstate__
        self.__dict__["_strong_weight_refs"] = [ref and StrongRef(ref()) for ref in refs]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # torch has no types here
        state.pop("_strong_weight_refs", None)
        return state

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        future, held = torch.__future__, [w for w in parameters_of(self).values() if w is not None]
        swaps = future.get_swap_module_params_on_conversion()
        if not swaps or not any(map(weakref.getweakrefs, held)):
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        future.set_swap_module_params_on_conversion(False)
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # as above
        finally:
            future.set_swap_module_params_on_conversion(True)


def hold_flat_weights(module: nn.Module) -> None:
    """Make a module with the attributes of another refer to its weights by `FlatWeightRefs`."""
    own = vars(module)
    if isinstance(module, FlatWeightRefs) and "_flat_weight_refs" in own:
        module._flat_weight_refs = own.get("_strong_weight_refs", own["_flat_weight_refs"])


def refer_weakly(module: nn.Module) -> None:
    """Make a torch module with the attributes of a compiled one refer to weights as torch does."""
    refs = vars(module).pop("_strong_weight_refs", None)
    if refs is not None:
        vars(module)["_flat_weight_refs"] = [ref and weakref.ref(ref()) for ref in refs]


class StrongRef:
    """Returns an object when it is called, as a weak reference does."""

    def __init__(self, referent: Any) -> None:
        self._referent = referent

    def __call__(self) -> Any:
        """The object."""
        return self._referent


def flat_weights_stay(module: nn.Module, weights: tuple[Any, ...]) -> bool:
    """Whether torch's own layer would use these weights where they lie.

    Others, that were assigned since, it would first move into one block of a device's memory.
    """
    referred = [ref and ref() for ref in getattr(module, "_flat_weight_refs", ())]
    wanted = list(map(id, weights))
    return list(map(id, flat_weights_of(module))) == wanted == list(map(id, referred))


def set_flat_weight_names(module: nn.RNNBase, names: list[list[str]]) -> None:
    """Give an nn.RNNBase other weights: those with these names, direction by direction."""
    vars(module)["_all_weights"] = names
    vars(module)["_flat_weights_names"] = [name for each in names for name in each]
    module._init_flat_weights()


def flat_weight_names(module: Any) -> list[str] | None:
    """The names of an nn.RNNBase's weights, in its order; None where torch does not keep them."""
    return getattr(module, "_flat_weights_names", None)


def forget_pre_hooks(module: nn.Module) -> None:
    """Remove the forward pre-hooks of a module of our own."""
    for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        getattr(module, name, {}).clear()


def forget_load_hooks(module: nn.Module) -> None:
    """Give a module of our own a table of hooks before `load_state_dict` that is empty.

    Torch's hooks hold their module weakly: one that a module shares with another cannot be copied.
    """
    vars(module)["_load_state_dict_pre_hooks"] = OrderedDict()


@contextmanager
def autograd_allowed(*, required: bool) -> Iterator[None]:
    """Lets a backward pass use autograd inside an operator, below which torch switches it off.

    Args:
        required: whether the backward pass is made of nothing else.

    Raises:
        RuntimeError: it is required, and this torch has not what that takes.
    """
    guard, keys = find("torch._C._ForceDispatchKeyGuard"), find("torch._C.DispatchKey")
    include = find("torch._C._dispatch_tls_local_include_set")
    exclude = find("torch._C._dispatch_tls_local_exclude_set")
    if any(found is None for found in (guard, keys, include, exclude)):
        if not required:
            yield
            return
        raise RuntimeError(
            f"torch {torch.__version__} lacks what a traced backward pass needs: "
            "run the model without torch.compile, or name another backend"
        )
    excluded = exclude()
    for key in (keys.AutogradFunctionality, keys.ADInplaceOrView):
        excluded = excluded.remove(key)
    with guard(include(), excluded):
        yield


def unknown_size() -> Any:
    """A size that depends on values, for the results of an operator that is being traced.

    Torch's public function refuses where the graph need not be whole, so that it breaks there.
    """
    context = torch.library.get_ctx()
    allocate = imported("torch._library.fake_impl.allocate_size")
    shapes = getattr(context, "_shape_env", None)
    if allocate is None or shapes is None:
        return context.new_dynamic_size()
    return allocate(shapes)


#: What compiling a graph with Inductor takes.
_INDUCTOR = (
    "torch._inductor.standalone_compile",
    "torch._guards.TracingContext",
    "torch._guards.tracing",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.fx.experimental.symbolic_shapes.DimDynamic",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext",
)


def compiler_unsupported() -> str:
    """Why torch's compiler does not run on this Python; "" if it does, or torch does not say."""
    check = imported("torch._dynamo.eval_frame.check_if_dynamo_supported")
    if check is None:
        return ""
    try:
        check()
    except RuntimeError as error:
        return str(error)
    return ""


def lacking_for_inductor() -> list[str]:
    """The names without which this torch compiles no graph with Inductor; imports no compiler."""
    return [path for path in _INDUCTOR if imported(path) is None]


def cpp_compilers() -> list[str] | None:
    """The C++ compilers that Inductor tries, or None where its settings are not imported yet."""
    config = find("torch._inductor.config")
    if config is None:
        return None
    names = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else [config.cpp.cxx]
    return [name for name in names if name is not None]


def symbolic_mode() -> Any:
    """A mode of tensors without memory, in which sizes that begin alike are not taken to be one."""
    mode = imported("torch._subclasses.fake_tensor.FakeTensorMode")
    environment = imported("torch.fx.experimental.symbolic_shapes.ShapeEnv")
    return mode(shape_env=environment(duck_shape=False))


def symbolic_size(mode: Any, hint: int) -> int:
    """A size that is a symbol of a `symbolic_mode`; `hint` is a value that it may have."""
    symbolic = import_module("torch.fx.experimental.symbolic_shapes")
    context: Any = symbolic.StatelessSymbolicContext(dynamic_sizes=[symbolic.DimDynamic.DYNAMIC])
    real = torch.empty(hint, dtype=torch.float32, device="cpu")
    size: int = mode.from_tensor(real, symbolic_context=context).shape[0]
    return size


def compile_graph(
    graph: Any, arguments: list[Any], mode: Any, settings: dict[str, Any]
) -> Callable[..., Any]:
    """A graph compiled by Inductor.

    Args:
        graph: traced with `arguments`.
        arguments: tensors of `mode`, whose symbolic sizes stay symbols.
        mode: a `symbolic_mode`.
        settings: of Inductor's, for this compilation alone.
    """
    guards = import_module("torch._guards")
    standalone_compile = imported("torch._inductor.standalone_compile")
    with guards.tracing(guards.TracingContext(mode)):
        compiled: Callable[..., Any] = standalone_compile(
            graph,
            arguments,
            dynamic_shapes="from_tracing_context",
            options={"config_patches": settings},
        )
    return compiled


#: What calls a library of Inductor's.
_LIBRARY = (
    "torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors",
    "torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs",
    "torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr",
)
_ENTRY, _ADDRESS = "inductor_entry_cpp", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"


def loads_libraries() -> bool:
    """Whether `load_library` can work in this torch."""
    return os.name == "posix" and all(find(path) is not None for path in _LIBRARY)


def libraries() -> frozenset[str]:
    """The paths of the libraries that Inductor has compiled or loaded for the CPU."""
    cache = imported("torch._inductor.codecache.CppPythonBindingsCodeCache")
    names = list(getattr(cache, "_loaded_module_names", ()))
    modules = [sys.modules.get(name) for name in names if name.endswith(_ENTRY)]
    return frozenset(str(each.__file__) for each in modules if each is not None)


def load_library(path: str, name: str) -> Callable[..., Any]:
    """A library of `libraries` as a function of tensors, called without the rest of Inductor.

    Args:
        path: the library; the file may be removed afterwards.
        name: that no other library is loaded under.

    Raises:
        ImportError: it cannot be loaded, or is no such library.
    """
    handles, tensors, address = (find(each) for each in _LIBRARY)
    loader = ExtensionFileLoader(f"{name}.{_ENTRY}", path)
    spec = spec_from_file_location(f"{name}.{_ENTRY}", path, loader=loader)
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = str(address)
    try:
        if spec is None:
            raise ImportError(f"{path} is no library")
        module = module_from_spec(spec)
        loader.exec_module(module)
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
    entry = getattr(module, _ENTRY)

    def run(*given: Any) -> Any:
        return tensors(entry(handles(list(given))))

    return run
