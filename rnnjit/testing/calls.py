"""From a `Case` to tensors, and from a module and those tensors to values and gradients."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnnjit.backend import States
from rnnjit.frontend.arguments import as_hx
from rnnjit.frontend.capture import torch_module
from rnnjit.frontend.quantize import quantize
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.reference import ReferenceBackend
from rnnjit.testing.case import Case
from rnnjit.testing.int8 import Contract
from rnnjit.testing.user_cells import USER_CELLS

Values = dict[str, Tensor | None]
#: A module, or what is called like one.
Layer = nn.Module | Contract
Draw = Callable[[Sequence[int]], Tensor]
_DROPOUT_SEED = 1
#: How often a sequence of a quantized case is drawn until no number of it is in doubt.
_DRAWS = 100


@dataclass
class Call:
    """The tensors of a case: an eager module and the arguments to call it with.

    Attributes:
        case: what they were made from.
        module: one of torch's own, a `Recurrent` that is not compiled, or a quantized one.
        x: the dense or padded input, a leaf.
        hx: the initial states, leaves, or None.
        grad_y: the gradient that reaches y (`Case.y_shape`).
        grad_h_n: the gradients that reach the last states (`Case.state_shapes`).
    """

    case: Case
    module: nn.Module
    x: Tensor
    hx: States | None
    grad_y: Tensor
    grad_h_n: States

    def arguments(self) -> tuple[Tensor | PackedSequence, Tensor | States | None]:
        """What the module is called with."""
        return _arguments(self.case, self.x, self.hx)

    @property
    def standard(self) -> Layer:
        """What a backend is held against."""
        case = self.case
        return Contract(case.spec, self.module) if case.quantized else self.module

    def inputs(self) -> dict[str, Tensor]:
        """The input, the initial states and every weight by name."""
        states = {} if self.hx is None else named_states(self.case, self.hx, "0")
        weights = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        return {"x": self.x} | states | weights

    def incoming(self) -> dict[str, Tensor]:
        """The gradient that reaches each output, by name."""
        grads = {"y": self.grad_y} | named_states(self.case, self.grad_h_n, "_n")
        return {f"grad_{name}": grad for name, grad in grads.items()}

    def leaves(self) -> dict[str, Tensor]:
        """Those of `inputs` that get a gradient: none of a quantized module."""
        inputs = {} if self.case.quantized else self.inputs()
        return {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}

    def to(self, dtype: torch.dtype) -> Call:
        """The same values in another dtype."""
        return self._map(lambda tensor: tensor.to(dtype))

    def nearby(self, seed: int) -> Call:
        """The same call with every number changed at random, by less than a hundredth of itself.

        A call of a quantized module is another one of its kind, since such a change would leave
        numbers in doubt (`rnnjit.testing.int8`).
        """
        if self.case.quantized:
            return build(replace(self.case, id=f"{self.case.id} {seed}"))
        generator = torch.Generator("cpu").manual_seed(seed)

        def change(tensor: Tensor) -> Tensor:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            factor = 1 + (noise.to(tensor.device) - 0.5) / 64
            return (tensor.double() * factor).to(tensor.dtype)

        return self._map(change)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Call:
        module = copy.deepcopy(self.module)
        for parameter in module.parameters():
            parameter.data = change(parameter.data)
        return Call(
            self.case,
            module,
            _leaf(self.x, change(self.x.detach())),
            self.hx and tuple(_leaf(state, change(state.detach())) for state in self.hx),
            change(self.grad_y),
            tuple(change(grad) for grad in self.grad_h_n),
        )


def named_states(case: Case, states: States, suffix: str) -> dict[str, Tensor]:
    """States by name: h0, c0 with the suffix "0", h_n, c_n with "_n"."""
    names = [name + suffix for name in case.spec.cell.states]
    return dict(zip(names, states, strict=True))


def _leaf(like: Tensor, values: Tensor) -> Tensor:
    return values.requires_grad_(like.requires_grad)


def build(case: Case) -> Call:
    """The tensors of a case; the same at every call."""
    draw = _source(case)
    with torch.random.fork_rng(devices=[]):
        module = _module(case, draw)
    x, hx = _settled(case) if case.quantized else _drawn(case, draw)
    x = _lay(case.layout, x.clone())
    hx = hx and tuple(_lay(case.layout, state.clone()) for state in hx)
    for name, state in named_states(case, hx, "0").items() if hx else ():
        state.requires_grad_(name not in case.frozen)
    return Call(
        case,
        module,
        x.requires_grad_("x" not in case.frozen),
        hx,
        draw(case.y_shape).to(case.dtype),
        tuple(draw(shape).to(case.dtype) for shape in case.state_shapes),
    )


def _source(case: Case) -> Draw:
    """Where a case's values come from."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(case.id.encode()))

    def draw(shape: Sequence[int]) -> Tensor:
        # Drawn on the CPU, so that the values are the same on every device.
        values = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(case.device)

    return draw


def _drawn(case: Case, draw: Draw) -> tuple[Tensor, States | None]:
    """An input, and initial states if the case has them."""
    steps_first = (case.steps, case.batch)
    leading = steps_first[::-1] if case.batch_first else steps_first
    shape = (*((case.T,) if case.unbatched else leading), case.input_size)
    x = _special(case, draw(shape)).to(case.dtype)
    if not case.h0:
        return x, None
    states = [draw(each) for each in case.state_shapes]
    if case.values == "ties":
        states = [_ties(state) for state in states]
    return x, tuple(state.to(case.dtype) for state in states)


@lru_cache(maxsize=128)  # it takes several runs of the layer
def _settled(case: Case) -> tuple[Tensor, States | None]:
    """As `_drawn`, with other sequences in the place of those that have a number in doubt."""
    draw = _source(case)
    with torch.random.fork_rng(devices=[]):
        contract = Contract(case.spec, _module(case, draw))
    x, hx = _drawn(case, draw)
    axis = None if case.unbatched else 0 if case.batch_first else 1
    for _ in range(_DRAWS):
        wide = None if hx is None else tuple(state.double() for state in hx)
        doubtful = contract.doubtful(*_arguments(case, x.double(), wide))
        if not doubtful.any():
            return x, hx
        more_x, more_hx = _drawn(case, draw)
        x = _exchanged(doubtful, x, more_x, axis)
        if hx is not None and more_hx is not None:
            dim = None if case.unbatched else 1
            hx = tuple(_exchanged(doubtful, *two, dim) for two in zip(hx, more_hx, strict=True))
    raise ValueError(
        f"{case.id}: in {_DRAWS} draws a sequence always had a number in doubt "
        "(rnnjit.testing.int8): a quantized case needs fewer steps, layers or features"
    )


def _exchanged(which: Tensor, tensor: Tensor, other: Tensor, dim: int | None) -> Tensor:
    """A tensor with the chosen slices of another in a dimension; None: there is one slice."""
    if dim is None:
        return other
    chosen = which.nonzero().flatten().to(tensor.device)
    return tensor.index_copy(dim, chosen, other.index_select(dim, chosen))


def _arguments(
    case: Case, x: Tensor, hx: States | None
) -> tuple[Tensor | PackedSequence, Tensor | States | None]:
    """What a module is called with."""
    given = None if hx is None else as_hx(hx)
    if case.lengths is None:
        return x, given
    packed = pack_padded_sequence(x, list(case.lengths), case.batch_first, case.enforce_sorted)
    return packed, given


def _layer(case: Case) -> nn.Module:
    """The layer of a case, with any weights."""
    if case.user_cell is None:
        return torch_module(case.spec, case.dtype).to(case.device)
    cell = USER_CELLS[case.user_cell](case.input_size, case.hidden_size, bias=case.bias)
    given = (case.num_layers, case.dropout, case.bidirectional, case.batch_first)
    return Recurrent(cell, *given).to(case.device, case.dtype)


def _module(case: Case, draw: Draw) -> nn.Module:
    module = _layer(case).train(case.training)
    # Expanded weights share elements, which training them would not survive.
    layout = "contiguous" if case.layout == "expanded" else case.layout
    for name, parameter in module.named_parameters():
        values = draw(parameter.shape) * (0.6 / case.hidden_size**0.5)
        parameter.data = _lay(layout, values.to(case.dtype))
        parameter.requires_grad_(not {name, "weights"} & case.frozen)
    if case.quantized:
        module = quantize(module, backend=ReferenceBackend(), inplace=True)
        for buffer in module.buffers():
            buffer.data = _lay(layout, buffer)
    return module


def _special(case: Case, x: Tensor) -> Tensor:
    if case.values == "tiny":
        return x * 1e-4
    if case.values == "saturated":
        return x * 8
    if case.values == "ties":
        return _ties(x)
    if case.values in ("nan", "inf"):
        # One element in the first sequence and one in the second: the others stay finite.
        steps_first = x.unsqueeze(1) if case.unbatched else x
        if case.batch_first and not case.unbatched:
            steps_first = x.transpose(0, 1)
        T, B, I = steps_first.shape
        bad = float(case.values)
        steps_first[1 % T, 0, 0] = bad
        steps_first[T // 2, 1 % B, 1 % I] = -bad
    return x


def _ties(values: Tensor) -> Tensor:
    """Rows whose int8 numbers lie in the middle of two, but for the first, the largest.

    For the scale of each is a power of two, by which float32 divides exactly.
    """
    tied = (values * 50).clamp(-126, 126).floor() + 0.5
    tied[..., 0] = torch.full_like(values[..., 0], 127).copysign(values[..., 0])
    return tied * 2 ** (4 * values[..., :1]).floor().clamp(-11, -7)


def _lay(layout: str, tensor: Tensor) -> Tensor:
    """The same values (the first slice's, if expanded) laid out otherwise in memory."""
    if layout == "transposed":
        dims = list(range(tensor.dim()))[::-1]
        return tensor.permute(dims).contiguous().permute(dims)
    if layout == "offset":
        # Three elements: off every vector's alignment.
        return torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].view(tensor.shape)
    if layout == "strided":
        return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
    if layout == "expanded":
        return tensor[:1].clone().expand(tensor.shape)
    return tensor.clone()


def _generators(x: Tensor) -> list[int]:
    """The CUDA devices whose generators `_seed` would change for good."""
    return [x.get_device()] if x.is_cuda else []


def _seed(x: Tensor) -> None:
    """Seed the generator that draws dropout's masks; `torch.manual_seed`, of all, takes long."""
    if x.is_cuda:
        torch.cuda.manual_seed(_DROPOUT_SEED)
    else:
        torch.default_generator.manual_seed(_DROPOUT_SEED)


def forward(module: Layer, call: Call) -> tuple[Tensor, States, Values]:
    """Call `module` on the case's arguments, always with the same dropout masks.

    Returns:
        y (its `data` if packed), the last states, and all parts of the result by name.

    Raises:
        AssertionError: the result is not of the form that torch's own module gives.
    """
    with torch.random.fork_rng(devices=_generators(call.x)), warnings.catch_warnings():
        # Torch's own layer says so once: what it then runs is the standard all the same.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with")
        _seed(call.x)
        output, last = module(*call.arguments())
    case = call.case
    expected = Tensor if case.lengths is None else PackedSequence
    if not isinstance(output, expected):
        raise AssertionError(
            f"the output is a {type(output).__name__}, eager's is a {expected.__name__}"
        )
    count = len(case.spec.cell.states)
    h_n = (last,) if count == 1 else last
    if type(h_n) is not tuple or len(h_n) != count or not all(isinstance(s, Tensor) for s in h_n):
        form = "a Tensor" if count == 1 else f"a tuple of {count} Tensors"
        raise AssertionError(f"the last state is a {type(last).__name__}, eager's is {form}")
    states = named_states(case, h_n, "_n")
    y = output if isinstance(output, Tensor) else output.data
    if case.quantized and any(result.requires_grad for result in (y, *h_n)):
        raise AssertionError("a result requires a gradient, that of int8 matrices never does")
    if isinstance(output, Tensor):
        return output, h_n, {"y": output, **states}
    parts: Values = {"y": output.data, **states}
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        parts[f"y.{name}"] = getattr(output, name)
    return output.data, h_n, parts


def gradients(call: Call, y: Tensor, h_n: States, *, create_graph: bool = False) -> Values:
    """The gradients of the case's loss for every leaf, by name."""
    leaves = call.leaves()
    if not leaves:
        return {}
    outputs, grads = _loss(call, {"y": y} | named_states(call.case, h_n, "_n"))
    found = torch.autograd.grad(
        outputs,
        list(leaves.values()),
        grads,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return {f"the gradient of {name}": grad for name, grad in zip(leaves, found, strict=True)}


def _loss(call: Call, outputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
    """What is differentiated, and the gradients that reach it."""
    loss = call.case.loss
    if loss == "sum":
        return [torch.stack([output.sum() for output in outputs.values()]).sum()], None
    names, incoming = list(outputs) if loss == "all" else [loss], call.incoming()
    return [outputs[name] for name in names], [incoming[f"grad_{name}"] for name in names]
