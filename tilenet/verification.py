"""`verify`: check that a mask's files are as written, and that its values are what the network gives."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet import machine
from tilenet.address import check_local, file_of, is_address
from tilenet.arguments import known_options
from tilenet.border_windows import windows_of
from tilenet.errors import ANEW, REPAIR, SettingsError, VerifyFailed
from tilenet.footprint import Footprint
from tilenet.geometry import Box
from tilenet.jobs.job import Job
from tilenet.jobs.mismatch import Difference
from tilenet.jobs.request import Request
from tilenet.masks.provenance import check_image, how_to_name_image, source_of
from tilenet.masks.tiff_mask import open_mask, open_tiff_mask
from tilenet.masks.tiff_store import is_tiff
from tilenet.models.saved import packaged_models
from tilenet.plan import tile_of
from tilenet.readers.planes import LITTER
from tilenet.runner import Predictor
from tilenet.scaling import Scaling
from tilenet.sizes import whole_number
from tilenet.store import AnyMask, Progress, Store
from tilenet.store.metadata import foreign_entries

LOG = logging.getLogger("tilenet")
# A pixel may differ where the logits of two mask values are closer than this fraction of the
# logits' range: another tile shape rounds differently in the last bits.
TIE = {"fp64": 1e-9, "fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}


@dataclass
class Verification:
    """The result of `verify`.

    Attributes
    ----------
    damage : list of str
        One line for each file that is not as it was written, or that tilenet did not write.
    not_recomputed : str
        Why no window was recomputed, if none was.
    windows, pixels : int
        Number of windows that were recomputed and compared, and of their pixels.
    ties : int
        Pixels that differ only because the logits of two classes are equal up to rounding.
    differences : list of tuple
        Windows where the mask is not what the network gives: box, and number of differing pixels.
    foreign : list of str
        Files that tilenet did not write, each of which has a line in `damage`, too. Not those that file managers leave:
        ``Thumbs.db``, ``desktop.ini``, and hidden ones.
    lasting : list of str
        Files that a run with ``--resume`` does not mend, each of which has a line in `damage`, too.
    """

    damage: list[str] = field(default_factory=list)
    not_recomputed: str = ""
    windows: int = 0
    pixels: int = 0
    ties: int = 0
    differences: list[tuple[Box, int]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is neither damage nor a difference."""
        return not self.damage and not self.differences

    def raise_if_failed(self, name: str | Path) -> None:
        """Raise `VerifyFailed` if anything was found, naming the first damage and the first difference."""
        found = list(self.damage[:1])
        if self.differences:
            box, count = self.differences[0]
            found.append(f"{count} of {box.size} pixels at {box} are not what the network gives")
        if found:
            more = len(self.damage) + len(self.differences) - len(found)
            raise VerifyFailed(f"{name}: {'; '.join(found)}{f'; and {more} more' if more else ''}. {self._remedy()}")

    def _remedy(self) -> str:
        """Return what to do about everything that was found. No run replaces a mask with foreign files in it."""
        away = ["Move away what tilenet did not write"] if self.foreign else []
        if len(self.foreign) == len(self.damage) and not self.differences:
            return away[0]
        # Windows are recomputed only if no file is damaged, so that one of the two options helps against everything.
        again = ANEW if self.lasting or self.differences else REPAIR
        return ", then ".join([*away, again if away else again.capitalize()])


@known_options()
def verify(
    out: str | PathLike[str],
    image: Any = None,
    *,
    model: Any = None,
    footprint: Footprint | None = None,
    windows: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Check a complete mask: every file's bytes, and windows recomputed from the image.

    Each window straddles borders of tiles and blocks. It is computed in one forward pass, on a tile
    whose size and origin differ from those of the tiles that wrote it.

    Parameters
    ----------
    out : path or Mask
        A mask written by tilenet.
    image : path, array or Image, optional
        By default the file named in the mask. No windows are recomputed if that is gone, if the device that made the
        mask is missing, or for a mask of objects, because outlines of objects depend on more than a window.
    model, footprint
        By default the model named in the mask.
    windows : int
        Number of windows; 0 checks only the files.
    seed : int
        Chooses the windows.
    progress : callable, optional
        Called with the number of windows done and the total number of windows.

    Returns
    -------
    Verification
        Whether the mask is `ok`, or what is wrong and where; ``raise_if_failed`` turns that into an error.

    Raises
    ------
    OutputNotFound, OutputIncomplete, OutputError
        If there is no complete mask that tilenet wrote.
    SettingsError
        If `windows` or `seed` is no whole number, or below 0.
    OutputMismatch
        If image or model are not those that made the mask. If given, they are compared even if no window can be.
    """
    check_local(out)
    windows, seed = whole_number(windows, "windows", 0), whole_number(seed, "seed", 0)
    found = _damage(Path(out))
    if found.damage:  # windows in damaged files might not even be readable
        return found
    with open_mask(out) as mask:
        job = _same_job(mask, image, model, footprint, found) if windows > 0 else None
        if job is None:
            return found
        with job, machine.threads(job.record["threads"]):
            predictor = job.predictor(Scaling.from_json(mask.info["scaling"]))
            boxes = list(windows_of(mask, job.plan, windows, np.random.default_rng(seed)))
            if not boxes:
                found.not_recomputed = "there is no tissue, and all of the mask is background"
            for done, box in enumerate(boxes, start=1):
                _compare(mask, job, predictor, box, found)
                if progress:
                    progress(done, len(boxes))
    return found


def _same_job(mask: AnyMask, image: Any, model: Any, footprint: Footprint | None, found: Verification) -> Job | None:
    """Return the job that made a mask, or None, and say so in `found`, if no window can be recomputed.

    An image and a model that the caller named are compared in any case.
    """
    path = source_of(mask)
    there = path if is_address(path) or file_of(path).exists() else None
    source = there if image is None else image
    found.not_recomputed = _obstacle(mask, source, model)
    if image is not None or not found.not_recomputed:
        check_image(source, mask)
    network = mask.info["model"]["source"] if model is None else model
    request = Request(source, network, footprint=footprint, explain=_made_with)
    if not found.not_recomputed:
        return request.job_like(mask.info, mask.path)
    if model is not None and source is not None:
        request.job_like_complete(mask.info, mask.path).close()
    elif model is not None:
        request.refuse_another_model(mask.info, mask.path)
    return None


def _obstacle(mask: AnyMask, image: Any, model: Any) -> str:
    """Return why no window of a mask can be recomputed, or an empty string if windows can be."""
    source = mask.info["model"]["source"]
    if mask.has_objects:
        return "outlines of objects depend on more than a window"
    # An object has no packaged name and no absolute path, nor has what a function returned.
    if model is None and source not in packaged_models() and not Path(source).is_absolute():
        if ":" in source:
            return f"the model came from {source}, and its code is run only if it is named: --model {source}"
        return f"the model was a {source} of Python: tilenet.verify(mask, model=...) recomputes them"
    if image is None:
        return f"the image is no longer at {mask.info['image']['path']}. {how_to_name_image(mask)}"
    device = mask.info["record"]["device"]
    try:
        machine.find_device(device)
    except SettingsError:
        return f"the mask was made with device {device}, which this machine does not have"
    return ""


def _damage(out: Path) -> Verification:
    """Return the damage of a complete mask; an incomplete one is refused later, when it is opened."""
    if is_tiff(out) and not out.is_dir():
        with open_tiff_mask(out) as mask:
            return Verification(damage=mask.check(), lasting=[str(out)])
    store = Store.inspect(out)
    if not store.complete:
        return Verification()
    changed = store.check()
    # Foreign files do the mask no harm, but a run with --overwrite would refuse to delete them.
    foreign = [found.file for found in changed if found.is_foreign]
    foreign += [name for name in foreign_entries(out, store.layout) if not name.startswith(".")]
    damage = [str(found) for found in changed if found.file not in foreign]
    if litter := [name for name in foreign if name.rpartition("/")[2].lower() in LITTER]:
        LOG.warning(
            "%s: %s is no part of the mask: file managers leave such files%s. Delete it before you overwrite the mask",
            *(out, litter[0], f" ({len(litter)} are there)" if litter[1:] else ""),
        )
        foreign = [name for name in foreign if name not in litter]
    damage += [f"{name} is extra: tilenet did not write it" for name in foreign]
    lasting = [found.file for found in changed if found.file == store.layout.root]
    return Verification(damage=damage, foreign=foreign, lasting=lasting)


def _made_with(differs: Difference) -> str:
    """Return why windows would be recomputed in another way than the mask says it was made, and what to do."""
    part, field, old, new = differs
    way = f"Give the {part} that it was made with"
    if part == "record":
        way = "Verify it with the tilenet and on the machine that made it"
    return f"was made with {part} {field} = {old}, and here it is {new}. {way}"


def _compare(mask: AnyMask, job: Job, predictor: Predictor, box: Box, found: Verification) -> None:
    logits, rows_columns = forward(job, predictor, box), map(np.arange, box.start[-2:], box.stop[-2:])
    kept = mask.layout.block_has_tissue_at(*rows_columns)  # by pixel, along y and x; the others were skipped
    expected = np.where(kept, job.decision.mask(logits), 0)
    wrong = expected != mask[box.slices].reshape(logits.shape[1:])
    tied = wrong & kept & (job.decision.certainty(logits) < TIE[job.record["precision"]] * np.ptp(logits))
    found.windows += 1
    found.pixels += box.size
    found.ties += int(tied.sum())
    if count := int(wrong.sum()) - int(tied.sum()):
        found.differences.append((box, count))


def forward(job: Job, predictor: Predictor, box: Box) -> NDArray[Any]:
    """Return the logits (K, *n) of a box, computed in a single forward pass."""
    tile = tile_of(job.plan.footprint, box, job.plan.origin)
    logits: NDArray[Any] = predictor(job.read(tile))[0]
    return logits[(slice(None), *tile.crop.slices[-job.footprint.ndim :])]
