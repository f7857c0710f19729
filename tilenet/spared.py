"""What the files that are made of a mask must not replace: its image, itself, and whatever tilenet did not write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tilenet.address import check_local, is_address
from tilenet.errors import OutputExists


def check_file_place(
    out: Path, *, replace: bool, is_ours: Callable[[Path], bool], kind: str, image: Any = None, mask: Any = None
) -> None:
    """Refuse a place where a file must not be put; writes nothing there.

    Parameters
    ----------
    out : Path
        The file.
    replace : bool
        Whether one that tilenet wrote may be replaced.
    is_ours : callable
        Tells whether tilenet wrote what is there.
    kind : str
        What the file is, for people.
    image, mask : path or anything, optional
        What nothing is put at, or into; what is no local path is spared anyhow.

    Raises
    ------
    OutputError, OutputExists
        If the place is remote, or not free.
    """
    check_local(out)
    refuse_inside(out, image=image, mask=mask)
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink() or not out.is_file() or not is_ours(out):
        raise OutputExists(f"{out}: exists, and is not {kind} that tilenet wrote, so it stays. Choose another path")
    if not replace:
        raise OutputExists(f"{out}: exists already. Replace it (--overwrite), or choose another path")


def refuse_inside(out: Path, **spared: Any) -> None:
    """Raise `OutputExists` for a file that would be, or be inside, what is to be spared."""
    for what, path in spared.items():
        if _meet(out, path):
            raise OutputExists(f"{out}: is the {what} {path}, or inside it. Choose another path")


def _meet(out: Path, spared: Any) -> bool:
    """Tell whether a file would be, or be inside, what is to be spared; the names of arrays are no paths."""
    if not isinstance(spared, str | Path) or spared == "" or is_address(spared):
        return False
    source, target = Path(spared).resolve(), out.resolve()
    return target == source or source in target.parents
