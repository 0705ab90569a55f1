"""Who computes a user's cell in `cells.py`: rnnjit, and what a user would do without it.

Each is prepared from the same numbers and gives two functions: one that is timed, and one whose
results (y, then the gradients of x and of the weights by name) are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rnnjit
from rnnjit import cells

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """A cell, a size and a pass.

    Attributes:
        cell: the name of a cell of the gallery.
        T, B, I, H: steps, batch, features of the input and of a state.
        trains: whether the backward pass is run, too.
        dtype: name of torch's.
    """

    cell: str
    T: int
    B: int
    I: int
    H: int
    trains: bool
    dtype: str = "float32"

    def new(self) -> rnnjit.Cell:
        """The cell, the same every time."""
        torch.manual_seed(0)
        made: rnnjit.Cell = getattr(cells, self.cell)(self.I, self.H, dtype=torch.float32)
        return made.to(getattr(torch, self.dtype))

    def arrays(self) -> tuple[Tensor, Tensor]:
        """Of x `[T, B, I]` and the gradient of y `[T, B, H]`, the same numbers for every dtype."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.T, self.B, self.I, generator=generator, dtype=torch.float32)
        grad = torch.randn(self.T, self.B, self.H, generator=generator, dtype=torch.float32)
        dtype = getattr(torch, self.dtype)
        return x.to(dtype), grad.to(dtype)


@dataclass(frozen=True)
class Ready:
    """A prepared contestant.

    Attributes:
        run: what is timed.
        results: y and gradients by name.
    """

    run: Callable[[], object]
    results: Callable[[], Arrays]


def loop(cell: nn.Module, x: Tensor) -> Tensor:
    """The cell, step by step, as a user writes it: y."""
    count = len(cell.states)
    states: tuple[Tensor, ...] = (x.new_zeros(x.shape[1], cell.hidden_size),) * count
    outputs = []
    for row in x.unbind():
        found = cell(row, *states)
        found = found if isinstance(found, tuple) else (found,)
        outputs.append(found[0])
        states = found[-count:]
    return torch.stack(outputs)


def _torch_ready(call: Call, parameters: Mapping[str, Tensor], forward: Any) -> Ready:
    """A function from x to y in torch, with the parameters of the cell by name."""
    x, grad = call.arrays()
    names = ["x", *parameters]
    if not call.trains:
        return Ready(
            torch.no_grad()(lambda: forward(x)),
            torch.no_grad()(lambda: {"y": forward(x).numpy()}),
        )
    x.requires_grad_()
    inputs = [x, *parameters.values()]

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        y = forward(x)
        return y, torch.autograd.grad(y, inputs, grad)

    def results() -> Arrays:
        y, grads = run()
        found = {"y": y, **dict(zip(names, grads, strict=True))}
        return {name: value.detach().numpy() for name, value in found.items()}

    return Ready(run, results)


def python_loop(call: Call) -> Ready:
    """Eager PyTorch, a call of the cell in each step."""
    cell = call.new()
    return _torch_ready(call, dict(cell.named_parameters()), lambda x: loop(cell, x))


def compiled_loop(call: Call) -> Ready:
    """`torch.compile` of the loop, which unrolls all steps into one graph."""
    cell = call.new()
    unrolled = torch.compile(loop, dynamic=False, fullgraph=True)
    return _torch_ready(call, dict(cell.named_parameters()), lambda x: unrolled(cell, x))


def on_backend(name: str) -> Callable[[Call], Ready]:
    """A `Recurrent` of the cell, compiled for a backend."""

    def prepare(call: Call) -> Ready:
        rnn = rnnjit.compile(rnnjit.Recurrent(call.new()), backend=name).train(call.trains)
        parameters = {each.removesuffix("_l0"): value for each, value in rnn.named_parameters()}
        return _torch_ready(call, parameters, lambda x: rnn(x)[0])

    return prepare


def jax_scan(call: Call) -> Ready:
    """A jitted `lax.scan` of the same cell; W_ih x of all steps is one product before it."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", call.dtype == "float64")
    step, states = _JAX[call.cell]
    given = {
        name: jax.numpy.asarray(value.detach().numpy())
        for name, value in call.new().named_parameters()
    }
    x, grad = (jax.numpy.asarray(each.numpy()) for each in call.arrays())

    def forward(x: Any, w: Any) -> Any:
        rows = x @ w["weight_ih"].T + w["bias_ih"]
        zeros = (jax.numpy.zeros((call.B, call.H), x.dtype),) * states
        return jax.lax.scan(lambda before, row: step(w, row, before), zeros, rows)[1]

    def training(x: Any, w: Any) -> Any:
        y, backward = jax.vjp(forward, x, w)
        return y, backward(grad)

    function = jax.jit(training if call.trains else forward)

    def results() -> Arrays:
        found = function(x, given)
        if not call.trains:
            return {"y": np.asarray(found)}
        y, (grad_x, grads) = found
        return {name: np.asarray(each) for name, each in {"y": y, "x": grad_x, **grads}.items()}

    return Ready(lambda: jax.block_until_ready(function(x, given)), results)


def _jax_leaky(w: Any, zx: Any, states: Any) -> Any:
    import jax

    (v,) = states
    drive = zx + jax.nn.relu(v) @ w["weight_hh"].T + w["bias_hh"]
    v = (1 - w["alpha"]) * v + w["alpha"] * drive
    return (v,), jax.nn.relu(v)


def _jax_mgu(w: Any, zx: Any, states: Any) -> Any:
    import jax
    from jax import numpy as jnp

    (h,) = states
    f_x, n_x = jnp.split(zx, 2, axis=-1)
    f_h, n_h = jnp.split(h @ w["weight_hh"].T + w["bias_hh"], 2, axis=-1)
    f = jax.nn.sigmoid(f_x + f_h)
    h = (1 - f) * h + f * jnp.tanh(n_x + f * n_h)
    return (h,), h


def _jax_peephole(w: Any, zx: Any, states: Any) -> Any:
    import jax
    from jax import numpy as jnp

    h, c = states
    i, f, g, o = jnp.split(zx + h @ w["weight_hh"].T + w["bias_hh"], 4, axis=-1)
    i, f = jax.nn.sigmoid(i + w["p"][0] * c), jax.nn.sigmoid(f + w["p"][1] * c)
    c = f * c + i * jnp.tanh(g)
    h = jax.nn.sigmoid(o + w["p"][2] * c) * jnp.tanh(c)
    return (h, c), h


#: The step of a cell in JAX, and its number of states.
_JAX: dict[str, tuple[Callable[..., Any], int]] = {
    "LeakyRNN": (_jax_leaky, 1),
    "MGU": (_jax_mgu, 1),
    "PeepholeLSTM": (_jax_peephole, 2),
}

LOOP, COMPILED, JAX = "Python loop", "torch.compile", "JAX scan"
#: How each contestant is prepared, by what the table calls it.
CONTESTANTS: dict[str, Callable[[Call], Ready]] = {
    LOOP: python_loop,
    "numba": on_backend("numba"),
    COMPILED: compiled_loop,
    JAX: jax_scan,
}
