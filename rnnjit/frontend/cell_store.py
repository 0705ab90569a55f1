"""The cells of a stack whose tensors another module owns, under flat names.

A `Recurrent` owns the parameters and buffers of its cells: `alpha` of layer 0's reverse direction
is its `alpha_l0_reverse`. The cells here hold none. For each call they are copied, with the tensors
that the owner has at that moment, so that whatever replaces tensors (`functional_call`,
parametrizations, `load_state_dict(assign=True)`) reaches the cells, also in several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from rnnjit.runtime.torch_private import buffers_of, children_of, parameters_of


class Held(NamedTuple):
    """One tensor of a cell.

    Attributes:
        path: its name in the cell, such as "norm.weight".
        stem: its flat name without the layer, such as "norm_weight".
        tensor: the tensor; None where the cell has the name alone.
        persistent: whether the `state_dict` has it.
        is_parameter: False for a buffer.
    """

    path: str
    stem: str
    tensor: Tensor | None
    persistent: bool
    is_parameter: bool


def held_by(cell: nn.Module, prefix: str = "") -> Iterator[Held]:
    """Every parameter and buffer of a cell, also where one stands twice."""
    stem = prefix.replace(".", "_")
    unsaved = vars(cell).get("_non_persistent_buffers_set", ())
    for name, tensor in parameters_of(cell).items():
        yield Held(prefix + name, stem + name, tensor, True, True)
    for name, tensor in buffers_of(cell).items():
        yield Held(prefix + name, stem + name, tensor, name not in unsaved, False)
    for name, child in children_of(cell).items():
        if child is not None:
            yield from held_by(child, f"{prefix}{name}.")


def suffix_of(layer: int, direction: int) -> str:
    """What follows a stem in the flat name of a direction's tensor: `_l0_reverse`."""
    return f"_l{layer}{'_reverse' if direction else ''}"


class CellStore:
    """The cells of all layers and directions, without tensors.

    Args:
        cells: one for each direction of each layer, in the order of nn.RNN's weights.
        directions: D.

    Attributes:
        cells: copies without tensors; their other attributes are those that calls see.
        names: for each cell, from the paths of its tensors to the flat names.
    """

    def __init__(self, cells: list[nn.Module], directions: int) -> None:
        self.cells = tuple(_copied(cell, lambda _: None) for cell in cells)
        self.names: tuple[dict[str, str], ...] = tuple(
            _flat_names(cell, suffix_of(*divmod(index, directions)))
            for index, cell in enumerate(cells)
        )

    def bind(self, owner: nn.Module) -> tuple[Any, ...]:
        """Copies of the cells that have the owner's current tensors and its training mode."""
        return tuple([self.bind_one(owner, index) for index in range(len(self.cells))])

    def bind_one(self, owner: nn.Module, index: int) -> Any:
        """A copy of cell number `index`, as `bind`."""
        parameters, buffers, names = parameters_of(owner), buffers_of(owner), self.names[index]

        def current(path: str) -> Any:
            name = names.get(path)
            if name is None:
                return None
            if name in parameters:
                return parameters[name]
            return buffers[name] if name in buffers else getattr(owner, name)

        return _copied(self.cells[index], current, training=owner.training)


def _copied(
    module: nn.Module,
    tensor_of: Callable[[str], Tensor | None],
    prefix: str = "",
    training: bool | None = None,
) -> nn.Module:
    """A copy of a module and its submodules with other tensors, and the same other attributes."""
    made: nn.Module = object.__new__(type(module))  # a `__new__` of the user's may need arguments
    own = dict(vars(module))
    own["_parameters"] = {name: tensor_of(prefix + name) for name in parameters_of(module)}
    own["_buffers"] = {name: tensor_of(prefix + name) for name in buffers_of(module)}
    own["_modules"] = {
        name: child and _copied(child, tensor_of, f"{prefix}{name}.", training)
        for name, child in children_of(module).items()
    }
    if training is not None:
        own["training"] = training
    made.__dict__ = own
    return made


def _flat_names(cell: nn.Module, suffix: str) -> dict[str, str]:
    """From the path of each tensor of a cell to its flat name.

    Raises:
        ValueError: two of them would have the same.
    """
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for each in held_by(cell):
        if each.tensor is None:
            continue
        if (other := taken.setdefault(each.stem, each.path)) != each.path:
            raise ValueError(
                f"the tensors {other!r} and {each.path!r} of {type(cell).__name__} would both be "
                f"{each.stem + suffix!r}: rename one"
            )
        found[each.path] = each.stem + suffix
    return found


def check_alike(first: nn.Module, other: nn.Module, where: str) -> None:
    """Check that a cell that was constructed anew has the tensors of the one that was given.

    Raises:
        ValueError: it has others: the given cell was changed after its construction.
    """
    names, others = _stems(first), _stems(other)
    if names != others:
        different = sorted(names ^ others)
        raise ValueError(
            f"{type(first).__name__} for {where} was constructed with the arguments of the given "
            f"cell and has other tensors than it: {', '.join(different)}. The given cell was "
            "changed after its construction: do so in its __init__"
        )


def _stems(cell: nn.Module) -> frozenset[str]:
    return frozenset(each.path for each in held_by(cell) if each.tensor is not None)


def register(owner: nn.Module, cell: nn.Module, names: Mapping[str, str]) -> None:
    """Give a module the parameters and buffers of a cell under the flat names."""
    for each in held_by(cell):
        if each.tensor is None:
            continue
        name: Any = names[each.path]
        if each.is_parameter:
            owner.register_parameter(name, each.tensor)  # type: ignore[arg-type]  # a Parameter
        else:
            owner.register_buffer(name, each.tensor, persistent=each.persistent)
