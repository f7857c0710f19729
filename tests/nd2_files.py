"""ND2 files that tests write, in the layout that the package nd2 reads: named parts, and a map of them at the end."""

import struct
import zlib

import numpy as np

MARK, SIGNATURE = 0x0ABECEDA, b"ND2 FILE SIGNATURE CHUNK NAME01!"
MAP, END_OF_MAP = b"ND2 FILEMAP SIGNATURE NAME 0001!", b"ND2 CHUNK MAP SIGNATURE 0000001!"
NAME_BYTES = 4072
RANDOM = np.random.default_rng(17)


def lite(entries):
    """Return the binary form of version 3, of a mapping whose values are such mappings, texts, numbers or Booleans."""
    return b"".join(lite_entry(name, value) for name, value in entries.items())


def lite_entry(name, value):
    head = bytes([len(name) + 1]) + (name + "\0").encode("utf-16-le")
    if isinstance(value, dict):
        inner = lite(value)
        whole = 1 + len(head) + 12 + len(inner)
        return b"\x0b" + head + struct.pack("<IQ", len(value), whole) + inner + bytes(8 * len(value))
    if isinstance(value, bool):
        return b"\x01" + head + struct.pack("?", value)
    if isinstance(value, int):
        return (
            (b"\x03" if 0 <= value < 2**32 else b"\x04")
            + head
            + struct.pack("<I" if 0 <= value < 2**32 else "<q", value)
        )
    if isinstance(value, float):
        return b"\x06" + head + struct.pack("<d", value)
    return b"\x08" + head + (value + "\0").encode("utf-16-le")


def xml(entries):
    """Return the form of version 2 of the same."""
    return f'<?xml version="1.0" encoding="UTF-8"?><variant version="1.0">{xml_entries(entries)}</variant>'.encode()


def xml_entries(entries):
    kinds = {bool: "bool", int: "lx_int64", float: "double", str: "CLxStringW"}
    return "".join(
        f'<{name} runtype="CLxListVariant">{xml_entries(value)}</{name}>'
        if isinstance(value, dict)
        else f'<{name} runtype="{kinds[type(value)]}" value="{value}"/>'
        for name, value in entries.items()
    )


def loop(letter, count, names=(), step=2.0):
    """Return what the file says of a loop: over time, z, positions, or of an unknown kind (u)."""
    times = {"uiCount": count, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}
    points = {f"i{k:010}": {"dPosX": 9.0 * k, "dPosName": names[k] if k < len(names) else ""} for k in range(count)}
    kinds = {
        "t": (1, times),
        "p": (2, {"Points": points}),
        "z": (4, {"uiCount": count, "dZLow": 0.0, "dZHigh": step * (count - 1), "dZStep": step}),
        "n": (8, {"pPeriod": {"i0000000000": times}, "pPeriodValid": {"i0000000000": True}}),
        "u": (7, {"uiCount": count}),
    }
    kind, about = kinds[letter]
    return {"eType": kind, "uLoopPars": about}


def experiment(loops):
    """Return nested loops, the outermost first."""
    first, *others = loops
    return first | ({"ppNextLevelEx": {"i0000000000": experiment(others)}} if others else {})


class Nd2:
    """The parts of an ND2 file; tests change them, and write it.

    `pixels` are those of each frame, in the order of the loops, and of each (y, x, channels, samples); `loops` what
    `loop` returns. `um` are along y and x, if known.
    """

    def __init__(self, pixels, loops=(), *, names=("DAPI",), um=0.25, version=3, pad=0, zipped=False, **attributes):
        n_frames = int(np.prod(pixels.shape[:-4]))
        _, width, n_channels, n_samples = pixels.shape[-4:]
        self.version, bits, row = version, 8 * pixels.itemsize, width * n_channels * n_samples * pixels.itemsize
        self.attributes = {
            "uiWidth": width,
            "uiWidthBytes": row + pad,
            "uiHeight": pixels.shape[-4],
            "uiComp": n_channels * n_samples,
            "uiBpcInMemory": bits,
            "uiBpcSignificant": bits,
            "uiSequenceCount": n_frames,
            "uiTileWidth": width,
            "uiTileHeight": pixels.shape[-4],
            "eCompression": 0 if zipped else 2,
        } | attributes
        probe = {"pFluorescentProbe": {"m_sName": "dye"}}  # without, nd2's `metadata` fails
        planes = {f"a{k}": {"uiCompCount": n_samples, "sDescription": name, **probe} for k, name in enumerate(names)}
        self.metadata = {
            "bCalibrated": um is not None,
            "dCalibration": um or 0.0,
            "dTimeAbsolute": 2459278.94,
            "sPicturePlanes": {"uiCount": len(names), "sPlaneNew": planes},
        }
        self.experiment = experiment(loops) if loops else None
        self.frames = {}
        for k, frame in enumerate(pixels.reshape(n_frames, pixels.shape[-4], -1)):
            rows = np.frombuffer(np.ascontiguousarray(frame).tobytes(), np.uint8).reshape(len(frame), row)
            data = np.pad(rows, ((0, 0), (0, pad)), constant_values=99).tobytes()
            self.frames[k] = struct.pack("<d", 10.0 * k) + (zlib.compress(data) if zipped else data)
        self.moved = {}

    def parts(self):
        """Return the data of each part, by its name."""
        lv, encode = ("LV", lite) if self.version >= 3 else ("", xml)
        wrapped = (lambda name, entries: {name: entries}) if self.version >= 3 else (lambda name, entries: entries)
        parts = {
            f"ImageAttributes{lv}!": encode(wrapped("SLxImageAttributes", self.attributes)),
            f"ImageMetadataSeq{lv}|0!": encode(wrapped("SLxPictureMetadata", self.metadata)),
        }
        if self.experiment:
            parts[f"ImageMetadata{lv}!"] = encode(wrapped("SLxExperiment", self.experiment))
        return parts | {f"ImageDataSeq|{k}!": data for k, data in self.frames.items()}

    def write(self, path):
        """Write the file; return its path. `moved` holds offsets that its map gives in place of the true ones."""
        version = f"Ver{self.version}.0".encode()
        content = bytearray(struct.pack("<IIQ32s64s", MARK, 32, 64, SIGNATURE, version)).ljust(4096, b"\0")
        listed = b""
        for name, data in self.parts().items():
            at = self.moved.get(name, len(content))
            listed += name.encode() + struct.pack("<QQ", at, len(data))
            content += struct.pack("<IIQ", MARK, NAME_BYTES, len(data)) + name.encode().ljust(NAME_BYTES, b"\0") + data
            content += bytes(-len(content) % 4096)
        at = len(content)
        listed += END_OF_MAP + struct.pack("<Q", at)
        content += struct.pack("<IIQ", MARK, NAME_BYTES, len(listed)) + MAP.ljust(NAME_BYTES, b"\0") + listed
        path.write_bytes(content)
        return path


def frames_of(shape, dtype=np.uint16):
    """Return random pixels that a test can tell apart."""
    return RANDOM.integers(1, 250, shape).astype(dtype)


def stack(dtype=np.uint16, **options):
    """Return a series of stacks of two channels: its pixels (t, z, y, x, c, s), and what writes it."""
    pixels = frames_of((2, 3, 20, 31, 2, 1), dtype)
    return pixels, Nd2(pixels, [loop("t", 2), loop("z", 3)], names=("DAPI", "GFP"), **options)
