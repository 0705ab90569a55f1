"""JAX: `lax.scan` over the steps, compiled by XLA for the shapes of the case."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnjit.bench.arrays import Array, Arrays, suffixes, weight_shapes
from rnnjit.bench.contestants.base import Contestant, Ready, streaming
from rnnjit.bench.kinds import kind_of
from rnnjit.bench.records import Case


class JaxScan(Contestant):
    """A jitted function, with `jax.vjp` in training, and a mask if the case is packed."""

    name = "jax"
    title = "JAX lax.scan"
    packages = ("jax", "jaxlib")

    def declines(self, case: Case) -> str:
        """Declines a separate backward pass, which is not a function of its own here."""
        if case.dtype == "bfloat16":
            return "its scan is written for the dtypes of numpy, not for bfloat16"
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
        forward, names = _forward(case), kind_of(case).states
        weights = {name: jax.numpy.asarray(arrays.weights[name]) for name in weight_shapes(case)}
        x, hx, grads = jax.tree.map(
            jax.numpy.asarray, (arrays.x, arrays.hx, (arrays.grad_y, *arrays.grad_hn))
        )
        lengths = None if arrays.lengths is None else jax.numpy.asarray(arrays.lengths, "int32")
        function = jax.jit(forward)
        if case.mode == "streaming":
            return streaming(
                list(x[:, None]),
                hx,
                names,
                lambda frame, states: jax.block_until_ready(function(frame, states, weights, None)),
            )

        def training(*inputs: Any) -> Any:
            outputs, backward = jax.vjp(lambda *wanted: forward(*wanted, lengths), *inputs)
            return outputs, backward(grads)

        if case.trains:
            both = jax.jit(training)
            return Ready(
                lambda: jax.block_until_ready(both(x, hx, weights)),
                lambda: _named(names, *both(x, hx, weights)),
            )
        inputs = (x, hx, weights, lengths)
        return Ready(
            lambda: jax.block_until_ready(function(*inputs)),
            lambda: _named(names, function(*inputs)),
        )


def _forward(case: Case) -> Any:
    """A function of x, the states, the weights by name, and lengths or None.

    It returns y and the last states, in one tuple.
    """
    import jax
    from jax import numpy as jnp

    kind = kind_of(case)

    def direction(x: Any, hx: Any, weights: Any, running: Any, suffix: str) -> Any:
        w_ih, w_hh, b_ih, b_hh = (
            weights[f"{part}_{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        rows = x @ w_ih.T + (b_ih if kind.apart else b_ih + b_hh)

        def split(columns: Any) -> Any:
            return jnp.split(columns, len(kind.gates), axis=-1)

        def step(states: Any, at: Any) -> Any:
            row, runs = at
            zh = states[0] @ w_hh.T + (b_hh if kind.apart else 0)
            after = kind.step(jax.nn, case.nonlinearity, split(row), split(zh), states)
            if case.proj_size:
                after = (after[0] @ weights[f"weight_hr_{suffix}"].T, *after[1:])
            if runs is None:
                return after, after[0]
            kept = tuple(jnp.where(runs, *pair) for pair in zip(after, states, strict=True))
            return kept, jnp.where(runs, after[0], 0)

        # In reverse, the states of a sequence stay the initial ones until its own last step.
        return jax.lax.scan(step, hx, (rows, running), reverse=suffix.endswith("reverse"))

    def forward(x: Any, hx: Any, weights: Any, lengths: Any) -> Any:
        steps = jnp.arange(case.T)[:, None, None]
        running = None if lengths is None else steps < lengths[:, None]
        states, last = zip(*hx, strict=True), []
        for layer in range(case.layers):
            ys = []
            for suffix in suffixes(case, layer):
                after, y = direction(x, next(states), weights, running, suffix)
                last.append(after)
                ys.append(y)
            x = jnp.concatenate(ys, axis=-1)
        return x, *map(jnp.stack, zip(*last, strict=True))

    return forward


def _named(names: Sequence[str], outputs: Any, gradients: Any = None) -> Mapping[str, Array]:
    y, *last = outputs
    found = {"y": y} | {f"{name}_n": state for name, state in zip(names, last, strict=True)}
    if gradients is not None:
        grad_x, grad_hx, by_name = gradients
        found |= {"grad x": grad_x}
        found |= {f"grad {name}0": grad for name, grad in zip(names, grad_hx, strict=True)}
        found |= {f"grad {name}": grad for name, grad in by_name.items()}
    return {name: np.asarray(value) for name, value in found.items()}


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
