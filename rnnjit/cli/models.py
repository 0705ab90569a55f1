"""Finds the nn.RNNs in a file that `torch.save` wrote, without running untrusted code.

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
from rnnjit.frontend.compiled_layer import CompiledRNN
from rnnjit.spec import RNNSpec

#: The nonlinearity assumed for a state_dict, which does not record it.
_ASSUMED = "tanh"
_FIRST_WEIGHT = re.compile(r"(?P<prefix>(?:.*\.)?)weight_hh_l0")


def read(
    file: str, *, nonlinearity: str | None, trust: bool, say: Callable[[str], None]
) -> dict[str, nn.RNNBase]:
    """Every distinct nn.RNN in a file of `torch.save`, by path; see `load` and `find_rnns`."""
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
    """Rebuild every distinct nn.RNN in the content of a file, with its weights; by path.

    Args:
        file: path of the file, for messages.
        content: a module, a state_dict, or a dict that holds some.
        nonlinearity: "tanh" or "relu", for the RNNs of a state_dict, which does not record it; None
            for torch's default.
        say: called with a line that states this assumption.

    Raises:
        UsageError: there is none, one cannot be rebuilt, or `nonlinearity` is given although no
            RNN comes from a state_dict.
    """
    found: dict[str, nn.RNNBase] = {}
    others: Counter[str] = Counter()
    from_state_dict = False
    try:
        for path, part in _parts(content):
            if isinstance(part, nn.Module):
                found |= {_join(path, name): rnn for name, rnn in _of_module(part, others)}
            else:
                rebuilt = {_join(path, name): rnn for name, rnn in _of_state(part, nonlinearity)}
                from_state_dict |= bool(rebuilt)
                found |= rebuilt
    except Exception as error:  # noqa: BLE001 - a file may hold anything in the place of anything
        raise UsageError(
            f"{file!r} holds an nn.RNN that cannot be rebuilt: {described(error)}"
        ) from None
    if not found:
        raise UsageError(f"{file!r} holds no nn.RNN: {_instead(content, others)}")
    if nonlinearity is not None and not from_state_dict:
        raise UsageError("--nonlinearity is for a state_dict: a saved module knows its own")
    if nonlinearity is None and from_state_dict:
        say(f"{file!r} is a state_dict, which does not name the nonlinearity: {_ASSUMED} assumed")
    return found


def _harmless() -> list[Any]:
    """The classes that a saved model may name: PyTorch's layers, and ours."""
    layers = [getattr(nn.modules, name) for name in nn.modules.__all__]
    # Part of every nn.MultiheadAttention, but not in `nn.modules.__all__`.
    layers.append(nn.modules.linear.NonDynamicallyQuantizableLinear)
    return [*layers, CompiledRNN, empty]


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
    """Every nn.RNN in a module that `rnnjit.compile` compiles; counts other recurrent layers."""
    for name, child in module.named_modules():
        plain = isinstance(child, nn.RNN) and type(child).forward is nn.RNN.forward
        plain &= "forward" not in vars(child)
        if plain or isinstance(child, CompiledRNN):
            weights = dict(zip(weight_names(child), weights_of(child), strict=True))
            yield name, _rebuild(capture(child), weights)
        elif isinstance(child, (nn.RNNBase, nn.RNNCellBase)):
            others[type(child).__name__] += 1


def _of_state(
    state: dict[str, Tensor], nonlinearity: str | None
) -> Iterator[tuple[str, nn.RNNBase]]:
    """Every nn.RNN whose weights are in a state_dict; LSTM and GRU weights have more rows."""
    for key in state:
        match = _FIRST_WEIGHT.fullmatch(key)
        if match is None or state[key].dim() != 2 or state[key].shape[0] != state[key].shape[1]:
            continue
        prefix = match["prefix"]
        pattern = re.compile(re.escape(prefix) + r"((?:weight|bias)_(?:ih|hh)_l(\d+)(?:_reverse)?)")
        matches = [found for found in map(pattern.fullmatch, state) if found]
        weights = {found[1]: state[found[0]] for found in matches}
        spec = RNNSpec(
            input_size=weights["weight_ih_l0"].shape[1],
            hidden_size=weights["weight_hh_l0"].shape[0],
            num_layers=1 + max(int(found[2]) for found in matches),
            cell=CELL_OF_NONLINEARITY[nonlinearity or _ASSUMED],
            bias="bias_ih_l0" in weights,
            bidirectional="weight_hh_l0_reverse" in weights,
        )
        yield prefix.removesuffix("."), _rebuild(spec, weights)


def _rebuild(spec: RNNSpec, weights: dict[str, Tensor]) -> nn.RNNBase:
    """Construct a plain, trainable nn.RNN, without hooks or methods from the file."""
    rnn = torch_module(spec, next(iter(weights.values())).dtype)
    rnn.load_state_dict(weights)
    return rnn


def _instead(content: Any, others: Counter[str]) -> str:
    if others:
        layers = ", ".join(f"{count} {name}" for name, count in others.items())
        return f"it has {layers}, which are not compiled for now"
    if isinstance(content, nn.Module):
        return f"it is a {type(content).__name__} without one"
    if isinstance(content, Mapping):
        return "it is a dict without a module or the weights of one"
    return f"it is a {type(content).__name__}, expected a module or a state_dict"


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
