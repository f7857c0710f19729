"""Slides of two levels that tests write."""

import tifffile


def write_pyramid(path, pixels, *, step=2, um=(), tile=64):
    """Write a plane, and every `step`-th pixel of it, as a TIFF; `um` are the sizes of its pixels along y and x."""
    size = {"resolution": (1e4 / um[1], 1e4 / um[0]), "resolutionunit": "CENTIMETER"} if um else {}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(tile, tile), subifds=1, **size)
        tiff.write(pixels[::step, ::step], tile=(tile, tile), subfiletype=1)
    return path
