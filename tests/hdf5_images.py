"""HDF5 and Imaris files that tests write."""

from itertools import product

import h5py
import imagecodecs
import numpy as np

LZ4 = 32004
RANDOM = np.random.default_rng(5)
SHAPE = (2, 3, 9, 40, 53)


def levels_of(shape, dtype=np.uint16, *, factors=((1, 1, 1), (1, 2, 2), (2, 4, 4))):
    """Return random pixels (t, c, z, y, x), and means of them, in levels whose z shrinks less often than y and x."""
    finest = RANDOM.integers(0, 250, shape).astype(dtype)
    return [finest[..., ::a, ::b, ::c][..., : shape[2] // a, : shape[3] // b, : shape[4] // c] for a, b, c in factors]


def characters(text):
    """Return a text as Imaris stores it: an array of single characters."""
    return np.frombuffer(text.encode() or b"\0", "S1")


def write_imaris(path, levels, *, chunks=(4, 16, 16), um=(1.0, 1.0, 1.0), names=(), unit="um", lz4=False, **options):
    """Write an image in the layout of Imaris 5.5; return its path.

    Each of `levels` is its pixels (t, c, z, y, x); `um` are those of the finest, along z, y and x. What fills the last
    chunks is not 0. `options` are those of the datasets.
    """
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        said = {"ImarisDataSet": "ImarisDataSet", "ImarisVersion": "5.5.0", "DataSetDirectoryName": "DataSet"}
        for key, text in said.items():
            file.attrs[key] = characters(text)
        file.attrs["NumberOfDataSets"] = np.array([1], np.uint32)
        for (r, pixels), at in ((one, at) for one in enumerate(levels) for at in np.ndindex(one[1].shape[:2])):
            group = file.create_group("DataSet/ResolutionLevel {}/TimePoint {}/Channel {}".format(r, *at))
            for axis, n in zip("ZYX", pixels.shape[2:], strict=True):
                group.attrs[f"ImageSize{axis}"] = characters(str(n))
            write_padded(group, pixels[at], chunks, lz4=lz4, **options)
            group["Histogram"] = np.zeros(256, np.uint64)
        about = file.create_group("DataSetInfo")
        image = about.create_group("Image")
        image.attrs["Unit"] = characters(unit)
        shape = levels[0].shape[2:]
        for number, (axis, n, size) in enumerate(reversed([*zip("ZYX", shape, um, strict=True)])):
            for key, text in ((axis, n), (f"ExtMin{number}", -7.5), (f"ExtMax{number}", -7.5 + n * size)):
                image.attrs[key] = characters(str(text))
        for c in range(levels[0].shape[1]):
            about.create_group(f"Channel {c}").attrs["Name"] = characters(names[c] if names else "(name not specified)")
        file.create_group("DataSetTimes")
        file["Thumbnail/Data"] = np.zeros((256, 1024), np.uint8)
    return path


def write_padded(group, pixels, chunks, *, lz4=False, **options):
    """Write pixels (z, y, x) as a dataset of whole chunks."""
    padded = [(0, -n % side) for n, side in zip(pixels.shape, chunks, strict=True)]
    padded = np.pad(pixels, padded, constant_values=99)
    if not lz4:
        group.create_dataset(
            "Data", data=padded, chunks=chunks, **{"compression": "gzip", "compression_opts": 2} | options
        )
        return
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk(chunks)
    created.set_filter(LZ4, h5py.h5z.FLAG_OPTIONAL, (0,))  # otherwise HDF5 needs the filter itself
    kind, space = h5py.h5t.py_create(pixels.dtype), h5py.h5s.create_simple(padded.shape)
    dataset = h5py.h5d.create(group.id, b"Data", kind, space, created)
    for corner in product(*map(range, (0,) * 3, padded.shape, chunks)):
        part = padded[tuple(slice(a, a + n) for a, n in zip(corner, chunks, strict=True))]
        dataset.write_direct_chunk(corner, imagecodecs.lz4h5_encode(np.ascontiguousarray(part).tobytes()))


def write_hdf5(path, pixels, *, name="raw", labels="", axistags="", um=None, **options):
    """Write a dataset; return its path, which leads into the file. `um` are those along z, y and x."""
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset(name, data=pixels, **options)
        for dim, letter in zip(dataset.dims, labels, strict=False):
            dim.label = letter
        if axistags:
            tags = ", ".join(f'{{"key": "{key}", "typeFlags": 2, "resolution": 0}}' for key in axistags)
            dataset.attrs["axistags"] = f'{{"axes": [{tags}]}}'
        if um is not None:
            dataset.attrs["element_size_um"] = um
    return path / name


def filtered(path, pixels, number, encode):
    """Write a dataset of one chunk, encoded by a function, and said to be encoded by a filter of a number."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk(pixels.shape)
    created.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(path, "w") as file:
        space, kind = h5py.h5s.create_simple(pixels.shape), h5py.h5t.py_create(pixels.dtype)
        dataset = h5py.h5d.create(file.id, b"raw", kind, space, created)
        dataset.write_direct_chunk((0,) * pixels.ndim, encode(np.ascontiguousarray(pixels).tobytes()))
    return path / "raw"
