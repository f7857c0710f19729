"""LIF files that are damaged or malicious, and files of Leica's that are no LIF."""

import struct

import numpy as np
import pytest
from contents import open_files, whole

from tilenet.errors import ImageError
from tilenet.readers import open_image

pytest.importorskip("liffile", reason="the extra lif is not installed")
from lif_files import Series, header, random_pixels, write_lif

SHAPE = (2, 3, 40, 53)  # z, c, y, x
PIXELS = random_pixels(SHAPE, "u2")
X, Y, Z = 1, 2, 3


def put(place, **said):
    """Return a change of the attributes of some elements."""

    def change(root):
        found = root.findall(f".//{place}")
        assert found
        for element in found:
            element.attrib.update({key: str(value) for key, value in said.items()})

    return change


def axis(number, **said):
    return put(f"DimensionDescription[@DimID='{number}']", **said)


def channel(number, **said):
    return put(f"ChannelDescription[{number}]", **said)


def without(place, parent=".."):
    def change(root):
        for element in root.findall(f".//{place}/{parent}"):
            for child in element.findall(place.split("/")[-1]):
                element.remove(child)

    return change


DAMAGES = {
    "rows that overlap": (axis(Y, BytesInc=104), "entries of its axis y lie 104 bytes apart, and have 106"),
    "planes that are one": (axis(Z, BytesInc=0), "entries of its axis z lie 0 bytes apart"),
    "channels that are one": (put("ChannelDescription", BytesInc=0), "entries of its axis s lie 0 bytes apart"),
    "an axis backwards": (axis(Y, BytesInc=-106), "entries of its axis y lie -106 bytes apart"),
    "a channel before the first": (channel(1, BytesInc=-2), "channels that begin at the bytes [-2"),
    "channels at odd places": (channel(1, BytesInc=1), ""),
    "a plane too many": (axis(Z, NumberOfElements=3), "lacks pixels: it has 25440 of 38160 bytes"),
    "absurdly many planes": (axis(Z, NumberOfElements=2**62), "lacks pixels: it has 25440 of"),
    "absurdly many rows": (axis(Y, NumberOfElements=2**62), "entries of its axis c lie 4240 bytes apart"),
    "absurdly many pixels": (axis(X, NumberOfElements=10**30), "entries of its axis"),
    "more digits than a number has": (axis(X, NumberOfElements="9" * 5000), ""),
    "no rows": (axis(Y, NumberOfElements=0), "holds no pixels"),
    "fewer rows than none": (axis(Y, NumberOfElements=-3), "holds no pixels"),
    "rows of text": (axis(Y, NumberOfElements="many"), ""),
    "two axes of rows": (axis(Z, DimID=Y), "names an axis twice"),
    "bits": (channel(1, BitInc=4), "begin within a byte"),
    "channels of two types": (channel(1, Resolution=8), "has channels of uint16 and uint8"),
    "an unknown type": (put("ChannelDescription", DataType=7), ""),
    "more bits than there are": (put("ChannelDescription", Resolution=65), ""),
    "no bits": (put("ChannelDescription", Resolution=0), ""),
    "floats of 8 bits": (put("ChannelDescription", Resolution=8, DataType=1), "float8"),
    "no channels": (without("ChannelDescription"), "without channels"),
    "no axes": (without("DimensionDescription"), "does not name both y and x"),
    "no description": (without("ImageDescription"), "without a description"),
    "no image": (without("Image"), "holds no image"),
    "no block": (put("Memory", MemoryBlockID="MemBlock_9"), "lacks pixels: it has 0 of 25440 bytes"),
    "the block of the project": (put("Memory", MemoryBlockID="MemBlock_0"), "it has 0 of 25440 bytes"),
    "no word on blocks": (without("Memory"), "it has 0 of 25440 bytes"),
    "an unknown version": (lambda root: root.set("Version", "3"), "version"),
    "no version": (lambda root: root.attrib.pop("Version"), "Version"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_lif_is_refused_on_opening(tmp_path, refused, name):
    change, says = DAMAGES[name]
    refused(write_lif(tmp_path / "a.lif", Series(PIXELS, "zcyx"), change=change), says=says)


@pytest.mark.parametrize("end", [13, 100, -25600, -25500, -25441, -25440, -25439, -1000, -1])
def test_a_lif_that_is_cut_off_is_refused_on_opening(tmp_path, refused, end):
    behind = -25530 < end < 0
    says = f"lacks pixels: it has {max(0, 25440 + end)} of 25440 bytes" if behind else "is cut off at byte"
    path = write_lif(tmp_path / "a.lif", Series(PIXELS, "zcyx"))
    path.write_bytes(path.read_bytes()[:end])
    refused(path, says=says)


def test_of_a_lif_that_is_cut_off_images_that_are_whole_are_read(tmp_path):
    path = write_lif(tmp_path / "a.lif", {name: Series(PIXELS, "zcyx") for name in ("one", "two")})
    path.write_bytes(path.read_bytes()[:-100])
    with open_image(path / "one") as image:
        np.testing.assert_array_equal(whole(image), PIXELS.swapaxes(0, 1))
    with pytest.raises(ImageError, match="two: lacks pixels: it has 25340 of 25440 bytes. Get the whole file"):
        open_image(path / "two")


def test_a_lif_that_is_cut_off_while_it_is_open_is_never_read_as_0(tmp_path):
    path = write_lif(tmp_path / "a.lif", Series(PIXELS, "zcyx"))
    with open_image(path) as image:
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ImageError, match="a.lif: is cut off at byte .*Get it again"):
            whole(image)


def test_an_absurd_length_of_the_xml_is_refused(tmp_path, refused):
    path = tmp_path / "a.lif"
    for n in (2**32 - 1, 2**26 + 1):
        path.write_bytes(struct.pack("<IIBI", 0x70, (2 * n + 5) % 2**32, 0x2A, n))
        with path.open("r+b") as file:
            file.truncate(2**34)
        refused(path, says=f"its XML has {2 * n} bytes")


def test_entities_that_grow_without_end_are_refused(tmp_path, refused):
    grown = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))
    path = tmp_path / "a.lif"
    xml = f'<!DOCTYPE a [<!ENTITY a0 "aaaaaaaaaa">{grown}]><LMSDataContainerHeader Version="2">&a11;'
    path.write_bytes(header(f"{xml}</LMSDataContainerHeader>"))
    refused(path)


def test_xml_of_millions_of_elements_is_refused(tmp_path, refused):
    xml = f'<LMSDataContainerHeader Version="2">{"<a/>" * 3_000_000}</LMSDataContainerHeader>'
    (tmp_path / "a.lif").write_bytes(header(xml))
    refused(tmp_path / "a.lif", says="its XML has 3000003 tags and attributes, over 3000000. If the file is")


def test_entities_are_refused_however_little_they_grow(tmp_path, refused):
    path = write_lif(tmp_path / "a.lif", Series(PIXELS, "zcyx"))
    content = path.read_bytes()
    (n_characters,) = struct.unpack_from("<I", content, 9)
    end = 13 + 2 * n_characters
    for declared in ("", '<!DOCTYPE a [<!ENTITY e "bbbb">]>'):
        open_image(path).close()
        path.write_bytes(header(declared + content[13:end].decode("utf-16-le")) + content[end:])
    refused(path, says="its XML defines a type of its own")


def test_elements_in_elements_without_end_are_refused(tmp_path, refused):
    path, n = tmp_path / "a.lif", 100_000
    nested = "<Element><Children>" * n + "</Children></Element>" * n
    path.write_bytes(header(f'<LMSDataContainerHeader Version="2">{nested}</LMSDataContainerHeader>'))
    refused(path)


def test_no_other_file_is_opened_whatever_the_xml_names(tmp_path, monkeypatch):
    write_lif(tmp_path / "other.lif", Series(PIXELS, "zcyx"))

    def refer(root):
        children = root.find("Element/Children")
        children.append(children.makeelement("Reference", {"File": "other.lif"}))
        children.append(children.makeelement("Reference", {"File": "a.lif"}))

    path = write_lif(tmp_path / "a.lif", Series(PIXELS, "zcyx"), change=refer)
    before = open_files()
    with open_image(path) as image:
        assert open_files() == sorted([*before, str(path)])
        np.testing.assert_array_equal(whole(image), PIXELS.swapaxes(0, 1))


def test_a_file_that_is_refused_is_closed(tmp_path):
    before = open_files()
    with pytest.raises(ImageError):
        open_image(write_lif(tmp_path / "a.lif", Series(PIXELS, "zcyx"), change=axis(Y, BytesInc=0)))
    assert open_files() == before


def test_parts_of_a_project_are_refused_with_a_way_out(tmp_path, refused):
    xml = '<LMSDataContainerHeader Version="2"><Element Name="a"><Data/></Element></LMSDataContainerHeader>'
    memory = b"*" + struct.pack("<I", 1) + b"*" + struct.pack("<I", 1) + b"*" + struct.pack("<Q", 4) + bytes(4)
    (tmp_path / "a.lof").write_bytes(header("LMS_Object_File") + memory + header(xml))
    refused(tmp_path / "a.lof", says="is a part of a project (LOF). Save that as LIF, in LAS X")
    (tmp_path / "a.lifext").write_bytes(header('<LMSDataContainerEnhancedHeader Version="2"/>'))
    refused(tmp_path / "a.lifext", says="is a part of a project (LIFEXT)")
    for name in ("a.xlef", "a.XLIF", "a.xlcf"):
        (tmp_path / name).write_text(f'<?xml version="1.0"?>{xml}')
        refused(tmp_path / name, says="whose pixels, in other files, are not read. Save the project as LIF")
