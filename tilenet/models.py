"""Models on disk: weights and their card in one file, loaded without running its code.

The format is safetensors with the card in its metadata. PyTorch state dicts are read too,
always with ``weights_only=True``: a pickle can run anything.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tilenet.card import ModelCard
from tilenet.errors import ModelError, ModelNotFound
from tilenet.scaling import parse_rule
from tilenet.unet import UNet

WEIGHTS = Path(__file__).parent / "weights"
NESTS = ("state_dict", "model_state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
State = dict[str, Tensor]


def packaged_models() -> list[str]:
    """Return the names of the models that come with tilenet."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_model(model: str | Path) -> Path:
    """Return the file of a packaged model's name, or of a path (`ModelNotFound`)."""
    if str(model) in packaged_models():
        return WEIGHTS / f"{model}.safetensors"
    path = Path(model)
    if not path.is_file():
        names = ", ".join(packaged_models())
        raise ModelNotFound(f"{model}: no such model. Give a .safetensors or .pt file, or a packaged name: {names}")
    return path


def load_model(model: str | Path, **options: Any) -> UNet:
    """Load a network and its card.

    Parameters
    ----------
    model : str or path
        A packaged model's name (``"nuclei"``), a ``.safetensors`` file, or a PyTorch state
        dict, bare or under ``state_dict`` or ``model_state_dict``.
    **options
        Options of `UNet` that a bare state dict cannot say: ``padding``, ``pooling``, and
        ``pool_size`` where it upsamples. What contradicts the file is refused.

    Returns
    -------
    UNet
        In eval mode on the CPU; its card is the attribute ``card``.

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
        state, card = _read(path)
        architecture = _architecture(state, card, options)
        network = _build(state, architecture)
        network.card = replace(card, name=card.name or path.stem, architecture=network.options).completed(
            network.n_classes
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return network


def save_model(model: UNet, path: str | Path, *, card: ModelCard | None = None) -> Path:
    """Write a network and its card to one ``.safetensors`` file.

    Parameters
    ----------
    model : UNet
        Its weights are stored as they are.
    path : str or path
        Must end in ``.safetensors``; an existing file is replaced.
    card : ModelCard, optional
        Default the network's own ``card``; the architecture is always the network's.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: models are written as .safetensors. Change the ending")
    card = card or model.card or ModelCard()
    card = replace(card, name=card.name or path.stem, architecture=model.options).completed(model.n_classes)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", "tilenet": card.to_json()})
    return path


def convert_model(
    weights: str | Path,
    out: str | Path,
    *,
    classes: str | None = None,
    mask_of_class: tuple[int, ...] | None = None,
    scaling: str | None = None,
    **options: Any,
) -> Path:
    """Write weights of any kind that `load_model` takes as one file with a card.

    Parameters
    ----------
    weights, out : path
        What to read, and the ``.safetensors`` file to write.
    classes : str, optional
        Names of the outputs, commas between them.
    mask_of_class : tuple of int, optional
        Mask value of each output.
    scaling : str, optional
        Rule for intensities as on the command line; see `tilenet.scaling.parse_rule`.
    **options
        As for `load_model`.
    """
    network = load_model(weights, **options)
    card = network.card or ModelCard()
    said: dict[str, Any] = {}
    if classes is not None or mask_of_class is not None:
        said["labels"] = {}
    if classes is not None:
        said["classes"] = tuple(classes.split(","))
    if mask_of_class is not None:
        said["mask_of_class"] = mask_of_class
    if scaling is not None:
        said["scaling"] = parse_rule(scaling)
    return save_model(network, out, card=replace(card, **said))


def fingerprint(network: nn.Module) -> str:
    """Return the sha256 of a network's weights: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[State, ModelCard]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ModelError(f"not a plain PyTorch state dict ({_first_line(error)}). Save model.state_dict()") from error
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"holds a {type(content).__name__}, not a state dict. Save model.state_dict()")
    return {_unwrapped(str(key)): value for key, value in content.items()}, ModelCard()


def _read_safetensors(path: Path) -> tuple[State, ModelCard]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("tilenet")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"not a safetensors file ({_first_line(error)}). Copy or convert it again") from error
    return state, ModelCard.from_json(text) if text else ModelCard()


def _unwrapped(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.removeprefix(wrapper)
    return key


def _architecture(state: State, card: ModelCard, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the network: the card's, or those that the keys tell."""
    known = card.architecture or options_of_keys(state)
    if not card.architecture:
        return known | dict(options)
    for name, value in options.items():
        if known.get(name) != value:
            raise ModelError(f"its card says {name} is {known.get(name)}, not {value}. Leave the option out")
    return known


def options_of_keys(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of the U-Net that has these parameters.

    All but ``padding``, ``pooling`` and, with upsampling, ``pool_size`` can be read off.
    """
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
        raise ModelError(f"these are not the weights of a U-Net: no {error} among its keys ({keys}, ...)") from error


def _build(state: State, architecture: Mapping[str, Any]) -> UNet:
    try:
        with torch.device("meta"):  # so that absurd options cost nothing before they are refused
            network = UNet(**architecture)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"its architecture cannot be built ({_first_line(error)})") from error
    wanted = network.state_dict()
    state = _modernised(state, wanted)
    for key in [*wanted, *state]:
        if key not in state or key not in wanted:
            kind = "missing" if key not in state else "unexpected"
            raise ModelError(f"{kind} key {key}. Are these the weights of this architecture? {dict(architecture)}")
        if state[key].shape != wanted[key].shape:
            shapes = f"{tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
            raise ModelError(f"key {key} has shape {shapes}. Are these the weights of this architecture?")
        if not torch.isfinite(state[key]).all():
            raise ModelError(f"key {key} has values that are not finite. The training failed, or the file is damaged")
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _modernised(state: State, wanted: Mapping[str, Tensor]) -> State:
    """Return weights in at least float32, with the counters that old checkpoints lack."""
    counters = {k: torch.tensor(0) for k in wanted if k.endswith("num_batches_tracked")}
    halves = (torch.float16, torch.bfloat16)
    return {k: v.float() if v.dtype in halves else v for k, v in (counters | state).items()}


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]
