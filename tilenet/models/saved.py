"""Models on disk: weights and their card in one file, loaded without running any code from it.

The format is safetensors with the card in its metadata. PyTorch state dicts are read too, always
with ``weights_only=True``, because a pickle can run any code.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from tilenet.card import ModelCard, parse_colors
from tilenet.errors import ModelError, ModelNotFound, OutputExists, one_line
from tilenet.models.architecture import COUNTER, REMEDY, network_of
from tilenet.models.weights import COMPILED, State, read_claims, read_weights
from tilenet.store.destination import put_whole
from tilenet.unet import UNet, is_as_built

LOG = logging.getLogger("tilenet")
WEIGHTS = Path(__file__).parent.parent / "weights"
# The option that no key of a state dict reveals and that affects most pixels.
UNSAID = "padding"
# Packaged models without a pixel size: what they know, how many pixels wide, and how many micrometres that mostly is.
KNOWN = {"nuclei": ("nuclei", (10, 40), (5, 15))}


def packaged_models() -> list[str]:
    """Return the names of the models that come with tilenet."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_model(model: str | Path) -> Path:
    """Return the file of a packaged model, given by its name, or of a path (raises `ModelNotFound`)."""
    if str(model) in packaged_models():
        return WEIGHTS / f"{model}.safetensors"
    path = Path(model)
    if not path.is_file():
        names = ", ".join(packaged_models())
        raise ModelNotFound(
            f"{str(model) or repr('')}: no such model. Give a .safetensors or .pt file, or a packaged name: {names}. "
            "Runs also take MODULE:FUNCTION"
        )
    return path


def load_model(model: str | Path, **options: Any) -> UNet:
    """Load a network and its card.

    Parameters
    ----------
    model : str or path
        A packaged model's name (``"nuclei"``), a ``.safetensors`` file, or a PyTorch state
        dict, bare or under ``state_dict``, ``model_state_dict`` or ``model``.
    **options
        Options of `UNet` that a bare state dict does not reveal: ``padding``, ``pooling``, and
        ``pool_size`` if its `up_mode` is ``"upsample"``. Options that contradict the file are refused.

    Returns
    -------
    UNet
        The network in eval mode on the CPU; its card is the attribute ``card``.

    Raises
    ------
    ModelNotFound, ModelError
        If there is no such file, or it does not hold the weights of a U-Net.

    Examples
    --------
    >>> load_model("nuclei").card.licence
    'CC0-1.0'
    """
    path = find_model(model)
    try:
        claims, card = read_claims(path)
        told = bool(card.architecture)
        network = network_of(claims, card, options)
        card = replace(card, name=card.name or path.stem, architecture=network.options)
        network.card = card.completed(network.n_classes)
        filled = _filled(network, read_weights(path, claims))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file may raise any kind of error in the library
        raise ModelError(f"{path}: not a model that can be read ({one_line(error)}). {REMEDY}") from error
    if UNSAID not in options and not told:
        LOG.warning(
            "%s: does not say whether its network pads with zeros, and is taken for one that does not. Say which: "
            "tilenet convert %s --out NAME.safetensors --padding, or --no-padding",
            *(path, path),
        )
    return filled


def save_model(model: UNet, path: str | Path, *, card: ModelCard | None = None) -> Path:
    """Write a network and its card to one ``.safetensors`` file.

    Parameters
    ----------
    model : UNet
        The network; its weights are stored unchanged.
    path : str or path
        Must end in ``.safetensors``; an existing file is replaced.
    card : ModelCard, optional
        Default the network's own ``card``; the architecture is always the network's.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ModelError
        If the network was changed, the path has another ending, or the card does not fit the network.
    EnvironmentFault
        If the file cannot be written.
    """
    path = Path(path)
    if not is_as_built(model):
        raise ModelError(
            f"{type(model).__name__}: only a UNet can be saved, and no changed one. Write a function that returns the "
            "network, and give MODULE:FUNCTION, such as my_networks:build"
        )
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: models are written as .safetensors. Change the ending")
    card = card or model.card or ModelCard()
    card = replace(card, name=card.name or path.stem, architecture=model.options).completed(model.n_classes)
    # Not with `save_file`, which makes files that only their owner may read.
    with put_whole(path) as part:
        part.write_bytes(_in_order(save(_weights(model), metadata={"format": "pt", "tilenet": card.to_json()})))
    return path


def _in_order(file: bytes) -> bytes:
    """Return a safetensors file with a sorted header: the library writes metadata in a random order."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header + file[end:]


def convert_model(
    weights: str | Path,
    out: str | Path,
    *,
    classes: str | None = None,
    mask_of_class: tuple[int, ...] | None = None,
    scaling: str | None = None,
    pixel_size: float | None = None,
    colors: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Convert weights of any format that `load_model` reads to one ``.safetensors`` file with a card.

    The arguments are those of `tilenet convert`, as texts: ``classes`` with commas between them, and the colours of
    `parse_colors`; `options` are those of `load_model`.
    """
    if not overwrite and Path(out).exists():
        raise OutputExists(f"{out}: exists already. Replace it (--overwrite), or choose another path")
    network = load_model(weights, **options)
    said: dict[str, Any] = {
        "classes": None if classes is None else tuple(classes.split(",")),
        "mask_of_class": mask_of_class,
        "scaling": scaling,
        "pixel_size": pixel_size,
        "colors": None if colors is None else parse_colors(colors),
    }
    said = {name: value for name, value in said.items() if value is not None}
    if {"classes", "mask_of_class"} & set(said):
        said = {"labels": {}, "colors": {}} | said
    card = replace(network.card or ModelCard(), **said).completed(network.n_classes)
    if unknown := sorted(set(map(int, card.colors)) - set(card.mask_of_class)):
        values = ", ".join(map(str, sorted(set(card.mask_of_class))))
        raise ModelError(f"a colour of mask value {unknown[0]}: its values are {values}. Give one of them")
    return save_model(network, out, card=card)


def fingerprint(network: nn.Module) -> str:
    """Return the sha256 of a network's weights, which is that of its form of `torch.compile`, too."""
    digest = hashlib.sha256()
    for key, value in sorted((key.replace(COMPILED, ""), value) for key, value in _weights(network).items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(network: nn.Module) -> State:
    """Return all weights by name; `state_dict` of a network may leave some out, or add values that are no tensors."""
    kept = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    return {name: value.detach().cpu().contiguous() for name, value in kept}


def class_name(model: object) -> str:
    """Return the name of a model's class; of a network from `torch.compile`, that of the network itself."""
    return type(getattr(model, COMPILED.rstrip("."), model)).__name__


def is_compiled(network: nn.Module) -> bool:
    """Return whether a network, or a part of it, comes from `torch.compile`."""
    return any(COMPILED in f"{name}." for name, _ in network.named_modules())


def _filled(network: UNet, state: State) -> UNet:
    """Return the network with its weights loaded; half precision is converted to float32."""
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"key {key} has values that are not finite. The training failed, or the file is damaged")
        if value.dtype in (torch.float16, torch.bfloat16):
            state[key] = value.float()
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith(COUNTER)}
    network.load_state_dict(counters | state, strict=True, assign=True)
    return network.eval().requires_grad_(False)
