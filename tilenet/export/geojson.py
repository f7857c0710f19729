"""`write_geojson`: a mask as GeoJSON, a polygon per region or object, in pixels of the image."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tilenet.arguments import known_options
from tilenet.export.intensities import Intensities
from tilenet.export.polygons_file import Kind, Polygons, rule_text, write_polygons
from tilenet.export.totals import Outlined
from tilenet.store import Progress


@known_options()
def write_geojson(
    mask: str | PathLike[str],
    out: str | PathLike[str],
    *,
    image: Any = None,
    pixel_size: float | str | Sequence[float] | None = None,
    min_area: str | float | None = None,
    kind: Kind = "detection",
    shapes: bool = False,
    intensities: bool = False,
    stains: bool = False,
    positive: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outlined:
    """Write the regions of a complete mask, or its objects, as a GeoJSON FeatureCollection.

    A region is a set of pixels of one value that are connected by their edges. An object is all pixels of
    one number in one plane, so an object of a volume has a feature in each of its planes. Polygons follow
    the edges of pixels: filling them gives back the mask. The mask is read strip by strip; memory holds
    one strip, and the outlines that are not closed yet.

    Parameters
    ----------
    mask : path or Mask
        A complete mask that tilenet wrote, OME-Zarr or OME-TIFF.
    out : path
        The file, ending in ``.geojson`` (or ``.json``).
    image : path, array or Image, optional
        The image that was segmented, if it has moved or was an array; another image is refused. Needed
        only for a mask at a coarser level or another pixel size.
    pixel_size : float, str or sequence of float, optional
        Micrometres per pixel of the image at full resolution, as for `tilenet.open_image`, where the mask has none.
    min_area : str or float, optional
        Leave out shapes whose area, without holes, is smaller: pixels of the mask, or text such as ``"20um2"``.
        Not for volumes.
    kind : {"detection", "annotation"}
        What the features become in QuPath, which copes with many detections but few annotations.
    shapes, intensities, stains : bool
        Give each polygon the measurements that `tilenet.write_table` adds by these, and its area, by the names of the
        columns. What is empty or not finite there is left out. Outlines of an object of a volume have no area, each
        has the intensities of the whole object, and `shapes` is refused: only a table can have those.
    positive : str, optional
        A rule as for `tilenet.write_table`, such as ``"dab>0.2"``: the classes of objects become Positive and Negative,
        by which QuPath counts them. The means are added to the measurements.
    overwrite : bool
        Replace a file that `write_geojson` wrote.
    progress : callable, optional
        Called with the number of rows done and the total number of rows.

    Returns
    -------
    Outlined

    Raises
    ------
    OutputNotFound, OutputIncomplete, BlocksFailed, OutputExists, OutputMismatch, EnvironmentFault
        If the mask is missing, incomplete or damaged; if another file is in the way; if the image
        is not that of the mask; if the disk is full.

    Examples
    --------
    >>> import tempfile, numpy as np, tilenet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mask = tilenet.segment(np.zeros((70, 90), np.uint8), folder + "/mask.zarr")
    ...     tilenet.write_geojson(folder + "/mask.zarr", folder + "/mask.geojson").vertices
    0
    """
    measured = {"shapes": shapes, "intensities": intensities, "stains": stains, "positive": positive}
    return write_polygons(
        mask,
        Polygons(Path(out).absolute(), kind, min_area, rule=rule_text(kind=kind, min_area=min_area, **measured)),
        image=image,
        pixel_size=pixel_size,
        intensities=Intensities(channels=intensities, stains=stains, positive=positive),
        shapes=shapes,
        overwrite=overwrite,
        progress=progress,
    )
