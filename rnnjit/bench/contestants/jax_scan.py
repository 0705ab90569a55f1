"""JAX: `lax.scan` over the steps, compiled by XLA for the shapes of the case."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnjit.bench.arrays import Array, Arrays, suffixes, weight_shapes
from rnnjit.bench.contestants.base import Contestant, Ready, streaming
from rnnjit.bench.records import Case


class JaxScan(Contestant):
    """A jitted function, with `jax.vjp` in training, and a mask if the case is packed."""

    name = "jax"
    title = "JAX lax.scan"
    packages = ("jax", "jaxlib")

    def declines(self, case: Case) -> str:
        """Declines a separate backward pass, which is not a function of its own here."""
        if case.mode == "backward":
            return "it differentiates forward and backward passes as one function"
        return super().declines(case)

    def setup_seconds(self, case: Case) -> float:
        """Mostly the compilation by XLA."""
        return 1.5

    def prepare(self, case: Case, arrays: Arrays) -> Ready:
        """The jitted function with its arguments on JAX's device."""
        _use_processors(case.threads)
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        forward = _forward(case)
        weights = {name: jax.numpy.asarray(arrays.weights[name]) for name in weight_shapes(case)}
        x, h0, grad_y, grad_h_n = (
            jax.numpy.asarray(a) for a in (arrays.x, arrays.h0, arrays.grad_y, arrays.grad_h_n)
        )
        lengths = None if arrays.lengths is None else jax.numpy.asarray(arrays.lengths, "int32")
        function = jax.jit(forward)
        if case.mode == "streaming":
            return streaming(
                list(x[:, None]),
                h0,
                lambda frame, state: jax.block_until_ready(function(frame, state, weights, None)),
            )

        def training(*inputs: Any) -> Any:
            outputs, backward = jax.vjp(lambda *wanted: forward(*wanted, lengths), *inputs)
            return outputs, backward((grad_y, grad_h_n))

        if case.trains:
            both = jax.jit(training)
            return Ready(
                lambda: jax.block_until_ready(both(x, h0, weights)),
                lambda: _named(*both(x, h0, weights)),
            )
        inputs = (x, h0, weights, lengths)
        return Ready(
            lambda: jax.block_until_ready(function(*inputs)), lambda: _named(function(*inputs))
        )


def _forward(case: Case) -> Any:
    """A function of x, h0, the weights by name, and lengths or None, to nn.RNN's `(y, h_n)`."""
    import jax
    from jax import numpy as jnp

    activation = getattr(jax.nn, case.nonlinearity)

    def direction(x: Any, h: Any, weights: Any, running: Any, suffix: str) -> Any:
        w_ih, w_hh, b_ih, b_hh = (
            weights[f"{kind}_{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        rows = x @ w_ih.T + (b_ih + b_hh)

        def step(h: Any, at: Any) -> Any:
            row, runs = at
            after = activation(row + h @ w_hh.T)
            if runs is None:
                return after, after
            return jnp.where(runs, after, h), jnp.where(runs, after, 0)

        # In reverse, the state of a sequence stays h0 until its own last step.
        return jax.lax.scan(step, h, (rows, running), reverse=suffix.endswith("reverse"))

    def forward(x: Any, h0: Any, weights: Any, lengths: Any) -> Any:
        steps = jnp.arange(case.T)[:, None, None]
        running = None if lengths is None else steps < lengths[:, None]
        states, last = iter(h0), []
        for layer in range(case.layers):
            ys = []
            for suffix in suffixes(case, layer):
                h_n, y = direction(x, next(states), weights, running, suffix)
                last.append(h_n)
                ys.append(y)
            x = jnp.concatenate(ys, axis=-1)
        return x, jnp.stack(last)

    return forward


def _named(outputs: Any, gradients: Any = None) -> Mapping[str, Array]:
    found = {"y": np.asarray(outputs[0]), "h_n": np.asarray(outputs[1])}
    if gradients is not None:
        grad_x, grad_h0, by_name = gradients
        found |= {"grad x": np.asarray(grad_x), "grad h0": np.asarray(grad_h0)}
        found |= {f"grad {name}": np.asarray(value) for name, value in by_name.items()}
    return found


def _use_processors(count: int) -> None:
    """Restrict this process to `count` processors: XLA has no option for its number of threads.

    Processors of different cores come first, then second hardware threads of the same cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    usable = sorted(os.sched_getaffinity(0))
    firsts: dict[str, int] = {}
    for cpu in usable:
        try:
            path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            with open(path, encoding="ascii") as file:
                firsts.setdefault(file.read(), cpu)
        except OSError:
            firsts.setdefault(str(cpu), cpu)
    others = [cpu for cpu in usable if cpu not in firsts.values()]
    os.sched_setaffinity(0, [*firsts.values(), *others][:count])
