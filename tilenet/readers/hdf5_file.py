"""Open an HDF5 file without trusting it: links to other files are refused, and chunks are decoded here.

HDF5 itself only finds chunks and returns their bytes. It works for one thread at a time, and allocates whatever a chunk
unpacks to; imagecodecs decodes for several threads at once, and never to more than a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import Any

import imagecodecs
import numpy as np

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers.guards import (
    DAMAGED,
    LISTED,
    LONGEST_AXIS,
    as_image_errors,
    check_piece,
    listed,
    needing,
    pixel_dtype,
)
from tilenet.readers.image import Pixels

# Soft links that are followed, one after another, to one dataset.
MOST_LINKS = 16
# Objects of a file that are looked at to find its datasets.
MOST_OBJECTS = 10_000
# Most bytes of a text or of numbers among the attributes.
LARGEST_ATTRIBUTE = 2**20
# Bytes that a chunk may be longer than its pixels: headers of codecs, and checksums.
SLACK = 2**16
CHECKSUM = 4
# What HDF5 says of a chunk that was never written, if others were.
UNWRITTEN = "storage is not allocated"


def _unshuffled(data: Any, room: int, itemsize: int) -> Any:
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(itemsize, -1).T).reshape(-1)


def _checked(data: Any, room: int, itemsize: int) -> Any:
    """Return data without the checksum behind them (Fletcher-32)."""
    body = bytes(data[:-CHECKSUM])
    if imagecodecs.h5checksum_fletcher32(body) != int.from_bytes(bytes(data[-CHECKSUM:]), "little"):
        raise ValueError("its checksum is wrong")
    return body


# What undoes each filter, by its registered number: functions of the data, of the most bytes that result, and of the
# bytes of a pixel.
UNDO: dict[int, Callable[[Any, int, int], Any]] = {
    1: lambda data, room, _: imagecodecs.deflate_decode(data, out=room),
    2: _unshuffled,
    3: _checked,
    32000: lambda data, room, _: imagecodecs.lzf_decode(data, header=False, out=room),
    32001: lambda data, room, _: imagecodecs.blosc_decode(data, out=room),
    32004: lambda data, room, _: imagecodecs.lz4h5_decode(data, out=room),
    32015: lambda data, room, _: imagecodecs.zstd_decode(data, out=room),
}
DECODED = "deflate, LZF, LZ4, Blosc and Zstandard, with shuffle and checksums"


class Stored:
    """A dataset of numbers, in `chunks` or, if that is None, in one piece; `dtype` is that of the pixels as read."""

    def __init__(self, dataset: Any, name: str) -> None:
        import h5py

        self._dataset, self.path = dataset, str(dataset.name)
        self._name = f"{name}: its dataset {self.path}"
        if not isinstance(dataset, h5py.Dataset):
            raise ImageError(f"{name}: {self.path} is a group. {what_is_inside(dataset)}")
        # Before the shape is asked for, as a virtual dataset may open other files to tell it.
        if dataset.is_virtual or dataset.external:
            what = "is put together from other datasets" if dataset.is_virtual else "keeps its pixels in another file"
            raise ImageError(f"{self._name} {what}, which are not read. Copy its pixels into one dataset")
        self.shape, self.chunks = tuple(dataset.shape or ()), dataset.chunks
        if max(self.shape, default=0) > LONGEST_AXIS:
            raise ImageError(f"{self._name} has the shape {self.shape}. {DAMAGED}")
        self._stored = np.dtype(dataset.dtype)
        self.dtype = pixel_dtype(self._stored, self._name)
        self._filters = self._known_filters() if self.chunks else []
        # Asked first, as HDF5 trusts a fill value that is damaged.
        defined = dataset.id.get_create_plist().fill_value_defined()
        self._fill = 0 if defined == h5py.h5d.FILL_VALUE_UNDEFINED else dataset.fillvalue
        check_piece(prod(self.chunks or ()) * self._stored.itemsize, f"{self._name}, in chunks of {self.chunks},")

    def _known_filters(self) -> list[int]:
        """Return the numbers of the filters that encode chunks; refuse filters and numbers that are not decoded."""
        import h5py

        of_file = self._dataset.id.get_type()
        of_file = of_file.get_super() if isinstance(of_file, h5py.h5t.TypeEnumID) else of_file
        plain = np.dtype(np.int8) if self._stored.kind == "b" else np.dtype(self._stored.str)
        if not of_file.equal(h5py.h5t.py_create(plain)):
            raise ImageError(f"{self._name} holds numbers of an unusual form. Write it again as {plain}")
        created = self._dataset.id.get_create_plist()
        found = [created.get_filter(place) for place in range(created.get_nfilters())]
        for number, _, _, called in found:
            if number not in UNDO:
                said = " ".join(called.decode(errors="replace").split())
                raise ImageError(
                    f"{self._name} is encoded by the filter {number} ({said}), and tilenet decodes {DECODED} (by "
                    f"itself: hdf5plugin is not used). Write it again, for instance: h5repack -f GZIP=1 in.h5 out.h5"
                )
        return [number for number, *_ in found]

    def chunk(self, corner: tuple[int, ...]) -> Pixels:
        """Return the whole chunk that begins at a pixel; one that was never written has the dataset's fill value."""
        assert self.chunks is not None
        if self._is_unwritten:
            return np.full(self.chunks, self._fill, self.dtype)
        n_bytes = prod(self.chunks) * self._stored.itemsize
        # Given the room, HDF5 does not allocate what a damaged index says.
        # It is not asked where the chunk is: it looks at all chunks for that, and denies some that exist if just one
        # axis is unlimited, and not the first.
        room = np.empty(2 * n_bytes + SLACK, np.uint8)
        try:
            skipped, data = self._dataset.id.read_direct_chunk(corner, out=room)
        except RuntimeError as error:
            if UNWRITTEN not in str(error):
                raise
            return np.full(self.chunks, self._fill, self.dtype)
        for place, number in reversed(list(enumerate(self._filters))):
            if not skipped >> place & 1:
                data = UNDO[number](data, n_bytes + CHECKSUM, self._stored.itemsize)
        if len(data) != n_bytes:
            raise ValueError(f"a chunk unpacks to {len(data)} bytes, not to {n_bytes}")
        # A copy: of chunks without filters, the data are a part of the room, which the cache would hold.
        pixels: Pixels = np.frombuffer(data, self._stored).reshape(self.chunks).astype(self.dtype)
        return pixels

    @cached_property
    def _is_unwritten(self) -> bool:
        """Whether no chunk was ever written: of those, HDF5 says any size."""
        return not self._dataset.id.get_storage_size()

    def part(self, box: Box) -> Pixels:
        """Return a box of the pixels of a dataset without chunks."""
        return np.asarray(self._dataset[box.slices])

    def fingerprint(self) -> str:
        """Return a text that most likely changes when the dataset is written anew."""
        places: list[tuple[int, int]] = []
        if self.chunks is None:
            places.append((self._dataset.id.get_offset() or 0, 0))
        else:
            # Not by which chunk lies where: see `chunk`.
            self._dataset.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
        return f"{self.path} {self.shape} {self.chunks} {self._filters} {places}"


def open_file(path: str) -> Any:
    """Open an HDF5 file for reading."""
    with needing(path, kind="an HDF5 file", library="h5py", extra="hdf5"):
        import h5py
    with as_image_errors(f"{path}: cannot be read as an HDF5 file", DAMAGED):
        try:
            # Where a file system has no locks, none is needed. Chunks do not go through HDF5's own cache.
            return h5py.File(path, "r", locking="best-effort", rdcc_nbytes=0)
        except BlockingIOError as error:
            raise ImageError(
                f"{path}: is open for writing in another program. Close it there, and try again"
            ) from error


def follow(start: Any, inside: str, name: str) -> Any:
    """Return the group or dataset at a path inside a group; refuse links to other files, before they are opened."""
    from h5py import Group, h5l

    place, parts, links = start, _parts(inside), 0
    while parts:
        key = parts.pop(0)
        found = place.id.links if isinstance(place, Group) else None
        if found is None or not found.exists(key.encode()):
            raise ImageError(f"{name}: has nothing called {key!r} in {place.name}. {what_is_inside(start.file['/'])}")
        kind = found.get_info(key.encode()).type
        if kind == h5l.TYPE_HARD:
            place = place[key]
            continue
        links += 1
        if kind != h5l.TYPE_SOFT or links > MOST_LINKS:
            where = "to another file, which is not followed" if kind == h5l.TYPE_EXTERNAL else "that leads nowhere"
            raise ImageError(
                f"{name}: {key!r} in {place.name} is a link {where}. Copy what it stands for into the file"
            )
        target = found.get_val(key.encode()).decode()
        place, parts = start["/"] if target.startswith("/") else place, _parts(target) + parts
    return place


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def datasets_of(group: Any) -> list[str]:
    """Return the paths of the datasets in a group that may be images, numbers along two or more axes.

    Of many, only a few are found. Links are not followed.
    """
    from h5py import Dataset

    found: list[str] = []
    seen = 0

    def look(path: str, thing: Any) -> bool | None:
        nonlocal seen
        seen += 1
        if isinstance(thing, Dataset) and _may_be_image(thing):
            found.append(f"{group.name.rstrip('/')}/{path}")
        return True if len(found) > LISTED or seen > MOST_OBJECTS else None

    group.visititems(look)
    if seen > MOST_OBJECTS and len(found) <= LISTED:
        name = group.file.filename
        raise ImageError(f"{name}: has more than {MOST_OBJECTS} groups and datasets. Name the dataset: {name}/...")
    return found


def _may_be_image(dataset: Any) -> bool:
    try:
        return bool(dataset.is_virtual or (dataset.dtype.kind in "biuf" and len(dataset.shape or ()) > 1))
    except TypeError:  # a type that NumPy does not have
        return False


def what_is_inside(group: Any) -> str:
    """Return a sentence on which datasets to name."""
    found = datasets_of(group)
    if not found:
        return "No dataset in it has two or more axes. Give another"
    return f"Give one of its datasets: {listed([f'{group.file.filename}{path}' for path in found])}"


def text_of(holder: Any, attribute: str) -> str:
    """Return an attribute as text; it may be a string, or an array of single characters. Empty if there is none."""
    value = attribute_of(holder, attribute)
    parts = [] if value is None else np.ravel(value).tolist()
    joined = "".join(p.decode(errors="replace") if isinstance(p, bytes) else str(p) for p in parts)
    return joined.replace("\0", "").strip()


def attribute_of(holder: Any, attribute: str) -> Any:
    """Return the value of an attribute of a group or dataset; None if there is none."""
    import h5py

    if attribute not in holder.attrs:
        return None
    found = holder.attrs.get_id(attribute)
    kind, size = found.get_type(), prod(found.shape) * found.get_type().get_size()
    if size > LARGEST_ATTRIBUTE or kind.get_class() not in (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        raise ValueError(f"an attribute {attribute} of {size} bytes, of the type {kind.get_class()} of HDF5")
    return holder.attrs[attribute]
