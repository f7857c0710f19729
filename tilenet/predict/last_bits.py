"""What the last bits of logits depend on: libraries, compiled convolutions, the kind of processor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilenet.fast import steps
from tilenet.fast.native import AVX2, AVX512, NAMES, convolutions
from tilenet.models.saved import is_compiled
from tilenet.predict.engine import triton_version
from tilenet.store import Store
from tilenet.unet import UNet

# Convolutions that give the same bits.
COMPILED = {NAMES[AVX2], NAMES[AVX512]}
LOG = logging.getLogger("tilenet")


def numerics_of(network: object, engine: str, device: str) -> dict[str, str]:
    """Return the libraries, and the kind of processor, on which the last bits of logits may depend."""
    # Convolutions that tilenet compiles give the same bits on every processor, those of PyTorch and cuDNN do not.
    found = {"torch": str(torch.__version__)}
    if engine == "fast":
        found["convolutions"] = convolutions() if device == "cpu" else triton_version()
    elif device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    if device == "cpu" and not (engine == "fast" and isinstance(network, UNet) and steps.decides_at_once(network)):
        found["processor"] = str(torch.backends.cpu.get_cpu_capability())
    if isinstance(network, nn.Module) and not isinstance(network, UNet):
        found["network"] = "compiled" if is_compiled(network) else "not compiled"
    return found


def other_bits(then: object, now: Mapping[str, str]) -> list[str]:
    """Return by which parts of `numerics_of` the last bits of logits may differ; parts not recorded then are none.

    >>> other_bits({"torch": "2.6", "convolutions": "avx2"}, {"torch": "2.7", "convolutions": "avx512", "gpu": "H200"})
    ['torch']
    """
    known = then if isinstance(then, Mapping) else {}
    differing = [name for name in now if name in known and known[name] != now[name]]
    return [name for name in differing if not {str(known[name]), now[name]} <= COMPILED]


def remark_other_bits(store: Store, now: Mapping[str, str], name: str | Path) -> None:
    """Say in a warning and in its log if a store was begun where the last bits of logits may be others than here."""
    then: Any = store.info.get("computed")
    if others := other_bits(then, now):
        was, is_now = (", ".join(f"{other} {of[other]}" for other in others) for of in (then, now))
        LOG.warning(
            "%s: was begun with %s, and goes on with %s: the last bits of logits may differ, and with them pixels "
            "where two classes are equal",
            *(name, was, is_now),
        )
        store.log("computed", computed=dict(now))
