"""A mask as a table: a line per region or object, with its class, size and position, as CSV.

Memory holds only a strip of the mask, and the outlines of what reaches out of it. Ids are the same as those of the
polygons of `tilenet.write_geojson`.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

from tilenet.arguments import known_options
from tilenet.drawn_regions import BETWEEN, Drawn, covered, read_regions
from tilenet.errors import ImageError, OutputMismatch, SettingsError
from tilenet.export.areas import least_of, pixel_sizes
from tilenet.export.descriptors import COLUMNS as FORMS
from tilenet.export.descriptors import ShapeDescriptors
from tilenet.export.in_regions import InRegion, Within
from tilenet.export.intensities import Intensities
from tilenet.export.placement import MaskPlacement, find_grid, is_full
from tilenet.export.shapes import Progress, class_names, has_volumes, open_for, shapes_of
from tilenet.export.table_lines import COLUMNS, lines_of
from tilenet.export.table_rows import Rows
from tilenet.export.totals import Measured, Tally, sizes_of
from tilenet.export.totals_table import check_counts_place, write_counts
from tilenet.geometry import Box
from tilenet.masks.protected import check_file_place
from tilenet.masks.tiff_mask import name_of, open_mask
from tilenet.store import AnyMask
from tilenet.store.destination import put_whole

HEAD = ",".join(COLUMNS).encode()
LOG = logging.getLogger("tilenet")


@known_options()
def write_table(
    mask: str | PathLike[str],
    out: str | PathLike[str],
    *,
    image: Any = None,
    pixel_size: float | str | Sequence[float] | None = None,
    min_area: str | float | None = None,
    shapes: bool = False,
    intensities: bool = False,
    stains: bool = False,
    positive: str | None = None,
    within: str | Path | None = None,
    counts: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Write a CSV table of the regions of a complete mask, or of its objects in the order of their numbers.

    Its columns are ``id``; ``class``; ``object`` (its number); ``t`` and ``z``; ``x`` and ``y`` (the centroid, in
    pixels of the image at full resolution, from the upper left corner of its first pixel); ``area_px`` (pixels of the
    mask); ``area_um2`` (empty if the pixel size is unknown); ``left``, ``top``, ``right`` and ``bottom`` of the
    bounding box, in the same coordinates as `x` and `y`; and ``front`` and ``back``, its first plane and the one after
    its last. An object of a volume is one line, with ``volume_px`` and ``volume_um3`` in place of the areas, and with
    the `z` of its centroid, measured from the front of the first plane. The last pixels of a coarser mask may reach
    beyond the image: centroids, areas and volumes in micrometres, and densities are of what lies in it.

    Parameters
    ----------
    mask : path or Mask
        A complete mask that tilenet wrote, OME-Zarr or OME-TIFF.
    out : path
        The file, ending in ``.csv``.
    image : path, array or Image, optional
        The image that was segmented, if it has moved or was an array; needed only for a mask at a coarser
        level or another pixel size.
    pixel_size : float, str or sequence of float, optional
        Micrometres per pixel of the image at full resolution, as for `tilenet.open_image`, where the mask has none.
    min_area : str or float, optional
        As for `tilenet.write_geojson`; for objects of volumes their volume, in voxels or as text such as ``"20um3"``.
    shapes : bool
        Add the shape of each object or region, as `skimage.measure.regionprops` measures it: ``perimeter_px`` and
        ``perimeter_um`` (by Crofton's formula), ``circularity`` (4 pi area / perimeter^2), ``axis_major_px`` and
        ``axis_minor_px``, or ``_um``, of the ellipse with the same second moments, its ``eccentricity``, and
        ``solidity``. Those in pixels are empty where pixels are not square. Of an object of a volume only the axes in
        micrometres are given.
    intensities : bool
        Add the mean of each channel of the image over each object, its standard deviation, minimum and maximum, as
        ``mean_DAPI``, ``sd_DAPI``, ``min_DAPI`` and ``max_DAPI``, or ``mean_0`` and so on if the channel has no name.
        This reads the image.
    stains : bool
        Add the same for optical densities of haematoxylin, eosin and DAB: ``mean_haematoxylin``, ``sd_haematoxylin``
        and so on, to ``max_dab``. Only for images in 8-bit red, green and blue.
    positive : str, optional
        A rule such as ``"dab>0.2"``: add a column ``positive``, 1 for objects whose mean of this stain or channel is
        larger, else 0, and empty for those without a finite pixel. The means are added too. A channel is given by its
        name, in upper or lower case, or by its number if no channel has that name.
    within : path, optional
        A GeoJSON file of regions of the image, such as annotations that QuPath exported, in pixels at full resolution.
        Adds a column ``region``, which names the regions that hold the centroid, and counts them in `regions` of the
        result.
    counts : path, optional
        A second table, ending in ``.csv``, of the result itself: a line for the mask and for each region, with the
        columns of the ``counts.csv`` of `tilenet.batch`.
    overwrite : bool
        Replace files that `write_table` wrote.
    progress : callable, optional
        Called with the number of rows done and the total number of rows.

    Returns
    -------
    Measured

    Raises
    ------
    OutputNotFound, OutputIncomplete, BlocksFailed, OutputExists, OutputMismatch, EnvironmentFault
        As `tilenet.write_geojson`.
    SettingsError
        If the regions cannot be read or lie outside of the mask, or if a mask with regions has several planes.

    Examples
    --------
    >>> import tempfile, numpy as np, tilenet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mask = tilenet.segment(np.zeros((70, 90), np.uint8), folder + "/mask.zarr")
    ...     dict(tilenet.write_table(folder + "/mask.zarr", folder + "/mask.csv").counts)
    {'nucleus': 0}
    """
    out, drawn = Path(out).absolute(), () if within is None else read_regions(within)
    bright = Intensities(channels=intensities, stains=stains, positive=positive)
    how: dict[str, Any] = {"pixel_size": pixel_size, "replace": overwrite, "is_ours": is_table, "kind": "a table"}
    with open_for(out, mask, image, **how) as (opened, grid):
        if counts is not None:
            check_counts_place(Path(counts), opened, replace=overwrite, table=out, image=image)
        found, least = _empty_result(opened, out, grid), least_of(opened, min_area)
        if bright:
            bright.check(opened, image)
        tally = _tally(found, opened, grid, drawn)
        if positive:
            found.count_positive()
        opened.refuse_damage()
        measured = bright.measure(opened, image) if bright else None
        forms = ShapeDescriptors(opened) if shapes else None
        lines = lines_of(shapes_of(opened, progress), grid, found, forms, least)
        more = [*(["region"] if drawn else []), *(FORMS if shapes else ()), *(measured.columns() if measured else ())]
        numbers = opened.info["objects"] if opened.has_objects else None
        with put_whole(out) as path, Rows(path, [*COLUMNS, *more], numbers) as rows:
            for value, line in lines:
                line |= measured.of(value) if measured else {}
                regions = tally.add(line)
                rows.add(value, line | ({"region": BETWEEN.join(regions)} if drawn else {}))
    if counts is not None:
        write_counts(Path(counts), {name_of(Path(mask)): found})
    return found


def read_table(
    mask: str | Path,
    table: str | Path,
    *,
    image: Any = None,
    min_area: str | float | None = None,
    drawn: Sequence[Drawn] = (),
    positive: bool = True,
) -> Measured:
    """Return what `write_table` returned for a complete table, without shapes smaller than `min_area`.

    Objects are counted in the regions `drawn`, which need not be those that the table was written with. With
    `positive`, those that the table calls positive are counted, too.
    """
    with open_mask(mask) as opened:
        # Without a tissue map or regions, the image may be gone.
        grid = find_grid(opened, image) if opened.tissue or drawn else _grid_if_known(opened, image)
        found, least = _empty_result(opened, Path(table).absolute(), grid), least_of(opened, min_area)
        tally = _tally(found, opened, grid, drawn)
    with found.path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        positive = positive and "positive" in (lines.fieldnames or ())
        if positive:
            found.count_positive()
        for line in lines:
            if least.excludes(*sizes_of(line, found)):
                found.left_out += 1
            else:
                tally.add(line)
    return found


def check_table_place(out: Path, *, replace: bool, image: Any = None, mask: Any = None) -> None:
    """Raise if a table must not be put at `out`; see `tilenet.masks.protected.check_file_place`."""
    check_file_place(out, replace=replace, is_ours=is_table, kind="a table", image=image, mask=mask)


def _grid_if_known(mask: AnyMask, image: Any) -> MaskPlacement:
    """Return where a mask lies in its image, which may be gone."""
    try:
        return find_grid(mask, None if is_full(mask) else image)
    except (ImageError, OutputMismatch) as error:
        LOG.warning(
            "%s: areas and densities are those of whole pixels of the mask, the last of which may reach beyond the "
            "image: %s",
            *(mask.path, error),
        )
        return MaskPlacement((0, 0))


def _empty_result(mask: AnyMask, out: Path, grid: MaskPlacement) -> Measured:
    """Return the measurements of a mask before its first shape, with a count of 0 for each class."""
    (pixel, voxel), inside = pixel_sizes(mask), grid.inside(mask.shape)
    none = dict.fromkeys(class_names(mask).values(), 0)
    found = Measured(out, Counter(none), Counter(none), mask.has_objects, pixel_um2=pixel, mask_px=prod(mask.shape))
    found.in_tissue, found.inside = Counter(none), prod(inside) / prod(mask.shape[-2:])
    if mask.tissue is not None:
        found.tissue_share = mask.tissue.tissue_fraction(Box.of_shape(mask.shape).shifted(mask.origin), inside)
        if any((mask.info.get("tissue") or {}).get("dilated", ())) and mask.tissue.own is None:
            LOG.warning(
                "%s: its tissue map, of an earlier tilenet, has what lies within %d px of tissue, too: the area of "
                "tissue is too large, and its density too low. Only segmenting it anew tells them apart",
                *(mask.path, max(mask.info["tissue"]["dilated"])),
            )
    found.volumes, found.voxel_um3 = has_volumes(mask), voxel
    if found.volumes:
        first, planes = mask.origin[-3], mask.shape[-3]
        found.inside *= sum(map(grid.plane_share, range(first, first + planes))) / planes
    return found


def _tally(found: Measured, mask: AnyMask, grid: MaskPlacement, drawn: Sequence[Drawn]) -> Tally:
    """Return what counts lines, also in regions."""
    if not drawn:
        return Tally(found, mask.tissue, grid)
    found.regions = _regions(drawn, mask, grid, found)
    return Tally(found, mask.tissue, grid, Within(drawn))


def _regions(drawn: Sequence[Drawn], mask: AnyMask, grid: MaskPlacement, found: Measured) -> list[InRegion]:
    """Return the regions before the first shape, with their areas as far as the mask covers them."""
    if max(mask.shape[:-2], default=1) > 1:
        raise SettingsError(
            f"{mask.path}: has several planes, and regions are drawn in one. Segment one alone, such as --roi 4:5,:,:"
        )
    (x0, y0), (x1, y1) = (grid.place_point(y, x) for y, x in ((0, 0), mask.shape[-2:]))
    areas = covered(drawn, (x0, y0, x1, y1))
    um2 = None if found.pixel_um2 is None else found.pixel_um2 / float(prod(grid.step))
    return [
        InRegion(region.name, Counter(dict.fromkeys(found.counts, 0)), None if um2 is None else area * um2 / 1e6)
        for region, area in zip(drawn, areas, strict=True)
    ]


def is_table(path: Path) -> bool:
    """Return whether a file is a table that `write_table` wrote."""
    with path.open("rb") as file:
        return file.readline().rstrip().startswith(HEAD)
