"""ND2 files that are damaged or malicious."""

import struct
import zlib

import numpy as np
import pytest
from contents import whole

from tilenet.errors import ImageError
from tilenet.readers import open_image

pytest.importorskip("nd2", reason="the extra nd2 is not installed")
from nd2_files import MARK, NAME_BYTES, experiment, loop, stack

ON_OPENING = {
    "pixels of 32 bits that are no floats": (lambda f: f.attributes.update(uiBpcSignificant=20), "are read"),
    "pixels of 64 bits": (lambda f: f.attributes.update(uiBpcInMemory=64), "has pixels of 64 bits"),
    "pixels of no bits": (lambda f: f.attributes.update(uiBpcInMemory=0), "has pixels of 0 bits"),
    "lossy compression": (lambda f: f.attributes.update(eCompression=1), "is compressed with loss"),
    "rows too short": (lambda f: f.attributes.update(uiWidthBytes=7), "in rows of 7 B"),
    "no rows": (lambda f: f.attributes.update(uiHeight=0), "has frames of (0, 31, 2, 1)"),
    "rows by the billion": (lambda f: f.attributes.update(uiHeight=2**31), "has frames of (2147483648, 31"),
    "rows by the million": (lambda f: f.attributes.update(uiHeight=2**24), "6 of its 6 frames are missing"),
    "large compressed frames": (lambda f: f.attributes.update(uiHeight=2**24, eCompression=0), "decodes to"),
    "frames by the billion": (lambda f: forget_loops(f, uiSequenceCount=2**31), "pixels along t"),
    "no channels": (lambda f: f.attributes.update(uiComp=0), "has frames of (20, 31, 0, 1)"),
    "other channels": (lambda f: f.metadata["sPicturePlanes"].update(uiCount=5), "it has 5 channels, and names 2"),
    "no word on channels": (lambda f: f.metadata.pop("sPicturePlanes"), "it has None channels, and names 0"),
    "a long text": (lambda f: f.metadata.update(wsObjectiveName="x" * 2**24), "LV|0! has more than"),
    "two loops over time": (lambda f: setattr(f, "experiment", twice("t", "n")), "has two loops along t"),
    "a loop of another kind": (lambda f: setattr(f, "experiment", twice("u", "z")), "kind CustomLoop"),
    "no attributes": (lambda f: f.attributes.clear(), "KeyError"),
    "all frames gone": (lambda f: f.frames.clear(), "6 of its 6 frames are missing"),
    "attributes elsewhere": (lambda f: f.moved.update({"ImageAttributesLV!": 2**50}), "is cut off at byte"),
}  # fmt: skip


def forget_loops(file, **attributes):
    file.experiment = None
    file.attributes |= attributes


def twice(*letters):
    return experiment([loop(a, 2) for a in letters])


@pytest.mark.parametrize("damage", ON_OPENING)
def test_an_nd2_that_cannot_be_read_is_refused_on_opening(tmp_path, refused, damage):
    change, says = ON_OPENING[damage]
    _, what = stack(np.float32)
    change(what)
    refused(what.write(tmp_path / "a.nd2"), says=says)


ON_READING = {
    "a frame that unpacks to gigabytes": (True, lambda data: data[:8] + bomb(), "frame 3 does not unpack to"),
    "a frame that unpacks to too little": (
        True,
        lambda data: data[:8] + zlib.compress(b""),
        "frame 3 does not unpack to",
    ),
    "a compressed frame that is cut": (True, lambda data: data[:-9], "frame 3 does not unpack to"),
    "a compressed frame that is damaged": (True, lambda data: data[:20] + bytes(20) + data[40:], "decode"),
    "a compressed frame without data": (True, lambda data: b"", "frame 3 does not unpack to"),
    "a frame that is cut": (False, lambda data: data[:-9], "frame 3 has 2479 bytes, too few"),
}


def test_metadata_that_unpack_to_gigabytes_are_refused(tmp_path, refused, monkeypatch):
    _, what = stack()
    parts = what.parts() | {"ImageMetadataSeqLV|0!": b"L" + bytes(11) + bomb()}
    monkeypatch.setattr(what, "parts", lambda: parts)
    refused(what.write(tmp_path / "a.nd2"), says="its ImageMetadataSeqLV|0! has more than 16777216 bytes")


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_that_are_packed_within_are_refused(tmp_path, refused, monkeypatch, packed):
    _, what = stack()
    what.metadata["inner"] = "?" * 40
    inner = b"L" + bytes(11) + zlib.compress(bytes(1000))
    parts, name = what.parts(), "ImageMetadataSeqLV|0!"
    whole = parts[name].replace(("?" * 40).encode("utf-16-le"), inner.ljust(80, b"\0"))
    parts[name] = b"L" + bytes(11) + zlib.compress(whole) if packed else whole
    monkeypatch.setattr(what, "parts", lambda: parts)
    refused(what.write(tmp_path / "a.nd2"), says="its ImageMetadataSeqLV|0! is packed within, too")


@pytest.mark.parametrize(("grown", "says"), [
    ("<a/>" * 1_200_001, "its ImageMetadataSeq|0! has 1200001 tags and attributes"),
    ('<!DOCTYPE a [<!ENTITY e "b">]>', "its ImageMetadataSeq|0! defines a type of its own"),
])  # fmt: skip
def test_xml_of_version_2_that_may_grow_is_refused(tmp_path, refused, monkeypatch, grown, says):
    _, what = stack(version=2)
    parts = what.parts() | {"ImageMetadataSeq|0!": grown.encode()}
    monkeypatch.setattr(what, "parts", lambda: parts)
    refused(what.write(tmp_path / "a.nd2"), says=says)


def bomb():
    packer = zlib.compressobj()
    first, again = (packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + 100 * again


@pytest.mark.parametrize("damage", ON_READING)
def test_a_damaged_frame_of_an_nd2_is_refused_on_reading(tmp_path, refused, damage):
    zipped, change, says = ON_READING[damage]
    _, what = stack(zipped=zipped)
    what.frames[3] = change(what.frames[3])
    refused(what.write(tmp_path / "a.nd2"), reading=True, says=says)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_frame_in_the_place_of_another_is_refused(tmp_path, refused, zipped):
    _, what = stack(zipped=zipped)
    path = what.write(tmp_path / "a.nd2")
    places = [path.read_bytes().index(f"ImageDataSeq|{k}!".encode()) - 16 for k in range(2)]
    for number, place in ((0, places[1]), (1, places[0] + 1)):
        what.moved = {f"ImageDataSeq|{number}!": place}
        message = refused(what.write(path), reading=True, says=f"ImageDataSeq|{number}! is not at byte {place}, where")
        assert message.startswith(str(path))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("length", [2**63, 2**50, 10])
def test_a_frame_of_a_false_length_is_refused(tmp_path, refused, zipped, length):
    _, what = stack(zipped=zipped)
    path = what.write(tmp_path / "a.nd2")
    content = bytearray(path.read_bytes())
    at = content.index(b"ImageDataSeq|2!") - 16
    assert struct.unpack_from("<II", content, at) == (MARK, NAME_BYTES)
    struct.pack_into("<Q", content, at + 8, length)
    path.write_bytes(content)
    refused(path, reading=True, says="is cut off at byte" if length > 10 else "frame 2")


@pytest.mark.parametrize("lost", [1, 8, 40, 400, 9000, 20000])
def test_an_nd2_that_is_cut_off_is_refused_on_opening(tmp_path, refused, lost):
    _, what = stack()
    content = what.write(tmp_path / "a.nd2").read_bytes()
    (tmp_path / "a.nd2").write_bytes(content[:-lost])
    refused(tmp_path / "a.nd2", says="cannot be read as an ND2")


def test_random_damage_gives_an_error_of_one_line_or_an_image(tmp_path):
    _, what = stack(zipped=True)
    content, random = what.write(tmp_path / "a.nd2").read_bytes(), np.random.default_rng(1)
    spots = np.flatnonzero(np.frombuffer(content, np.uint8))
    for _ in range(150):
        damaged = bytearray(content)
        for at in random.choice(spots, 3):
            damaged[at] = random.integers(256)
        (tmp_path / "a.nd2").write_bytes(damaged)
        try:
            with open_image(tmp_path / "a.nd2", axes=None) as image:
                if np.prod(image.shape) < 10**6:
                    whole(image)
        except ImageError as error:
            assert "\n" not in str(error)
