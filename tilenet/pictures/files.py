"""Picture files: where they may go, how tilenet recognises its own, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilenet.errors import SettingsError
from tilenet.masks.protected import check_file_place
from tilenet.masks.tiff_store import name_of
from tilenet.pictures.drawing import Picture
from tilenet.store.destination import put_whole

# Formats that can carry the mark by which tilenet recognises its own pictures.
KINDS = ("PNG", "JPEG", "TIFF", "WEBP")
# The EXIF tag "Software", and its value. A TIFF mask has "tilenet" there, so it is not taken for a picture.
SOFTWARE, MARK = 0x0131, "tilenet overlay"
# The ending of a picture of a mask that lies beside that.
OVERVIEW = ".overview.png"
# The EXIF tag "ImageDescription", which says by what rule the objects of a picture were chosen.
DESCRIPTION = 0x010E


def check_picture_place(out: str | Path, *, replace: bool, image: Any = None, mask: Any = None) -> None:
    """Raise as `check_file_place` if a picture must not be put at `out`, or if its name is not that of a picture."""
    out = Path(out)
    _kind(out)
    check_file_place(out, replace=replace, is_ours=is_picture_of_ours, kind="a picture", image=image, mask=mask)


def save(picture: Picture, out: str | Path, *, rule: str = "") -> None:
    """Write a picture file, replacing an older one that tilenet drew; the name's ending chooses the format.

    `rule`, in ASCII, is what `rule_of` will return.
    """
    from PIL import Image as Pillow

    out = Path(out).absolute()
    # Check again: the run may have taken hours since its place was checked.
    check_picture_place(out, replace=True)
    marked = Pillow.Exif()
    marked[SOFTWARE] = MARK
    if rule:
        marked[DESCRIPTION] = rule
    with put_whole(out) as path:
        Pillow.fromarray(picture).save(path, format=_kind(out), exif=marked)


def is_picture_of_ours(path: Path) -> bool:
    """Return whether a file is a picture that tilenet drew, by the mark in it."""
    return _marks(path).get(SOFTWARE) == MARK


def rule_of(path: Path) -> str:
    """Return by what rule the objects of a picture were chosen, as `save` was told; nothing if all are drawn."""
    return _marks(path).get(DESCRIPTION, "")


def _marks(path: Path) -> dict[int, str]:
    """Return the EXIF data of a picture as text; none of what is no picture."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path, formats=KINDS) as picture:
            return {tag: str(value) for tag, value in picture.getexif().items()}
    except Exception:  # a foreign file may make the parsers raise anything
        return {}


def overview_beside(mask: str | Path, into: str | Path | None = None) -> Path:
    """Return where the picture of a mask goes: beside the mask, as a store may hold only what its journal lists.

    >>> overview_beside("masks/a.zarr").as_posix(), overview_beside("masks/a.ome.tif").as_posix()
    ('masks/a.overview.png', 'masks/a.overview.png')

    The picture of labels inside an image goes beside that image:

    >>> overview_beside("b.ome.zarr/labels/nuclei", into="b.ome.zarr").as_posix()
    'b.nuclei.overview.png'
    """
    beside, label = Path(mask if into is None else into), "" if into is None else f".{Path(mask).name}"
    return beside.with_name(f"{name_of(beside)}{label}{OVERVIEW}")


def _kind(out: Path) -> str:
    from PIL import Image as Pillow

    kind = Pillow.registered_extensions().get(out.suffix.lower())
    if kind not in KINDS:
        raise SettingsError(f"{out}: its ending is not a picture format. Give a name in .png, .jpg, .tif or .webp")
    return kind
