"""What a model gives for a small input, with errors that say what does not fit.

`logits_of` is `outputs_of` in float64; that is `answered`, checked against the footprint; and that is `passed`, made an
array whatever the model returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilenet.errors import ModelError, one_line
from tilenet.footprint import Footprint
from tilenet.probe.diagnosis import misfit, other_smallest, remedy


def small_input(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return (1, *shape) of values from 0 to 255, most of them small, so that it suits networks of any scaling."""
    spread = np.arange(int(np.prod(shape))) * ((5**0.5 - 1) / 2) % 1
    return np.float32(255 * spread**4).reshape(1, *shape)


def logits_of(model: Any, x: NDArray[np.float32], footprint: Footprint, outputs: int = 0) -> NDArray[np.float64]:
    """Return logits (N, K, *m) of an input; `ModelError` if their shape is another, or K is not `outputs`."""
    return outputs_of(model, x, footprint, outputs).astype(np.float64)


def outputs_of(model: Any, x: NDArray[np.float32], footprint: Footprint, outputs: int = 0) -> NDArray[Any]:
    """Return the outputs (N, K, *m) of an input, float64 or boolean; errors as `logits_of`."""
    made = answered(model, x, footprint)
    refuse_as_volume(model, x, made, "Give a footprint of 3 axes, such as Footprint.same(3, ...)")
    if said := misfit(x.shape, made.shape, footprint.output_shape(x.shape[2:])):
        meant = other_smallest(partial(passed, model), footprint, x.shape)
        raise ModelError(f"{said}{meant and '. '}{meant}")
    if made.shape[0] != len(x) or made.shape[1] < 1:
        raise ModelError(
            f"the network gives an array of shape {made.shape} for one of {x.shape}. Return logits (N, K, ...), of one "
            f"class at least"
        )
    if outputs and made.shape[1] != outputs:
        raise ModelError(
            f"the network gives {outputs} outputs, and {made.shape[1]} for an input of shape {x.shape}. Return as many "
            f"for every shape"
        )
    return made


def answered(model: Any, x: NDArray[np.float32], footprint: Footprint | None = None) -> NDArray[Any]:
    """Return what a model gives for an input, in float64 unless it is boolean."""
    try:
        made = passed(model, x)
    except Exception as error:  # of any kind, because it is the user's code
        takes = "" if isinstance(model, nn.Module) else " (a function gets NumPy float32, and gives an array)"
        meant = remedy(partial(passed, model), footprint, x.shape) if footprint else ""
        raise ModelError(
            f"the network failed on an input of shape {x.shape}{takes}: {one_line(error).rstrip('.')}"
            f"{meant and '. '}{meant}"
        ) from error
    if not hasattr(made, "shape"):
        kind = type(made).__name__
        raise ModelError(f"the network gives a {kind}, not an array of logits. Wrap it in what returns them alone")
    try:
        made = np.asarray(made)
        return made if made.dtype == bool else made.astype(np.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"the network gives no NumPy array ({error}). Give a function that returns one") from error


def passed(network: Any, x: NDArray[np.float32]) -> Any:
    """Return what a network gives for a copy of an input: an array, if it gives a tensor."""
    x = x.copy()  # the model may write into it
    if not isinstance(network, nn.Module):
        return network(x)
    parameter = next(iter(network.parameters()), torch.zeros(()))
    with torch.inference_mode():
        made = network(torch.from_numpy(x).to(parameter.device, parameter.dtype))
    if not isinstance(made, torch.Tensor):
        return made
    return (made if made.dtype == torch.bool else made.double()).cpu().numpy()


def is_of_volumes(model: Any) -> bool:
    """Return whether a network has layers of volumes: weights of 5 axes, or names such as `MaxPool3d`."""
    if not isinstance(model, nn.Module):
        return False
    named = any(type(layer).__name__.endswith("3d") for layer in model.modules())
    return named or any(weights.dim() == 5 for weights in model.parameters())


def refuse_as_volume(model: Any, x: NDArray[np.float32], made: NDArray[Any], instead: str) -> None:
    """Raise `ModelError`, saying what to give `instead`, if a network takes a tile (1, C, y, x) for one volume."""
    if x.ndim != 4 or not is_of_volumes(model):
        return
    try:
        # Only then does it also take a batch of that one volume, and give the same with one more axis.
        of_batch = passed(model, x[None])
    except Exception:  # of any kind, because it is the user's code
        return
    if getattr(of_batch, "shape", ()) == (1, *made.shape):
        raise ModelError(
            f"the network's layers are those of volumes, and take a tile of shape {x.shape} for a volume without a "
            f"batch. {instead}"
        )
