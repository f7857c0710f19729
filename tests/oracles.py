"""Slow obvious truths, written without the code that they judge.

Nothing here imports the footprint, the plan or the mirror: lengths come from the closed
formulas of the literature, borders from `numpy.pad`, forward passes from plain functions.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from tilenet.geometry import Box
from tilenet.unet import UNet


def is_legal(length, *, depth, pool=2, padding=False):
    """Walk a length through the paper's figure: two valid 3x3 convolutions, then halve."""
    for level in range(depth):
        length -= 0 if padding else 4
        if length < 1:
            return False
        if level < depth - 1:
            if length % pool:
                return False
            length //= pool
    for _ in range(depth - 1):
        length = length * pool - (0 if padding else 4)
    return length >= 1


def lost(depth, *, pool=2, padding=False):
    """Return 6 s - 4 with s = 2**(depth - 1), or two pixels a block where nothing is pooled."""
    if padding:
        return 0
    return 6 * 2 ** (depth - 1) - 4 if pool == 2 else 2 * (2 * depth - 1)


def whole_image_logits(network: UNet, image: np.ndarray) -> np.ndarray:
    """Return logits (K, *n) of image (C, *n): one forward pass on the mirrored whole.

    The output is cut so generously that no rim of any kind can be in it, and its uncropped
    origin is a multiple of the step: 7 steps or 24 px if the network pads, which is more than a
    pixel's context, else 2 steps. Without padding only bilinear interpolation has a rim, of one
    pixel, which each further level doubles.
    """
    pads, cuts = [(0, 0)], []
    for n, pool in zip(image.shape[1:], network.pool_size, strict=True):
        step = pool ** (network.depth - 1)
        cut = max(7 * step, 24) if network.padding else 2 * step
        rim = lost(network.depth, pool=pool, padding=network.padding)
        length = next(
            m
            for m in itertools.count(n + 2 * cut + 2 * rim)
            if is_legal(m, depth=network.depth, pool=pool, padding=network.padding)
        )
        pads.append((cut + rim, length - n - cut - rim))
        cuts.append(slice(cut, cut + n))
    mirrored = np.pad(image, pads, mode="reflect")
    dtype = next(network.parameters()).dtype
    with torch.inference_mode():
        out = network.eval()(torch.from_numpy(mirrored[None]).to(dtype))[0].numpy()
    return out[(slice(None), *cuts)]


def integer_network(seed=0, **options) -> UNet:
    """Return a float64 U-Net whose sums are exact: few weights of +-1, small whole biases."""
    rng = np.random.default_rng(seed)
    network = UNet(**options).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                values = rng.integers(0, 3, parameter.shape)
            else:
                values = np.zeros(parameter.shape)
                transposed = ".up.weight" in name  # (in, out, *k), the others are (out, in, *k)
                rows = np.moveaxis(values, 1, 0) if transposed else values
                for row in rows.reshape(len(rows), -1) if not transposed else rows:
                    flat = row.reshape(-1) if not transposed else row
                    where = np.unravel_index(rng.choice(flat.size, min(4, flat.size), replace=False), flat.shape)
                    flat[where] = np.resize([1, 1, -1, 1], len(where[0]))
            parameter.copy_(torch.from_numpy(np.asarray(values, np.float64)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.copy_(torch.from_numpy(rng.normal(1, 0.3, module.running_mean.shape)))
            module.running_var.copy_(torch.from_numpy(rng.uniform(0.5, 2, module.running_var.shape)))
            module.weight.data.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, module.weight.shape)))
    return network.eval()


def random_network(seed=0, **options) -> UNet:
    """Return a float32 U-Net with random weights whose two classes both occur."""
    torch.manual_seed(seed)
    network = UNet(**options)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return network.eval()


def reference_state(*, in_channels=1, n_classes=2, depth=3, wf=2, batch_norm=False, up_mode="upconv", seed=0):
    """Return a checkpoint with the key layout of the reference PyTorch U-Net, keys typed out."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(key, out_size, in_size, k, transposed=False):
        shape = (in_size, out_size, k, k) if transposed else (out_size, in_size, k, k)
        state[f"{key}.weight"] = torch.randn(shape, generator=generator) / (in_size * k * k) ** 0.5
        state[f"{key}.bias"] = torch.randn(out_size, generator=generator) / 10

    def block(key, in_size, out_size):
        for k, size in zip((0, 3) if batch_norm else (0, 2), (in_size, out_size), strict=True):
            conv(f"{key}.block.{k}", out_size, size, 3)
        for k in (2, 5) if batch_norm else ():
            state[f"{key}.block.{k}.weight"] = torch.rand(out_size, generator=generator) + 0.5
            state[f"{key}.block.{k}.bias"] = torch.randn(out_size, generator=generator) / 10
            state[f"{key}.block.{k}.running_mean"] = torch.randn(out_size, generator=generator) / 10
            state[f"{key}.block.{k}.running_var"] = torch.rand(out_size, generator=generator) + 0.5
            state[f"{key}.block.{k}.num_batches_tracked"] = torch.tensor(7)

    previous = in_channels
    for i in range(depth):
        block(f"down_path.{i}", previous, 2 ** (wf + i))
        previous = 2 ** (wf + i)
    for j, i in enumerate(reversed(range(depth - 1))):
        up = f"up_path.{j}.up"
        if up_mode == "upconv":
            conv(up, 2 ** (wf + i), previous, 2, transposed=True)
        else:
            conv(f"{up}.1", 2 ** (wf + i), previous, 1)
        block(f"up_path.{j}.conv_block", previous, 2 ** (wf + i))
        previous = 2 ** (wf + i)
    conv("last", n_classes, previous, 1)
    return state


def reference_forward(state, x, *, depth, padding, batch_norm, up_mode, pooling="max"):
    """Run a reference checkpoint with plain functions."""

    def block(key, x):
        for conv, norm in ((0, 2), (3, 5)) if batch_norm else ((0, None), (2, None)):
            weight, bias = state[f"{key}.block.{conv}.weight"], state[f"{key}.block.{conv}.bias"]
            x = F.relu(F.conv2d(x, weight, bias, padding=int(padding)))
            if norm:
                keys = ("running_mean", "running_var", "weight", "bias")
                mean, var, scale, shift = (state[f"{key}.block.{norm}.{k}"][:, None, None] for k in keys)
                x = (x - mean) / torch.sqrt(var + 1e-5) * scale + shift
        return x

    skips = []
    for i in range(depth):
        x = block(f"down_path.{i}", x)
        if i < depth - 1:
            skips.append(x)
            x = F.max_pool2d(x, 2) if pooling == "max" else F.avg_pool2d(x, 2)
    for j in range(depth - 1):
        key, skip = f"up_path.{j}", skips.pop()
        if up_mode == "upconv":
            x = F.conv_transpose2d(x, state[f"{key}.up.weight"], state[f"{key}.up.bias"], stride=2)
        else:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.conv2d(x, state[f"{key}.up.1.weight"], state[f"{key}.up.1.bias"])
        dy, dx = (a - b for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
        skip = skip[:, :, dy // 2 : dy // 2 + x.shape[2], dx // 2 : dx // 2 + x.shape[3]]
        x = block(f"{key}.conv_block", torch.cat([x, skip], 1))
    return F.conv2d(x, state["last.weight"], state["last.bias"])


def filled(regions, shape):
    """Draw (value, rings of (y, x)): a pixel is inside if an odd number of vertical edges lie to its left."""
    plane = np.zeros(shape, np.int64)
    for value, rings in regions:
        flips = np.zeros((shape[0], shape[1] + 1), np.int64)
        for ring in map(np.asarray, rings):
            for (y0, x0), (y1, x1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
                assert y0 == y1 or x0 == x1, "an edge is neither along a row nor along a column"
                if x0 == x1 and y0 != y1:
                    flips[min(y0, y1) : max(y0, y1), x0] += 1
        inside = np.cumsum(flips, axis=1)[:, :-1] % 2 == 1
        assert not (plane[inside] != 0).any(), "two regions overlap"
        plane[inside] = value
    return plane


def mirrored(pixels, box):
    """Return a box of pixels (C, ...), mirrored outside by NumPy's own padding."""
    for axis, (a, b, n) in enumerate(zip(box.start, box.stop, pixels.shape[1:], strict=True), start=1):
        front, back = max(0, -a), max(0, b - n)
        index = np.pad(np.arange(n), (front, back), mode="reflect")[a + front : b + front]
        pixels = np.take(pixels, index, axis=axis)
    return pixels


def boxes(shape, *, seed, count=6):
    """Return random boxes, of at most 300 px a side, around and in an image."""
    random = np.random.default_rng(seed)
    for i in range(count):
        side = [int(random.integers(1, min(2 * n, 300) + 1)) for n in shape]
        reach = [40 if i % 2 else 0 for _ in shape]
        start = [
            int(random.integers(-r, max(1 - r, n + r - s) + 1)) for n, s, r in zip(shape, side, reach, strict=True)
        ]
        yield Box(tuple(start), tuple(a + s for a, s in zip(start, side, strict=True)))
