"""Bindings for the library that is compiled from C (`convolutions.c`).

It is built when tilenet is installed, if there is a C compiler, for x86-64 processors with AVX2 or AVX-512.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from torch import Tensor

LOG = logging.getLogger("tilenet")
# The instruction sets that the library may report, and their names.
AVX2, AVX512 = 1, 2
NAMES = {0: "pytorch", AVX2: "avx2", AVX512: "avx512"}
# Format of the structures and arrays, as in `convolutions.c`: a library of another one is not used.
FORMAT = 0
# Floats per vector register.
LANES = {AVX2: 8, AVX512: 16}


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Piece(ctypes.Structure):
    """Some rows of each image of a batch."""

    _fields_ = (*_fields(ctypes.c_void_p, "first"), *_fields(ctypes.c_long, "image row rows"))


class Source(ctypes.Structure):
    """Vertically adjacent pieces."""

    _fields_ = (("pieces", ctypes.POINTER(Piece)), *_fields(ctypes.c_long, "count channels"))


class Convolution(ctypes.Structure):
    """Inputs and outputs of a 3x3 or 2x2 convolution."""

    _fields_ = (
        ("sources", Source * 2),
        *_fields(ctypes.c_void_p, "weights bias scale shift out pooled work"),
        *_fields(ctypes.c_long, "made adds outputs images height width padding above squares work_size next"),
    )


class Classification(ctypes.Structure):
    """Inputs and outputs of a 1x1 convolution: logits, or the mask values that follow from them."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "x weights bias out mask values"),
        *_fields(ctypes.c_long, "x_image out_image plane images pixels channels outputs next not_finite"),
    )


def source_of(pieces: Sequence[Tensor]) -> Source:
    """Return pieces (N, C, b, w), channels last, as a `Source`."""
    listed = [Piece(piece.data_ptr(), piece.stride(0), piece.stride(2), piece.shape[2]) for piece in pieces]
    return Source((Piece * len(listed))(*listed), len(listed), pieces[0].shape[1])


def call(name: str, arguments: ctypes.Structure, instructions: int, threads: int) -> None:
    """Call a function of the library, which must have been loaded, with `threads` threads."""
    getattr(_library(), name)(ctypes.byref(arguments), instructions, threads)


def find_instructions() -> int:
    """Return the best instruction set that both this processor and the library support, 0 if there is none."""
    library = _library()
    return 0 if library is None else int(library.tilenet_instructions())


def convolutions() -> str:
    """Return what computes the convolutions of the fast path on this CPU: ``avx512``, ``avx2``, or ``pytorch``."""
    return NAMES[find_instructions()]


@cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_convolutions{suffix}")
        if path.exists():
            return _loaded(path)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    # The library uses symbols of the OpenMP that PyTorch has loaded. With another OpenMP loading it fails, and
    # tilenet does without it.
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    structures = getattr(library, "tilenet_structures", None)
    if structures is not None:
        structures.restype = ctypes.c_long
    wanted = FORMAT << 32 | ctypes.sizeof(Convolution) << 16 | ctypes.sizeof(Classification)
    if structures is None or structures() != wanted:
        LOG.warning("%s: is of another version of tilenet, and not used. Install tilenet again", path)
        return None
    return library
