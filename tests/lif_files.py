"""LIF files that tests write: a header with XML, then blocks of memory with the pixels."""

import struct
from dataclasses import dataclass, field
from xml.etree import ElementTree

import numpy as np

RANDOM = np.random.default_rng(24)
NUMBERS = {"x": 1, "y": 2, "z": 3, "t": 4, "λ": 5, "a": 6, "m": 10, "l": 11}
# What fills the bytes between rows.
FILL = 77


def random_pixels(shape, dtype=np.uint8):
    return RANDOM.integers(1, 250, shape).astype(dtype)


@dataclass
class Series:
    """An image: pixels along `axes`, the slowest first; ``c`` and ``s`` are channels, ``s`` those of a colour."""

    pixels: np.ndarray
    axes: str = "yx"
    # Micrometres from one entry to the next, by axis; and the unit in which the file states this.
    um: dict = field(default_factory=dict)
    unit: tuple = ("m", 1e-6)
    luts: tuple = ()
    dyes: tuple = ()
    tags: tuple = ()
    # Bytes behind each row.
    padding: int = 0
    bits: int = 0

    def stored(self):
        """Return the bytes from one entry to the next along each axis, and the pixels as they are stored."""
        steps, step = {}, self.pixels.itemsize
        for axis, n in zip(reversed(self.axes), reversed(self.pixels.shape), strict=True):
            steps[axis] = step
            step = step * n + (self.padding if axis == "x" else 0)
        data = np.full(step, FILL, np.uint8)
        strides = [steps[axis] for axis in self.axes]
        np.ndarray(self.pixels.shape, self.pixels.dtype.newbyteorder("<"), data, strides=strides)[...] = self.pixels
        return steps, data.tobytes()

    def described(self, steps):
        """Return the XML of the image."""
        image = ElementTree.Element("Image", TextDescription="")
        about = ElementTree.SubElement(image, "ImageDescription")
        lengths = dict(zip(self.axes, self.pixels.shape, strict=True))
        channels = ElementTree.SubElement(about, "Channels")
        offsets = [
            c * steps.get("c", 0) + s * steps.get("s", 0)
            for c in range(lengths.get("c", 1))
            for s in range(lengths.get("s", 1))
        ]
        for k, offset in enumerate(offsets):
            said = {
                "DataType": int(self.pixels.dtype.kind == "f"),
                "ChannelTag": self.tags[k] if self.tags else (k % 3 + 1) * ("s" in self.axes),
                "Resolution": self.bits or 8 * self.pixels.itemsize,
                "NameOfMeasuredQuantity": "",
                "Min": 0.0,
                "Max": 255.0,
                "Unit": "",
                "LUTName": self.luts[k] if self.luts else "Gray",
                "IsLUTInverted": 0,
                "BytesInc": offset,
                "BitInc": 0,
            }
            channel = ElementTree.SubElement(channels, "ChannelDescription", _texts(said))
            if self.dyes:
                for key, value in (("ChannelType", "PMT"), ("DyeName", self.dyes[k])):
                    one = ElementTree.SubElement(channel, "ChannelProperty")
                    ElementTree.SubElement(one, "Key").text = key
                    ElementTree.SubElement(one, "Value").text = value
        dimensions = ElementTree.SubElement(about, "Dimensions")
        for axis in sorted((a for a in self.axes if a in NUMBERS), key=NUMBERS.get):
            unit, um = ("s", 1.0) if axis == "t" else self.unit
            said = {
                "DimID": NUMBERS[axis],
                "NumberOfElements": lengths[axis],
                "Origin": 0.0,
                "Length": (lengths[axis] - 1) * self.um.get(axis, 0) * um,
                "Unit": unit,
                "BitInc": 0,
                "BytesInc": steps[axis],
            }
            ElementTree.SubElement(dimensions, "DimensionDescription", _texts(said))
        return image


def write_lif(path, series, *, version=2, change=lambda xml: None):
    """Write series, or several by their paths; return the path of the file. `change` changes the XML before."""
    images = series if isinstance(series, dict) else {"Series001": series}
    root = ElementTree.Element("LMSDataContainerHeader", Version=str(version))
    project, blocks = _element(root, path.name), {"MemBlock_0": b""}
    ElementTree.SubElement(project, "Memory", Size="0", MemoryBlockID="MemBlock_0")
    for name, each in images.items():
        *folders, last = name.split("/")
        place = project
        for folder in folders:
            found = [e for e in place.iterfind("Children/Element") if e.get("Name") == folder]
            place = found[0] if found else _element(_children(place), folder)
        element, block = _element(_children(place), last), f"MemBlock_{len(blocks)}"
        steps, blocks[block] = each.stored()
        element.find("Data").append(each.described(steps))
        ElementTree.SubElement(element, "Memory", Size=str(len(blocks[block])), MemoryBlockID=block)
    change(root)
    parts = [header(ElementTree.tostring(root, "unicode"))]
    for block, data in blocks.items():
        size = struct.pack("<Q" if version == 2 else "<I", len(data))
        parts += [_part(b"*" + size + b"*" + _counted(block)), data]
    path.write_bytes(b"".join(parts))
    return path


def header(xml):
    """Return what a file begins with."""
    return _part(b"*" + _counted(xml))


def _part(content):
    return struct.pack("<II", 0x70, len(content)) + content


def _counted(text):
    data = text.encode("utf-16-le")
    return struct.pack("<I", len(data) // 2) + data


def _texts(said):
    return {key: str(value) for key, value in said.items()}


def _element(place, name):
    element = ElementTree.SubElement(place, "Element", Name=name)
    ElementTree.SubElement(element, "Data")
    return element


def _children(element):
    found = element.find("Children")
    return ElementTree.SubElement(element, "Children") if found is None else found
