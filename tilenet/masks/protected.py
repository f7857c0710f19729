"""Files that an export or a picture must not replace: the mask, its image, and any file that tilenet did not write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tilenet.address import check_local, file_of, is_address
from tilenet.errors import OutputExists
from tilenet.store.destination import refuse_inside_file, refuse_inside_mask


def check_file_place(
    out: Path, *, replace: bool, is_ours: Callable[[Path], bool], kind: str, image: Any = None, mask: Any = None
) -> None:
    """Raise an error if a file must not be written at a path; writes nothing.

    Parameters
    ----------
    out : Path
        The file to be written.
    replace : bool
        Whether an existing file may be replaced if tilenet wrote it.
    is_ours : callable
        Returns whether tilenet wrote the file at a path.
    kind : str
        What the file is, for messages.
    image, mask : path or anything, optional
        Paths that must not be replaced, nor written into. Anything other than a local path is ignored.

    Raises
    ------
    OutputError, OutputExists
        If the path is remote, or not free, or inside any mask.
    EnvironmentFault
        If its folder is a file.
    """
    check_local(out)
    refuse_protected(out, image=image, mask=mask)
    refuse_inside_mask(out)
    refuse_inside_file(out)
    if out.is_symlink():
        raise OutputExists(f"{out}: is a symbolic link, which is not replaced. Give {out.resolve()} instead")
    if not out.exists():
        return
    if not out.is_file() or not is_ours(out):
        raise OutputExists(f"{out}: exists, and is not {kind} that tilenet wrote, so it stays. Choose another path")
    if not replace:
        raise OutputExists(f"{out}: exists already. Replace it (--overwrite), or choose another path")


def refuse_protected(out: Path, **spared: Any) -> None:
    """Raise `OutputExists` if a file would replace, or lie inside, one of the spared paths."""
    for what, path in spared.items():
        if _meet(out, path):
            raise OutputExists(f"{out}: is the {what} {path}, or inside it. Choose another path")


def _meet(out: Path, spared: Any) -> bool:
    """Return whether a file would replace, or lie inside, a spared path; arrays and addresses are no paths."""
    if not isinstance(spared, str | Path) or spared == "" or is_address(spared):
        return False
    source, target = file_of(spared).resolve(), out.resolve()
    return target == source or source in target.parents
