"""Choose the reader of an image by fixed rules, never by trying one reader after another.

1. A file whose suffix is in `SLIDE_NAMES`: OpenSlide. These are TIFFs, pictures and texts that
   form a slide only together with vendor metadata, or with the files in the folder beside them.
2. Any other file, by its first bytes: TIFF (also SVS and NDPI), PNG, JPEG, BMP, CZI, ND2, LIF, DICOM, HDF5 (also
   Imaris).
3. A folder: zarr if it has zarr metadata, DICOM if it has ``.dcm`` files, else numbered planes.
4. A path that leads into a file: a dataset of an HDF5 file, a position of an ND2 file, or an image of a LIF file.
5. An address: zarr.
"""

from __future__ import annotations

import re
from pathlib import Path

from tilenet.address import last_name, leads_to_itself, shown
from tilenet.errors import ImageError, ImageNotFound
from tilenet.readers.decoded_size import BMP, JPEG, PNG

# MIRAX, Hamamatsu (twice), Ventana, Leica and Sakura.
SLIDE_NAMES = (".mrxs", ".vms", ".vmu", ".bif", ".scn", ".svslide")
HDF5 = b"\x89HDF\r\n\x1a\n"
# Kinds of files by what they have at some byte; those above decide first.
MAGIC = {
    (0, b"II*\0"): "tiff",
    (0, b"MM\0*"): "tiff",
    (0, b"II+\0"): "tiff",
    (0, b"MM\0+"): "tiff",
    (0, PNG): "png",
    (0, JPEG): "jpeg",
    (0, BMP): "bmp",
    (0, b"ZISRAWFILE"): "czi",
    (0, b"\xda\xce\xbe\x0a"): "nd2",
    (0, HDF5): "hdf5",
    # A preamble of 128 bytes without meaning comes first (PS3.10, 7.1).
    (128, b"DICM"): "dicom",
    # A block of the user's may come first, which in MATLAB files is this long.
    (512, HDF5): "hdf5",
}
HEAD_BYTES = max(at + len(magic) for at, magic in MAGIC)
# LIF files begin so, and have a mark behind a length.
LIF, LIF_MARK_AT, LIF_MARK = b"p\0\0\0", 8, b"*"
PICTURES = ("png", "jpeg", "bmp")
DICOM_SUFFIX, DICOM_INDEX = ".dcm", ("DICOMDIR",)
# First bytes of files that people pass by mistake, and what to say about them.
OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file that it stands for. Fetch it: git lfs pull",
    b"PK\x03\x04": "is a zip archive. Unpack it first",
    b"\x1f\x8b": "is a gzip archive. Unpack it first",
    b"\0\0\0\x0cjP  ": "is JPEG 2000, as ND2 files of old versions are. Convert it to OME-TIFF or OME-Zarr first",
}
# Suffixes of files whose pixels are in other files, which are not read, and what to do.
ELSEWHERE = {
    ".vsi": "is a VSI slide, whose pixels, in the folder beside it, are not read. Convert it to OME-TIFF or OME-Zarr",
    **dict.fromkeys(
        (".xlef", ".xlif", ".xlcf", ".xllf"),
        "is a file of Leica's whose pixels, in other files, are not read. Save the project as LIF, in LAS X",
    ),
}
PICTURE_NAMES = (".png", ".jpg", ".jpeg", ".bmp")
# Suffixes of single files: these are read from a local disk only, not from an address.
PLAIN = (".tif", ".tiff", ".svs", ".ndpi", ".czi", ".nd2", ".lif", ".dcm", ".ims", ".h5", ".hdf5", *PICTURE_NAMES)
FILES = (*PLAIN, ".zip", *SLIDE_NAMES)
READABLE = "TIFF, OME-TIFF, SVS, NDPI, MRXS, CZI, ND2, LIF, DICOM, zarr, OME-Zarr, Imaris, HDF5, PNG, JPEG and BMP"


def kind_of(path: str | Path) -> str:
    """Return one of the kinds of `MAGIC`, or ``"slide"`` or ``"lif"``; refuse other files."""
    head = _head(path)
    if Path(path).suffix.lower() in SLIDE_NAMES:
        return "slide"
    if what := ELSEWHERE.get(Path(path).suffix.lower()):
        raise ImageError(f"{path}: {what}")
    if head.startswith(LIF) and head.startswith(LIF_MARK, LIF_MARK_AT):
        return "lif"
    if kind := next((kind for (at, magic), kind in MAGIC.items() if head.startswith(magic, at)), None):
        return kind
    what = next((text for magic, text in OTHERS.items() if head.startswith(magic)), None)
    raise ImageError(f"{path}: {what or f'is not an image that tilenet reads. {READABLE} are read'}")


def refuse_remote_file(address: str) -> None:
    """Refuse the address of a single file."""
    if last_name(address).lower().endswith(FILES):
        raise ImageError(
            f"{shown(address)}: is a file, and only zarr can be read remotely. Download it, or convert it to zarr"
        )


def dicom_files(folder: str | Path) -> list[Path]:
    """Return the DICOM files in a folder, which may be none; refuse a folder that mixes them with other files."""
    files = [p for p in Path(folder).iterdir() if not p.name.startswith(".") and p.name not in DICOM_INDEX]
    found = [p for p in files if p.suffix.lower() == DICOM_SUFFIX]
    others = sorted(p.name for p in files if p not in found)
    if found and others:
        raise ImageError(
            f"{folder}: holds {others[0]} beside DICOM files. Give one file, a folder of one slide, or (for a batch) a "
            f"pattern such as '{folder}/*'"
        )
    return found


def _head(path: str | Path) -> bytes:
    """Return enough of the first bytes of a file to determine its kind."""
    if not Path(path).exists():
        if leads_to_itself(Path(path)):
            raise ImageNotFound(f"{path}: is a symbolic link that leads to itself. Give another path")
        if Path(path).is_symlink():
            target = Path(path).readlink()
            raise ImageNotFound(f"{path}: is a symbolic link to {target}, which does not exist. Mend the link")
        # A list puts its own folder before the path.
        drive = re.search(r"(?:^|/)([a-z]):[\\/](.*)", str(path), re.IGNORECASE)
        inside = (
            f". In WSL it is /mnt/{drive[1].lower()}/{drive[2]}".replace("\\", "/") if drive else ". Check the path"
        )
        if "*" in str(path):
            inside = ". Patterns are for tilenet batch and tilenet plan, in quotes, and not in a list"
        raise ImageNotFound(f"{path}: does not exist{inside}")
    if not Path(path).is_file():
        raise ImageError(f"{path}: is neither a file nor a folder. Give an image")
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ImageError(f"{path}: is empty. Get it again")
    return head
