"""OME-TIFF and OME-Zarr images that tests write."""

import tifffile
import zarr

TYPES = {"t": "time", "c": "channel"}


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
