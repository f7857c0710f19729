"""Read weights from an untrusted file: no code in it is run, and no claim in it is trusted.

The sizes that a file claims are compared with its length before memory is allocated, so that a file
of a few kilobytes cannot demand gigabytes.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tilenet.card import ModelCard
from tilenet.errors import ModelError

# Keys under which training scripts put the state dict beside other things.
NESTS = ("state_dict", "model_state_dict", "model")
# What torch.compile adds to names, and the prefixes that it and DataParallel add, in either order.
COMPILED = "_orig_mod."
WRAPPERS = ("module.", COMPILED)
# First bytes of a zip file, as which PyTorch saves since 1.6, and of a Git LFS pointer.
ZIP, POINTER = b"PK\x03\x04", b"version https://git-lfs"
# Records that only programs have, saved by torch.jit.save and by torch.export.save.
PROGRAMS = ("/constants.pkl", "/models/model.json")
# Most bytes of a safetensors header, and of the card in it; a U-Net's take a few thousand.
LARGEST_HEADER, LARGEST_CARD = 2**24, 2**20
# Most bytes of the pickle in a PyTorch file, and most records in its zip file, which has one for each tensor.
LARGEST_PICKLE, MOST_RECORDS = 2**24, 2**16
# Most bytes of a file from before PyTorch 1.6, which holds its weights inside the pickle and is read whole.
LARGEST_OLD = 2**30
State = dict[str, Tensor]


def read_claims(path: Path) -> tuple[State, ModelCard]:
    """Return the names and shapes of the weights, as tensors that may have no memory yet, and the card.

    `ModelError` if the file has no known format, or if what it claims is impossible.
    """
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise ModelError("is a Git LFS pointer, not the file itself. Run git lfs pull")
    if path.suffix != ".safetensors":
        return _read_pytorch(path, zipped=start.startswith(ZIP)), ModelCard()
    _check_header(path)
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
        claims = {key: torch.empty(s.get_shape(), device="meta") for key, s in slices.items()}
        return claims, _card((file.metadata() or {}).get("tilenet"))


def read_weights(path: Path, claims: State) -> State:
    """Return the weights, after the names and shapes in `claims` were checked."""
    if path.suffix != ".safetensors":
        return {key: value.clone() for key, value in claims.items()}
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in claims}


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= path.stat().st_size - 8:
        raise ModelError("not a safetensors file, or cut off in its header. Copy or convert it again")
    if length > LARGEST_HEADER:
        raise ModelError(f"its header has {length} bytes, too many for a U-Net's. Get the file again")


def _card(text: str | None) -> ModelCard:
    if text is None:
        return ModelCard()
    if len(text) > LARGEST_CARD:
        raise ModelError(f"its card has {len(text)} characters, too many for one. Get the file again")
    return ModelCard.from_json(text)


def _read_pytorch(path: Path, *, zipped: bool) -> State:
    size = path.stat().st_size
    if zipped:
        _check_zip(path, size)
    elif size > LARGEST_OLD:
        raise ModelError(f"is no zip file, and has {size} bytes. Save it with a newer PyTorch, or as .safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever PyTorch warns about here is refused below
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            raise ModelError(
                "not a plain PyTorch state dict: it is damaged, or would run code of its own. Save model.state_dict()"
            ) from error
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not all(map(_is_plain, content.values())):
        raise ModelError(
            f"holds a {type(content).__name__}, not a state dict of plain tensors. Save model.state_dict()"
        )
    if (claimed := sum(v.numel() * v.element_size() for v in content.values())) > size:
        raise ModelError(f"its tensors claim {claimed} bytes, the file has {size}. Save model.state_dict() again")
    return {_unwrapped(str(key)): value for key, value in content.items()}


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def _check_zip(path: Path, size: int) -> None:
    """Refuse what PyTorch never writes: compressed records, and records larger than the file."""
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
    if any(record.filename.endswith(PROGRAMS) for record in records):
        raise ModelError(
            "is a program of torch.jit or torch.export, and no state dict. Load it in a function of a Python module, "
            "and give MODULE:FUNCTION, such as my_networks:build"
        )
    if len(records) > MOST_RECORDS or sum(record.file_size for record in records) > size:
        raise ModelError(f"its records unpack to more than the file's {size} bytes. Save model.state_dict() again")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            raise ModelError(f"its record {record.filename!r} is packed. Save model.state_dict() with torch.save")
        if record.filename.endswith("data.pkl") and record.file_size > LARGEST_PICKLE:
            raise ModelError(f"its pickle has {record.file_size} bytes, too many for a state dict. Get the file again")


def _unwrapped(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.partition(".")[2]
    return key
