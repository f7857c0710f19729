"""The network that the weights in a file are of: as their card says, or else as their names and shapes reveal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tilenet.card import ModelCard
from tilenet.errors import ModelError, one_line
from tilenet.models.weights import State
from tilenet.unet import UNet

# Type and largest value of each option. Beyond these values, not even the list of layers is built.
LARGEST = (
    ("depth", int, 16),
    ("wf", int, 24),
    ("ndim", int, 3),
    ("in_channels", int, 2**16),
    ("n_classes", int, 2**16),
    ("padding", bool, True),
    ("batch_norm", bool, True),
)
LARGEST_POOL = 8
# Ends the name of a count that batch normalisation keeps, which old checkpoints lack.
COUNTER = "num_batches_tracked"
REMEDY = "Get the file again, or save model.state_dict() anew"


def network_of(claims: State, card: ModelCard, options: Mapping[str, Any]) -> UNet:
    """Return the network that a file is of, without weights; refuse claims that are not those of its weights.

    `ModelError` also for options that contradict the card.
    """
    network = _skeleton(_architecture(claims, card, options))
    _check_claims(claims, network)
    return network


def _architecture(state: State, card: ModelCard, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the network: those of the card, or else `options` and what the keys reveal."""
    if not card.architecture:
        return _options_of_keys(state) | dict(options)
    known = card.architecture
    for name, value in options.items():
        if known.get(name) != (list(value) if isinstance(value, tuple) else value):
            raise ModelError(f"its card says {name} is {known.get(name)}, not {value}. Leave the option out")
    return known


def _options_of_keys(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Derive the options of a U-Net from its parameters: all that `load_model` does not ask for."""
    try:
        first, last = state["down_path.0.block.0.weight"], state["last.weight"]
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("down_path."))
        found: dict[str, Any] = {
            "in_channels": first.shape[1],
            "n_classes": last.shape[0],
            "depth": depth,
            "wf": first.shape[0].bit_length() - 1,
            "batch_norm": "down_path.0.block.2.running_mean" in state,
            "ndim": first.ndim - 2,
        }
        if depth > 1:
            up = state.get("up_path.0.up.weight")
            found["up_mode"] = "upsample" if up is None else "upconv"
            found |= {} if up is None else {"pool_size": list(up.shape[2:])}
        return found
    except (KeyError, ValueError, IndexError) as error:
        keys = ", ".join(list(state)[:2]) or "none"
        what = f"no {error} among its keys" if isinstance(error, KeyError) else "other numbers or shapes in its keys"
        raise ModelError(
            f"these are not the weights of a U-Net: {what} ({keys}, ...). For another network, give "
            "MODULE:FUNCTION, such as my_networks:build: a Python function that returns it"
        ) from error


def _skeleton(architecture: Mapping[str, Any]) -> UNet:
    """Return the network without allocating its weights, so that absurd options cost nothing."""
    for name, kind, largest in LARGEST:
        value = architecture.get(name, kind(1))
        if type(value) is not kind or value > largest:
            raise ModelError(f"its {name} is {str(value)[:40]}, which no U-Net has. {REMEDY}")
    if any(type(n) is not int or n > LARGEST_POOL for n in architecture.get("pool_size") or ()):
        raise ModelError(
            f"its pool_size {str(architecture['pool_size'])[:40]} is none of 1 to {LARGEST_POOL}. {REMEDY}"
        )
    try:
        with torch.device("meta"):
            return UNet(**architecture)
    except Exception as error:
        raise ModelError(f"its architecture cannot be built ({one_line(error)}). {REMEDY}") from error


def _check_claims(claims: State, network: UNet) -> None:
    wanted = network.state_dict()
    for key in [*wanted, *claims]:
        if key not in claims and key.endswith(COUNTER):
            continue
        if key not in claims or key not in wanted:
            kind = "missing" if key not in claims else "unexpected"
            raise ModelError(f"{kind} key {key}. Are these the weights of this architecture? {network.options}")
        if claims[key].shape != wanted[key].shape:
            shapes = f"{tuple(claims[key].shape)}, not {tuple(wanted[key].shape)}"
            raise ModelError(f"key {key} has shape {shapes}. Are these the weights of this architecture?")
