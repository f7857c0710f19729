"""How much memory a network takes: a forward pass, what its last step saves, and its weights."""

from __future__ import annotations

from torch import nn

from tilenet.bands import Demand, band_pixels, can_band, pools_by_two
from tilenet.decide import Decision
from tilenet.fast import steps
from tilenet.footprint import Footprint
from tilenet.predict.predictors import PRECISIONS
from tilenet.sizes import DEFAULT_DEMAND
from tilenet.unet import UNet

# Bytes per pixel of the logits of one class, and of the mask, including the copies that are made of them.
LOGIT_BYTES, MASK_BYTES = 8, 2


def demand_of(
    network: object, footprint: Footprint, precision: str, channels: int, *, engine: str, device: str
) -> Demand:
    """Return how much memory a forward pass, and the decision on its logits, need.

    A U-Net's memory peaks in its last block. There the joined skip (twice the first block's channels), a convolution
    and its ReLU are in memory beside the skips (as much again): six times the first block's channels. The measured
    peaks of whole runs (depth 2 to 5, wf 1 to 6) are 7.5 times, because of what the allocator keeps in between; 5 times
    for a band; 3.5 times if the block is computed a few rows at a time; and 3.6 times on frames (a GPU; 3.75 are
    planned for), where a skip has room for the pixels that it is joined with.
    """
    if not isinstance(network, UNet):
        return DEFAULT_DEMAND
    decided, wide, size = LOGIT_BYTES * network.n_classes, 1 << network.wf, PRECISIONS[precision].itemsize

    def passed(times: float) -> float:
        return size * (times * wide + channels) + 4 * channels

    if engine == "fast" and device != "cpu":
        return Demand(12 * network.n_classes + passed(3.75))
    if engine == "fast" and can_band(row := footprint.axes[0]):
        return Demand(decided, passed(3.5 if pools_by_two(network.pool_size) else 5), row, band_pixels(wide))
    return Demand(decided + passed(7.5))


def bytes_saved(network: object, decision: Decision, *, engine: str, device: str) -> int:
    """Return how many bytes per pixel a forward pass saves if the last step writes mask values instead of logits."""
    # Plans do not count on this, because it depends on the processor.
    if not isinstance(network, UNet) or (engine, device) != ("fast", "cpu"):
        return 0
    at_once = decision.is_choice and steps.decides_at_once(network)
    return LOGIT_BYTES * network.n_classes - MASK_BYTES if at_once else 0


def weight_bytes(network: object) -> int:
    """Return the bytes of a network's weights; 0 if it is not a PyTorch network."""
    if not isinstance(network, nn.Module):
        return 0
    return sum(weights.numel() * weights.element_size() for weights in network.parameters())
