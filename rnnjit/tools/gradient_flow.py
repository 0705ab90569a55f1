"""`rnnjit.gradient_flow`: gradient norms at all states, to see gradients vanish or explode.

See Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend, States
from rnnjit.execution.stack import run_stack
from rnnjit.frontend.arguments import Result
from rnnjit.frontend.compile import why_left
from rnnjit.frontend.compiled_class import intercept
from rnnjit.frontend.lowering import lower
from rnnjit.frontend.reachable import copy_sharing_parameters, reachable_modules
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.packages import absent
from rnnjit.spec import LayerSpec, Rows
from rnnjit.tools.cell_probe import CellProbe, run_probed
from rnnjit.tools.gradient_probe import GradientProbe, probe_of
from rnnjit.tools.observe import wanted_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Probes: TypeAlias = "list[GradientProbe] | list[CellProbe]"


@dataclass(frozen=True)
class GradientFlow:
    """The result of `gradient_flow`.

    Attributes:
        states: by the path of each layer that was called, and then by the name of each state of
            its cell ("h", and "c" for nn.LSTM), a tensor `[L, D, T]` of its dtype: for every layer
            of the stack, direction and step the Euclidean norm of the loss's gradient for that
            state, over the batch and the features. For a layer that is called several times, these
            are the norms of its first call.
    """

    states: dict[str, dict[str, Tensor]]

    @property
    def norms(self) -> dict[str, Tensor]:
        """By the path of each layer the norms of dL/dh_t, `[L, D, T]`, h the first state."""
        return {name: next(iter(states.values())) for name, states in self.states.items()}

    def __str__(self) -> str:
        lines = []
        for name, index, d, state, steps in self._curves():
            where = f"{name or 'module'}, layer {index}" + (", backward" if d else "")
            where += f", {state}" if len(self.states[name]) > 1 else ""
            first, last = float(steps[0]), float(steps[-1])
            lines.append(f"{where}: {first:.3g} at step 0, {last:.3g} at the last")
        return "\n".join(lines)

    __repr__ = __str__

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the norms over the steps, on a logarithmic scale.

        Args:
            axes: matplotlib axes, or None for new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; the message says what to do.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise absent("matplotlib", "bench", "a plot") from error

        axes = axes or pyplot.subplots()[1]
        names = list(dict.fromkeys(state for states in self.states.values() for state in states))
        for name, index, d, state, steps in self._curves():
            label = f"{name or 'RNN'} layer {index}" + (" backward" if d else "")
            label += f" {state}" if len(names) > 1 else ""
            axes.semilogy(steps.cpu().numpy(), label=label)
        axes.set_xlabel("step t")
        axes.set_ylabel("norm of " + ", ".join(f"dL/d{name}_t" for name in names))
        axes.legend()
        return axes

    def _curves(self) -> Iterator[tuple[str, int, int, str, Tensor]]:
        """Each path, layer, direction and state with its norms `[T]`."""
        for name, states in self.states.items():
            layers, directions, _ = next(iter(states.values())).shape
            for index, d in product(range(layers), range(directions)):
                for state, norms in states.items():
                    yield name, index, d, state, norms[index, d]


def gradient_flow(
    module: nn.Module, *inputs: Any, loss: Callable[[Any], Tensor] | None = None
) -> GradientFlow:
    """Compute the norm of the gradient at every state, in one forward and one backward pass.

    A copy of the module that shares its Parameters runs, in the same mode and on the same backends;
    only the layers of nn.LSTM and nn.GRU run step by step on plain torch operators, and an
    `rnnjit.Recurrent` runs the `forward` of its cell. The module does not change, and neither do
    its gradients.

    dL/dc_t is the whole gradient: c_t changes the loss by h_t and by c_{t+1}.

    Args:
        module: an nn.RNN, nn.LSTM, nn.GRU or `rnnjit.Recurrent`, a compiled one, or any module that
            calls some.
        *inputs: the arguments for `module`.
        loss: a function from the module's result to a scalar Tensor; None for the sum of the
            (first) tensor of the result.

    Raises:
        TypeError: `module` is not a module, a layer of torch in it is called with `reset` or
            `return_states`, or `loss` is not a function or does not return a Tensor.
        ValueError: the module calls no such layer, or none of them is part of the loss.
        RuntimeError: `loss` does not return one real number.

    Example:
        >>> flow = gradient_flow(torch.nn.RNN(2, 3), torch.zeros(5, 1, 2))
        >>> flow.norms[""].shape
        torch.Size([1, 1, 5])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function, got {type(loss).__name__}")
    replica, calls = copy_sharing_parameters(module), dict[str, list[_Probes]]()
    for name, child in reachable_modules(replica):
        if _is_followed(child):
            made = calls.setdefault(name, [])
            run = _run_recurrent if isinstance(child, Recurrent) else _run_layers
            intercept(child, partial(run, made))
    with torch.enable_grad(), torch.random.fork_rng():
        value = (loss or _first_sum)(replica(*inputs))
    probes = {name: made[0] for name, made in calls.items() if made}
    if not probes:
        raise ValueError(
            "module(*inputs) calls no nn.RNN, nn.LSTM, nn.GRU or rnnjit.Recurrent: there is no "
            "gradient to follow"
        )
    _check_loss(value)
    if not value.requires_grad:
        raise ValueError("the loss does not depend on any recurrent layer of the module")
    tensors = [tensor for found in probes.values() for probe in found for tensor in probe.tensors]
    grads = torch.autograd.grad(value, tensors, allow_unused=True)
    if all(grad is None for grad in grads):
        raise ValueError("the loss does not depend on any recurrent layer of the module")
    known = iter(
        torch.zeros_like(tensor) if grad is None else grad
        for tensor, grad in zip(tensors, grads, strict=True)
    )
    return GradientFlow({name: _by_state(found, known) for name, found in probes.items()})


def _by_state(probes: _Probes, grads: Iterator[Tensor]) -> dict[str, Tensor]:
    """The norms `[L, D, T]` for each state of a stack, from the gradients of its probes."""
    layers = [probe.norms(list(islice(grads, len(probe.tensors)))) for probe in probes]
    names, by_name = probes[0].states, zip(*layers, strict=True)
    return {name: torch.stack(norms) for name, norms in zip(names, by_name, strict=True)}


def _is_followed(module: nn.Module) -> bool:
    """Whether a module is a layer whose `forward` is torch's or a Recurrent's, or calls it."""
    return isinstance(module, (nn.RNNBase, Recurrent)) and not why_left(module, EAGER)


class _Arguments(NamedTuple):
    """The arguments of a call to a layer of the copy."""

    input: Any
    hx: Any = None
    reset: Any = None
    reset_to: Any = None
    return_states: bool = False


def _run_recurrent(calls: list[_Probes], rnn: Recurrent, *args: Any, **kwargs: Any) -> Any:
    """`Recurrent.forward` with a probe for every layer."""
    result, probes = run_probed(rnn, *_Arguments(*args, **kwargs))
    calls.append(probes)
    return result


def _run_layers(calls: list[_Probes], rnn: nn.RNNBase, *args: Any, **kwargs: Any) -> Result:
    """`nn.RNN.forward` with a probe for every layer."""
    given = _Arguments(*args, **kwargs)
    if given.reset is not None or given.return_states:
        what = "return_states" if given.reset is None else "reset"
        raise TypeError(f"gradient_flow does not follow calls with {what}: leave it out")
    call = lower(rnn, given.input, given.hx)
    if call.spec.quantized:
        raise ValueError(
            "gradient_flow needs layers with a gradient, and those of int8 matrices have none: "
            "give it the module that was quantized"
        )
    call = call._replace(problem=call.problem._replace(needs_grad=True))
    backend, fallback = call.choose(wanted_by(rnn))
    probes: list[GradientProbe] = []
    calls.append(probes)

    def run(backend: Backend, layer: LayerSpec, rows: Rows, *others: Any) -> tuple[Tensor, States]:
        x, hx, own, _, last = others
        probes.append(probe_of(layer, rows, own))

        def work(by: Backend) -> tuple[Tensor, States]:
            return probes[-1].run(by, x, hx, last, fallback)

        return fallback.run(backend, work)

    stack = (backend, call.spec, call.rows, call.x, call.hx, call.weights, rnn.training, True)
    return call.restore(*run_stack(*stack, run=run))


def _first_sum(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(
            f"loss must be given where the module returns no Tensor first: got "
            f"{type(output).__name__}"
        )
    return output.sum()


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a Tensor, got {type(value).__name__}")
    if value.numel() != 1 or value.is_complex():
        raise RuntimeError(
            f"loss must return one real number, got shape {list(value.shape)} of {value.dtype}"
        )
