"""Finds the nn.RNNs in a file that `torch.save` wrote, trusting no more of it than is named.

Files are read with `weights_only=True`: only the classes on a list of ours may be built. A file
that names others is refused, or read with exactly those added once the user says so.
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
from rnnjit.frontend.class_rewrite import empty
from rnnjit.frontend.compiled_layer import CompiledRNN
from rnnjit.spec import RNNSpec

#: The nonlinearity of a state_dict, which does not name it.
_ASSUMED = "tanh"
_FIRST_WEIGHT = re.compile(r"(?P<prefix>(?:.*\.)?)weight_hh_l0")


def read(
    file: str, *, nonlinearity: str | None, trust: bool, say: Callable[[str], None]
) -> dict[str, nn.RNNBase]:
    """Every distinct nn.RNN in a file that `torch.save` wrote, as `load` and `find_rnns` say."""
    content = load(file, trust=trust, say=say)
    return find_rnns(file, content, nonlinearity=nonlinearity, say=say)


def load(file: str, *, trust: bool, say: Callable[[str], None]) -> Any:
    """What `torch.save` put into a file, on the CPU.

    Args:
        file: path of the file.
        trust: go on where the file names classes other than PyTorch's and rnnjit's own.
        say: gets the line that names those classes, before they are imported.

    Raises:
        UsageError: there is no such file, it cannot be read, or it would have to be trusted.
    """
    with warnings.catch_warnings(), safe_globals(_harmless()):
        warnings.simplefilter("ignore")  # torch's own, on the formats of old files
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
    """Every distinct nn.RNN in what a file held, rebuilt with its weights, by its path.

    Args:
        file: path of the file, for messages.
        content: a module, a state_dict, or a dict that holds some.
        nonlinearity: as torch names it, for the RNNs of a state_dict, which does not say it; None
            for the one that torch takes by default.
        say: gets the line that tells of this assumption.

    Raises:
        UsageError: there is none, one cannot be rebuilt, or `nonlinearity` has no use.
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
    """What a saved model may name beyond tensors: PyTorch's layers, and ours."""
    layers = [getattr(nn.modules, name) for name in nn.modules.__all__]
    # Part of every nn.MultiheadAttention, and in no list of PyTorch's.
    layers.append(nn.modules.linear.NonDynamicallyQuantizableLinear)
    return [*layers, CompiledRNN, empty]


def _foreign_globals(file: str) -> list[str]:
    """The classes and functions that a file names beyond the allowed ones."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    except ValueError:
        # Not a zip file: an old torch.save, of which torch.load itself refuses what is not allowed.
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
    """The class or function behind a dotted name, as pickle would look it up."""
    module, _, attribute = name.rpartition(".")
    with _working_folder_importable():
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{file!r} names {name}, which cannot be imported: {error}") from None


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    """A user's own classes mostly lie where the user is."""
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
    """Every nn.RNN in a module that `rnnjit.compile` would compile; counts the other layers."""
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
    """Every nn.RNN whose weights are in a state_dict; LSTM and GRU have taller weights."""
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
    """A plain, trainable nn.RNN: no hooks and no methods of the file's own."""
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
