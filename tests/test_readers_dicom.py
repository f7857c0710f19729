"""DICOM: a folder of files is one slide with its levels, and none of them is skipped."""

import shutil

import numpy as np
import pytest
from contents import whole

from tilenet.errors import ImageError
from tilenet.readers import open_image
from tilenet.readers.cache import PieceCache


@pytest.fixture(scope="session")
def dicom_pyramid(shared_data, tmp_path_factory):
    """Return a folder of one slide in four levels, written by wsidicom from the real one."""
    wsidicom = pytest.importorskip("wsidicom")
    folder = tmp_path_factory.mktemp("dicom")
    with wsidicom.WsiDicom.open(shared_data("slides/camelyon_overview_jpeg2000.dcm")) as slide:
        slide.save(folder, add_missing_levels=True)
    return folder


def test_a_folder_of_dicom_files_is_one_slide_with_its_levels(dicom_pyramid, shared_data):
    with open_image(dicom_pyramid) as image:
        assert image.reader == "DICOM (wsidicom)"
        assert [level.shape for level in image.levels] == [(812, 1696, 3), (406, 848, 3), (203, 424, 3), (102, 212, 3)]
        assert image.at_level(1).pixel_size == pytest.approx((57.936, 57.938))
        fine, coarse = whole(image), whole(image.at_level(1))
        with open_image(shared_data("slides/camelyon_overview_jpeg2000.dcm")) as origin:
            np.testing.assert_array_equal(fine, whole(origin))
        halved = fine.reshape(3, 406, 2, 848, 2).mean(axis=(2, 4))
        assert np.corrcoef(halved.ravel(), coarse.ravel())[0, 1] > 0.99


def test_the_tiles_that_are_kept_are_in_the_memory_that_is_planned(dicom_pyramid, monkeypatch):
    with open_image(dicom_pyramid) as image:
        assert image.kept_bytes == image.with_channels([0]).kept_bytes == 812 * 1696 * 3
    monkeypatch.setattr(PieceCache.__init__, "__defaults__", (2**19,))
    with open_image(dicom_pyramid) as image:
        whole(image)
        decoded, encoded = (getattr(image._slide._source, f"_{kind}_frame_cache") for kind in ("decoded", "encoded"))
        assert 0 < image._cache.n_bytes <= 2**19
        assert not any(cache._lru_cache._cache for cache in (decoded, encoded))  # those of wsidicom


def test_dicom_files_of_two_series_are_refused_not_skipped(dicom_pyramid, shared_data, tmp_path):
    for file in dicom_pyramid.iterdir():
        shutil.copy(file, tmp_path)
    pydicom = pytest.importorskip("pydicom")
    other = pydicom.dcmread(shared_data("slides/camelyon_overview_jpeg2000.dcm"))
    other.SeriesInstanceUID = pydicom.uid.generate_uid()
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(ImageError, match="holds files of 2 series"):
        open_image(tmp_path)


@pytest.mark.parametrize("fault", ["unsupported", "cut short"])
def test_a_level_that_wsidicom_skips_is_refused_and_nothing_else_is_logged(dicom_pyramid, tmp_path, caplog, fault):
    pydicom = pytest.importorskip("pydicom")
    for file in dicom_pyramid.iterdir():
        shutil.copy(file, tmp_path)
    finest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    if fault == "unsupported":
        slide = pydicom.dcmread(finest)
        slide.PixelRepresentation = 1
        slide.save_as(finest)
    else:
        finest.write_bytes(finest.read_bytes()[:3000])
    with pytest.raises(ImageError, match=f"{finest.name}: is a level of the slide that wsidicom cannot read"):
        open_image(tmp_path)
    assert not caplog.records


def test_a_folder_of_dicom_and_other_files_is_refused(shared_data):
    with pytest.raises(ImageError, match="slides: holds CMU-1-Small-Region.svs beside DICOM files"):
        open_image(shared_data("slides"))


def test_tiles_that_a_dicom_lacks_are_refused_until_they_may_be_filled(shared_data, monkeypatch):
    """No sparse file is at hand: wsidicom is made to say that one tile of a full one is not there."""
    data = pytest.importorskip("wsidicom.instance.wsidicom_image_data")
    from tilenet.readers.dicom import DicomImage

    path = shared_data("slides/camelyon_overview_jpeg2000.dcm")
    with open_image(path) as image:
        expected = whole(image)
    monkeypatch.setattr(DicomImage, "_tiles", lambda self, group: (range(7), range(4)))
    monkeypatch.setattr(data.WsiDicomImageData, "is_sparse", lambda self, tile, z, path: (tile.x, tile.y) == (2, 1))
    with pytest.raises(ImageError, match="1 of its tiles is missing.*--missing fill"):
        open_image(path)
    with open_image(path, missing="fill") as image:
        expected[:, 256:512, 512:768] = 0
        np.testing.assert_array_equal(whole(image), expected)
