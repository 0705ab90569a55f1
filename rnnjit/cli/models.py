"""Finds the recurrent layers in a file that `torch.save` wrote, without running untrusted code.

Files are read with `weights_only=True`: only allowed classes may be constructed, those of PyTorch's
layers and of rnnjit. A file that names other classes is refused, unless the user passes `--trust`;
then exactly these classes are allowed too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rnnjit.cli.parser import UsageError, one_line
from rnnjit.errors import described
from rnnjit.frontend.capture import (
    CELL_OF_NONLINEARITY,
    capture,
    torch_module,
    weight_names,
    weights_of,
)
from rnnjit.frontend.compiled_class import empty
from rnnjit.frontend.compiled_layer import CompiledGRU, CompiledLayer, CompiledLSTM, CompiledRNN
from rnnjit.ir import GRU, LSTM, RNN_TANH, CellSpec
from rnnjit.spec import RNNSpec

#: The nonlinearity assumed for an nn.RNN in a state_dict, which does not record it.
_ASSUMED = "tanh"
#: The layers, with the cells that their gates tell from the others'; nn.RNN's nonlinearity is open.
_LAYERS: dict[type[nn.RNNBase], CellSpec] = {nn.RNN: RNN_TANH, nn.LSTM: LSTM, nn.GRU: GRU}
_WEIGHT = r"((?:weight|bias)_(?:ih|hh|hr)_l(\d+)(?:_reverse)?)"
_FIRST_WEIGHT = re.compile(r"(?P<prefix>(?:.*\.)?)weight_hh_l0")


def read(
    file: str, *, nonlinearity: str | None, trust: bool, say: Callable[[str], None]
) -> dict[str, nn.RNNBase]:
    """Every distinct layer in a file of `torch.save`, by path; see `load` and `find_rnns`."""
    content = load(file, trust=trust, say=say)
    return find_rnns(file, content, nonlinearity=nonlinearity, say=say)


def load(file: str, *, trust: bool, say: Callable[[str], None]) -> Any:
    """Load a file that `torch.save` wrote, onto the CPU.

    Args:
        file: path of the file.
        trust: whether to import classes in the file that are not PyTorch's or rnnjit's.
        say: called with a line that names those classes, before they are imported.

    Raises:
        UsageError: there is no such file, it cannot be read, or it needs `trust`.
    """
    with warnings.catch_warnings(), safe_globals(_harmless()):
        warnings.simplefilter("ignore")  # torch warns about old file formats
        try:
            foreign = _foreign_globals(file)
            if foreign:
                _ask(file, foreign, trust, say)
            with safe_globals([_import(file, name) for name in foreign]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(f"{file!r} cannot be opened: {error.strerror or error}") from None
        except Exception as error:  # noqa: BLE001 - a damaged pickle may fail in any way
            raise UsageError(_unreadable(file, error)) from None


def find_rnns(
    file: str, content: Any, *, nonlinearity: str | None, say: Callable[[str], None]
) -> dict[str, nn.RNNBase]:
    """Rebuild every distinct nn.RNN, nn.LSTM and nn.GRU in a file, with its weights; by path.

    Args:
        file: path of the file, for messages.
        content: a module, a state_dict, or a dict that holds some.
        nonlinearity: "tanh" or "relu", for the nn.RNNs of a state_dict, which does not record it;
            None for torch's default.
        say: called with a line that states this assumption.

    Raises:
        UsageError: there is none, one cannot be rebuilt, or `nonlinearity` is given although no
            nn.RNN comes from a state_dict.
    """
    found: dict[str, nn.RNNBase] = {}
    others: Counter[str] = Counter()
    open_choice = False
    try:
        for path, part in _parts(content):
            if isinstance(part, nn.Module):
                found |= {_join(path, name): rnn for name, rnn in _of_module(part, others)}
            else:
                rebuilt = {_join(path, name): rnn for name, rnn in _of_state(part, nonlinearity)}
                open_choice |= any(isinstance(rnn, nn.RNN) for rnn in rebuilt.values())
                found |= rebuilt
    except Exception as error:  # noqa: BLE001 - a file may hold anything in the place of anything
        raise UsageError(
            f"{file!r} holds a recurrent layer that cannot be rebuilt: {described(error)}"
        ) from None
    if not found:
        said = _instead(content, others)
        raise UsageError(f"{file!r} holds no nn.RNN, nn.LSTM or nn.GRU: {said}")
    if nonlinearity is not None and not open_choice:
        raise UsageError(
            "--nonlinearity is for an nn.RNN in a state_dict: a saved module knows its own, and "
            "nn.LSTM and nn.GRU have no choice"
        )
    if nonlinearity is None and open_choice:
        say(f"{file!r} is a state_dict, which does not name the nonlinearity: {_ASSUMED} assumed")
    return found


def _harmless() -> list[Any]:
    """The classes that a saved model may name: PyTorch's layers, and ours."""
    layers = [getattr(nn.modules, name) for name in nn.modules.__all__]
    # Part of every nn.MultiheadAttention, but not in `nn.modules.__all__`.
    layers.append(nn.modules.linear.NonDynamicallyQuantizableLinear)
    return [*layers, CompiledRNN, CompiledLSTM, CompiledGRU, empty]


def _foreign_globals(file: str) -> list[str]:
    """The classes and functions that a file names beyond the allowed ones."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    except ValueError:
        # Not a zip file: an old format, in which torch.load itself rejects other classes.
        return []


def _ask(file: str, foreign: list[str], trust: bool, say: Callable[[str], None]) -> None:
    names = ", ".join(foreign)
    if any(name.startswith("__main__.") for name in foreign):
        raise UsageError(
            f"{file!r} names {names}, defined in the script that saved it and not to be found "
            "here: save the model's state_dict() instead"
        )
    if not trust:
        raise UsageError(
            f"{file!r} names {names}, which can run code of their own: save the model's "
            "state_dict() instead, or trust exactly these with --trust"
        )
    say(f"trusting what {file!r} names: {names}")


def _import(file: str, name: str) -> Any:
    """Import the class or function of a dotted name, as pickle does."""
    module, _, attribute = name.rpartition(".")
    with _working_folder_importable():
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{file!r} names {name}, which cannot be imported: {error}") from None


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Make modules in the working directory importable, where users mostly have their classes."""
    before = sys.path[:]
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _unreadable(file: str, error: Exception) -> str:
    text = one_line(error)
    refused = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{file!r} names {refused[1]}, which torch.load refuses to build: "
            "save the model's state_dict() instead"
        )
    if "Only persistent_load of storage" in text:
        return (
            f"{file!r} holds a module in the format before PyTorch 1.6, which torch.load cannot "
            "read safely: save the model's state_dict() instead"
        )
    return f"{file!r} is not a file that torch.save wrote, or is damaged ({type(error).__name__})"


def _parts(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The modules and the state_dicts in nested dicts, each with its path."""
    if isinstance(content, nn.Module):
        yield path, content
    elif isinstance(content, Mapping):
        named = {key: value for key, value in content.items() if isinstance(key, str)}
        yield path, {key: value for key, value in named.items() if isinstance(value, Tensor)}
        for key, value in named.items():
            yield from _parts(value, _join(path, key))


def _of_module(module: nn.Module, others: Counter[str]) -> Iterator[tuple[str, nn.RNNBase]]:
    """Every layer that computes what torch's own does; counts other recurrent modules."""
    for name, child in module.named_modules():
        plain = any(
            isinstance(child, layer) and type(child).forward is layer.forward for layer in _LAYERS
        )
        plain &= "forward" not in vars(child)
        if plain or isinstance(child, CompiledLayer):
            weights = dict(zip(weight_names(child), weights_of(child), strict=True))
            yield name, _rebuild(capture(child), weights)
        elif isinstance(child, (nn.RNNBase, nn.RNNCellBase)):
            others[type(child).__name__] += 1


def _of_state(
    state: dict[str, Tensor], nonlinearity: str | None
) -> Iterator[tuple[str, nn.RNNBase]]:
    """Every layer whose weights are in a state_dict; the number of their rows tells its cell."""
    known = {len(cell.gates): cell for cell in _LAYERS.values()}
    known[1] = CELL_OF_NONLINEARITY[nonlinearity or _ASSUMED]
    for key in state:
        match = _FIRST_WEIGHT.fullmatch(key)
        if match is None or state[key].dim() != 2:
            continue
        prefix = match["prefix"]
        pattern = re.compile(re.escape(prefix) + _WEIGHT)
        matches = [found for found in map(pattern.fullmatch, state) if found]
        weights = {found[1]: state[found[0]] for found in matches}
        projection = weights.get("weight_hr_l0")
        rows, outputs = state[key].shape
        hidden_size = outputs if projection is None else projection.shape[1]
        cell = known.get(rows // hidden_size) if hidden_size else None
        if cell is None or rows % hidden_size:
            continue
        spec = RNNSpec(
            input_size=weights["weight_ih_l0"].shape[1],
            hidden_size=hidden_size,
            num_layers=1 + max(int(found[2]) for found in matches),
            cell=cell,
            bias="bias_ih_l0" in weights,
            bidirectional="weight_hh_l0_reverse" in weights,
            proj_size=0 if projection is None else outputs,
        )
        yield prefix.removesuffix("."), _rebuild(spec, weights)


def _rebuild(spec: RNNSpec, weights: dict[str, Tensor]) -> nn.RNNBase:
    """Construct a plain, trainable layer of torch, without hooks or methods from the file."""
    rnn = torch_module(spec, next(iter(weights.values())).dtype)
    rnn.load_state_dict(weights)
    return rnn


def _instead(content: Any, others: Counter[str]) -> str:
    if others:
        layers = ", ".join(f"{count} {name}" for name, count in others.items())
        return f"it has {layers}, which do not run as one of these by their weights alone"
    if isinstance(content, nn.Module):
        return f"it is a {type(content).__name__} without one"
    if isinstance(content, Mapping):
        return "it is a dict without a module or the weights of one"
    return f"it is a {type(content).__name__}, expected a module or a state_dict"


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
