"""OME-TIFF and OME-Zarr images that tests write."""

import numpy as np
import tifffile
import zarr

TYPES = {"t": "time", "c": "channel"}
# Of the image that `write_channels` writes, and of that of `write_placed`.
CHANNELS = np.random.default_rng(2).integers(0, 60000, (3, 100, 130), dtype=np.uint16)
SIDES, TRANSLATION = (90, 300), (5.0, -3.0)


def write_ome_tiff(path, pixels, *, um=()):
    """Write a plane or a stack in tiles; `um` are the sizes of its pixels along its last axes, those that are known."""
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX"[3 - len(um) :], um, strict=True) if size}
    about = {"axes": "ZYX"[-pixels.ndim :]} | sizes
    tifffile.imwrite(path, pixels, metadata=about, ome=True, photometric="minisblack", tile=(32, 32))
    return path


def write_ome_zarr(path, levels, *, axes="yx", units=None, version="0.5", name="{}", about=None, **options):
    """Write an image; return its path.

    Each of `levels` is its pixels, and where they lie: nothing, a scale, or a scale and a translation. `units` are by
    the letter of an axis, micrometers along y and x if not given; `name` is that of the array of a level, with a place
    for its number. `about` are more entries of the image, and `options` those of the arrays.
    """
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    units, datasets = {"y": "micrometer", "x": "micrometer"} if units is None else units, []
    for k, (pixels, *place) in enumerate(levels):
        group.create_array(name.format(k), data=pixels, **options)
        said = [{"type": kind, kind: list(v)} for kind, v in zip(("scale", "translation"), place, strict=False)]
        datasets.append({"path": name.format(k)} | ({"coordinateTransformations": said} if said else {}))
    named = [{"name": a, "type": TYPES.get(a, "space")} | ({"unit": units[a]} if a in units else {}) for a in axes]
    image = {"version": version, "axes": named, "datasets": datasets, **(about or {})}
    ome = {"version": version, "multiscales": [image]}
    group.attrs.update({"ome": ome} if version == "0.5" else {"multiscales": [image]})
    return path


def write_channels(
    folder, *, axes="cyx", scale=(1, 0.5, 0.25), unit="micrometer", n_levels=2, scaled=2, version="0.5", **more
):
    """Write an OME-Zarr image whose first `scaled` levels say their scale; return its path."""
    pixels = CHANNELS[:, None] if len(axes) == 4 else CHANNELS
    levels = []
    for k in (2**k for k in range(n_levels)):
        place = ([s if a == "c" else s * k for a, s in zip(axes, scale, strict=True)], [7.0] * len(axes))
        levels.append((pixels[..., ::k, ::k], *(place if k < 2**scaled else ())))
    how = {"axes": axes, "units": dict.fromkeys(axes, unit) if unit else {}, "version": version}
    path = write_ome_zarr(folder / "image.zarr", levels, chunks=(1,) * (pixels.ndim - 2) + (32, 32), **how)
    attributes = zarr.open_group(path).attrs
    attributes.update({"ome": attributes["ome"] | more} if version == "0.5" else more)
    return path


def write_placed(path, version, *, unit="millimeter", size=0.002, axes="cyx", levels=2):
    """Write an image of some levels, translated, in units of its own, with a scale of the whole behind the levels'."""
    pixels = np.random.default_rng(0).integers(0, 200, (2, *SIDES)[3 - len(axes) :], dtype=np.uint8)
    lead, placed = len(axes) - 2, []
    for k in (2**k for k in range(levels)):
        # The centre of a coarse pixel is where four fine ones meet.
        place = [0.0] * lead + [t + size * (k - 1) / 2 for t in TRANSLATION]
        placed.append((pixels[..., ::k, ::k], [1.0] * lead + [size * k] * 2, place))
    whole = [{"type": "scale", "scale": [1.0] * lead + [2.0, 3.0]}]
    about = {"name": "noise", "coordinateTransformations": whole}
    how = {"axes": axes, "units": {"y": unit, "x": unit}, "name": "s{}", "chunks": (1,) * lead + (64, 64)}
    return write_ome_zarr(path, placed, version=version, about=about, **how)
