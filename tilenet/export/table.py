"""A mask as a table: a line per region or object, with its class, size and position, as CSV.

Memory holds only a strip of the mask, and the outlines of what reaches out of it. Ids are the same as those of the
polygons of `tilenet.write_geojson`.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace as with_fields
from os import PathLike
from pathlib import Path
from typing import Any

from tilenet.arguments import known_options
from tilenet.drawn_regions import BETWEEN, Drawn, read_regions
from tilenet.errors import ImageError, OutputMismatch
from tilenet.export.areas import MinimumSize, least_of
from tilenet.export.intensities import Intensities
from tilenet.export.measuring import MeasuredShape, Measuring
from tilenet.export.opened import check_export_place, open_placed
from tilenet.export.placement import MaskPlacement, find_grid, is_full
from tilenet.export.polygons_file import Polygons, PolygonsFile, rule_text
from tilenet.export.table_lines import COLUMNS, lines_of
from tilenet.export.table_rows import Rows
from tilenet.export.tally import Tally
from tilenet.export.totals import Measured, sizes_of
from tilenet.export.totals_table import check_counts_place, write_counts
from tilenet.masks.protected import refuse_protected
from tilenet.masks.tiff_mask import open_mask
from tilenet.masks.tiff_store import name_of
from tilenet.store import AnyMask, Progress
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
    geojson: str | PathLike[str] | Polygons | None = None,
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
    geojson : path, optional
        A file, ending in ``.geojson`` (or ``.json``), of the polygons that `tilenet.write_geojson` writes with these
        options, for which nothing is measured twice. Its result is in `outlined`. Polygons of volumes have no shapes.
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
    with open_placed(mask, image, pixel_size=pixel_size) as (opened, grid):
        check_export_place(out, opened, image, replace=overwrite, is_ours=is_table, kind="a table")
        if counts is not None:
            check_counts_place(Path(counts), opened, replace=overwrite, table=out, image=image)
        tally, least = Tally(opened, out, grid, drawn, positive=bool(positive)), least_of(opened, min_area)
        measured = {"shapes": shapes, "intensities": intensities, "stains": stains, "positive": positive}
        polygons = _polygons_beside(geojson, opened, image, measured, min_area=min_area, replace=overwrite)
        if polygons:
            refuse_protected(polygons.found.path, regions=within)
        measuring = Measuring.begin(opened, grid, image, bright, shapes=shapes)
        every = measuring.shapes(progress)
        with polygons.following(measuring, every) if polygons else nullcontext(every) as passing:
            _write(passing, measuring, tally, least)
    tally.found.outlined = polygons.found if polygons else None
    if counts is not None:
        write_counts(Path(counts), {name_of(Path(mask)): tally.found})
    return tally.found


def _write(shapes: Iterable[MeasuredShape], measuring: Measuring, tally: Tally, least: MinimumSize) -> None:
    """Write the table itself, and count its lines."""
    mask, out = measuring.mask, tally.found.path
    named = ["region"] if tally.found.regions else []
    numbers = mask.info["objects"] if mask.has_objects else None
    with put_whole(out) as path, Rows(path, [*COLUMNS, *named, *measuring.columns()], numbers) as rows:
        for value, line in lines_of(shapes, measuring, tally.found, least):
            regions = BETWEEN.join(tally.add(line))
            rows.add(value, line | dict.fromkeys(named, regions))


def _polygons_beside(
    geojson: str | PathLike[str] | Polygons | None,
    mask: AnyMask,
    image: Any,
    measured: Mapping[str, Any],
    *,
    min_area: str | float | None,
    replace: bool,
) -> PolygonsFile | None:
    """Return the file of polygons to write beside a table, if there is to be one."""
    if geojson is None:
        return None
    if not isinstance(geojson, Polygons):
        geojson = Polygons(Path(geojson).absolute(), min_area=min_area, beside_table=True)
    rule = rule_text(kind=geojson.kind, min_area=geojson.min_area, **measured)
    return PolygonsFile(with_fields(geojson, rule=rule), mask, image, replace=replace, shapes=measured["shapes"])


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
        least = least_of(opened, min_area)
        tally = Tally(opened, Path(table).absolute(), grid, drawn, positive=False)
    found = tally.found
    with found.path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if positive and "positive" in (lines.fieldnames or ()):
            found.count_positive()
        for line in lines:
            if least.excludes(*sizes_of(line, found)):
                found.left_out += 1
            else:
                tally.add(line)
    return found


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


def is_table(path: Path) -> bool:
    """Return whether a file is a table that `write_table` wrote."""
    with path.open("rb") as file:
        return file.readline().rstrip().startswith(HEAD)
