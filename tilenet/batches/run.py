"""`batch`: many images, one mask each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tilenet.address import check_local, shown
from tilenet.arguments import WORKERS, known_options
from tilenet.batches.image_list import BatchItem, read_image_list
from tilenet.batches.image_runs import BatchRun
from tilenet.batches.side_files import Columns, SideFiles
from tilenet.batches.summary import Result, is_own
from tilenet.errors import EnvironmentFault, SettingsError
from tilenet.export.areas import parse_area
from tilenet.export.intensities import Intensities
from tilenet.footprint import Footprint
from tilenet.jobs.options import BatchSettings, Options, checked_output, parameters_of
from tilenet.models.named import function_of
from tilenet.runs.outputs import check_folder_name
from tilenet.runs.shares import checked_share
from tilenet.store import Share
from tilenet.store.destination import refuse_inside_mask
from tilenet.workers.distributed import check_client, check_sendable

if TYPE_CHECKING:
    from distributed import Client

ASK = "Ask for tables or polygons, too (--csv, --geojson; table=True, polygons=True)"


@known_options(WORKERS, parameters_of(BatchSettings))
def batch(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: Any = "nuclei",
    footprint: Footprint | None = None,
    client: Client | None = None,
    tell: Callable[[Result], None] | None = None,
    overview: bool = False,
    table: bool = False,
    polygons: bool = False,
    min_area: str | float | None = None,
    positive: str | None = None,
    shapes: bool = False,
    intensities: bool = False,
    stains: bool = False,
    objects: bool = False,
    shard: Share | None = None,
    **options: Unpack[BatchSettings],
) -> list[Result]:
    """Segment many images into the masks ``OUT/<name>.zarr``, and write a summary beside them.

    Complete masks are left as they are, others are resumed. If an image fails, its error is recorded, and the other
    images are still done. Pictures, tables and polygons that are missing, or older than their mask, are made again.

    Parameters
    ----------
    images : path or sequence of path
        Images, patterns such as ``"slides/*.svs"``, and lists of images (``.txt``: one path per line;
        ``.csv``: a column ``image`` and, optionally, ``name``, ``within`` (a GeoJSON file of regions to count in),
        ``positive`` and options of `segment`). Paths in a list are relative to the list.
    out : path
        A folder; created if it does not exist.
    model, footprint
        As for `segment`; a list may name another model for an image: a file, relative to the list, a packaged
        one, or ``module:function``.
    client : distributed.Client, optional
        Have the workers of a Dask cluster compute the blocks of all images from one queue.
    tell : callable, optional
        Called with the `Result` of each image when it is done, skipped or failed; from any thread, but one call at
        a time.
    overview : bool
        Draw each mask over its image in ``OUT/<name>.overview.png``, see `tilenet.overlay`; with `positive`, positive
        objects in red and negative ones in blue. Objects smaller than `min_area` are left out. A picture that was
        drawn with another rule or area is drawn again.
    table : bool
        Write a table of each mask to ``OUT/<name>.csv``, see `tilenet.write_table`, and the counts of each class in
        each image to ``OUT/counts.csv``.
    polygons : bool
        Write polygons of each mask to ``OUT/<name>.geojson``, see `tilenet.write_geojson`: of what is counted, with
        the columns of the table as measurements. Those written with another rule, area or columns are written anew.
    min_area : str or float, optional
        Count nothing smaller than this, such as ``"20um2"``, ``"80px"`` of the mask, or ``"20um3"`` of objects of
        volumes; the tables still list all. Polygons leave it out, too; those of volumes, which are outlines in planes,
        cannot, and are refused with it.
    positive : str, optional
        A rule such as ``"dab>0.2"``, as for `tilenet.write_table`: the tables say which objects are positive, and
        ``counts.csv`` how many; polygons have the classes Positive and Negative. A table made with another rule is
        written anew.
    shapes, intensities, stains : bool
        As for `tilenet.write_table` and `tilenet.write_geojson`. A table that lacks these columns is written anew.
    objects : bool
        Number objects instead of writing classes, as `segment` does, one image after the other.
    shard : (int, int), optional
        Do only share I of N, I from 1: every N-th image, from the I-th. Each job of a job array does one share. A share
        writes a summary and counts of its own, such as ``OUT/summary-3-of-8.csv``; a call without `shard` after all of
        them computes nothing and writes those of all images.
    **options
        Options of `segment`: ``level``, ``channels``, ``tile``, ``threads``, ``output`` and so on.

    Returns
    -------
    list of Result
        In the order of the images, with `shard` those of the share: name, ``done``, ``skipped`` or ``failed``, pixels,
        counts, seconds, error.

    Raises
    ------
    SettingsError
        Before any work, if there is no image, if two images would have the same name (in other shares, too) or the same
        drawn regions as tissue, or if a list has an invalid entry.
    EnvironmentFault
        If the scheduler or this process's GPU is lost, or if nothing more can be written into the folder.
        The message says how many images are not done. The same call again resumes the batch.

    Examples
    --------
    >>> import tilenet
    >>> tilenet.batch("slides/*.svs", "masks", tile=512)
    Traceback (most recent call last):
        ...
    tilenet.errors.SettingsError: slides/*.svs: no image matches. Check the pattern
    """
    columns = Columns(shapes=shapes, intensities=intensities, stains=stains)
    _check_measured(columns, min_area, objects=objects, measured=table or polygons)
    if positive is not None:
        Intensities(positive=positive)  # raises if it is no rule
    if footprint is not None and not (callable(model) or function_of(model)):
        raise SettingsError(f"{model} has a footprint of its own. Leave footprint out")
    common = Options(**options)
    if client is not None:
        check_client(client)
    share = None if shard is None else checked_share(shard)
    paths = [images] if isinstance(images, str | Path) else images
    items = read_image_list(paths, model=model, options=common, positive=positive, out=out)
    for item in items:
        check_item(item, objects=objects, table=table, polygons=polygons, client=client)
    if share:
        items = items[share[0] - 1 :: share[1]]
    if objects:
        items = [replace(item, options=replace(item.options, output="objects")) for item in items]
    _make_folder(out)
    beside = SideFiles(overview, table, polygons, min_area, columns)
    how: dict[str, Any] = {"side_files": beside, "client": client, "objects": objects, "share": share}
    return BatchRun(items, Path(out), footprint, tell or (lambda result: None), **how).run()


def _check_measured(columns: Columns, min_area: str | float | None, *, objects: bool, measured: bool) -> None:
    """Raise if there will be no tables or polygons to count in or to put columns into, or no objects to measure."""
    if min_area is not None:
        parse_area(min_area)
        if not measured:
            raise SettingsError(f"min_area {min_area} is for what is counted. {ASK}")
    for name, wanted in asdict(columns).items():
        if wanted and not measured:
            raise SettingsError(f"{name} are columns of tables, and measurements of polygons. {ASK}")
        if wanted and name != "shapes" and not objects:
            raise SettingsError(f"{name} are measured for objects: ask for them, too (--objects, objects=True)")


def _make_folder(out: str | Path) -> None:
    check_local(out)
    check_folder_name(Path(out))
    refuse_inside_mask(Path(out) / "mask.zarr")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{out}: cannot be made a folder ({error.strerror}). Choose another path") from error


def check_item(
    item: BatchItem, *, objects: bool, table: bool, polygons: bool = False, client: Client | None = None
) -> None:
    """Raise before any work if an item cannot be carried out."""
    checked_output(item.options.output, objects=objects, stored=True)
    if client is not None:
        check_sendable(item.image, item.model)
    if item.positive and not objects:
        raise SettingsError(f"positive {item.positive} is for objects: ask for them, too (--objects, objects=True)")
    if item.positive and not (table or polygons):
        raise SettingsError(f"positive {item.positive} is for tables and polygons. {ASK}")
    if item.within and not table:
        raise SettingsError(f"{item.within[0].path}: is for what is counted: ask for tables, too (--csv, table=True)")
    if table and is_own(item.name):
        raise SettingsError(
            f"{shown(item.image)}: its table would be {item.name}.csv, which is that of the whole batch. Give a .csv "
            f"list with a column name"
        )
