"""Overlays of the objects that a table lists, and of regions that a user drew: pixel by pixel."""

import csv

import numpy as np
import pytest
import shapely
import tifffile
from contents import lines_of
from drawn_regions import feature, write_regions
from pyramids import write_pyramid
from scipy import ndimage as ndi
from skimage.io import imread
from stub import Bright, Bright3D

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export.features import QUPATH
from tilenet.pictures.drawing import REGION, RIM
from tilenet.pictures.overlays import overlay

RED, BLUE = QUPATH["Positive"], QUPATH["Negative"]
CYAN = (0, 255, 255)
NOISE = np.random.default_rng(3).normal(size=(240, 320))
PIXELS = np.where(ndi.gaussian_filter(NOISE, 4) > 0.03, 200, 20).astype(np.uint8)
PIXELS[:, 160:][PIXELS[:, 160:] == 200] = 250


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Return a slide of two levels; the objects in its right half are brighter, and touch no others."""
    return write_pyramid(tmp_path_factory.mktemp("listed") / "slide.tif", PIXELS)


@pytest.fixture(scope="module")
def mask(slide):
    tilenet.segment(slide, slide.with_name("m.zarr"), model=Bright(), objects=True)
    return slide.with_name("m.zarr")


def table_of(mask, path, **how):
    path.unlink(missing_ok=True)
    tilenet.write_table(mask, path, **how)
    return path


def rewritten(table, change):
    """Write what `change` makes of the lines of a table."""
    lines = lines_of(table)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(change(lines))
    return table


def rim_of(there):
    """Return the pixels of an object that lie within two of its border."""
    return there & ~ndi.binary_erosion(there, iterations=2, border_value=1)


def test_only_listed_objects_are_drawn_and_positive_ones_in_another_colour(slide, mask, tmp_path):
    table = table_of(mask, tmp_path / "m.csv", min_area="60px", positive="0>225")
    picture, lines, labels = overlay(slide, mask, table=table), lines_of(table), tilenet.open_mask(mask)[...]
    expected = overlay(slide, mask, table=rewritten(table, lambda lines: []))
    assert (expected == expected[..., :1]).all()
    for line in lines:
        expected[rim_of(labels == int(line["object"]))] = RED if line["positive"] == "1" else CYAN
    assert np.array_equal(picture, expected)
    assert {line["positive"] for line in lines} == {"0", "1"} and 10 < len(lines) < labels.max() - 3


@pytest.mark.parametrize("more", [{}, {"fill": True}, {"max_side": 100}])
@pytest.mark.parametrize("how", [{}, {"level": 1}, {"roi": "17:231,30:300"}])
def test_the_table_of_all_objects_draws_what_none_draws_and_no_lines_draw_nothing(slide, tmp_path, how, more):
    out = tmp_path / "m.zarr"
    tilenet.segment(slide, out, model=Bright(), objects=True, **how)
    table = table_of(out, tmp_path / "m.csv")
    assert np.array_equal(overlay(slide, out, table=table, **more), overlay(slide, out, **more))
    picture = overlay(slide, out, table=rewritten(table, lambda lines: []), **more)
    assert (picture == picture[..., :1]).all() and (picture != overlay(slide, out, **more)).any()


def test_pixels_of_another_size_and_a_tiff_of_the_mask_are_looked_up_too(tmp_path):
    pixels, size = PIXELS[:120, :150], {"resolution": (20000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", pixels, **size)
    for name, how in (("a", {"mpp": 0.75}), ("b", {"mpp": 0.3, "roi": "9:95,31:200"})):
        out = tmp_path / f"{name}.zarr"
        tilenet.segment(tmp_path / "s.tif", out, model=Bright(), objects=True, **how)
        table = table_of(out, tmp_path / f"{name}.csv")
        tilenet.write_tiff(out, tmp_path / f"{name}.ome.tif")
        for place in (out, tmp_path / f"{name}.ome.tif"):
            with_table = overlay(tmp_path / "s.tif", place, table=table)
            assert np.array_equal(with_table, overlay(tmp_path / "s.tif", place))


@pytest.mark.parametrize("network", [Bright(), Bright3D()])
def test_objects_of_stacks_and_volumes_are_those_of_the_table(tmp_path, network):
    stack = np.stack([np.roll(PIXELS[:90, :110], k, axis=1) for k in (0, 3, 6, 9)])
    tilenet.segment(stack, tmp_path / "m.zarr", axes="zyx", model=network, objects=True, roi="1:4,:,:")
    table = table_of(tmp_path / "m.zarr", tmp_path / "m.csv")
    for plane in (1, 3):
        whole = overlay(stack, tmp_path / "m.zarr", plane=plane)
        assert np.array_equal(overlay(stack, tmp_path / "m.zarr", plane=plane, table=table), whole)
    labels = tilenet.open_mask(tmp_path / "m.zarr")[...]
    kept = int(labels[2].max())
    rewritten(table, lambda lines: [line for line in lines if int(line["object"]) == kept])
    picture = overlay(stack, tmp_path / "m.zarr", plane=3, table=table)
    assert np.array_equal((picture != picture[..., :1]).any(axis=-1), rim_of(labels[2] == kept))


def test_the_table_of_another_mask_is_refused(slide, mask, tmp_path):
    other = tmp_path / "other.zarr"
    tilenet.segment(slide, other, model=Bright(bright=1000), objects=True)
    table = table_of(other, tmp_path / "m.csv")
    with pytest.raises(OutputMismatch, match=r"m\.csv: its object \d+ is not that of .*m\.zarr\. Give the table of th"):
        overlay(slide, mask, table=table)
    assert overlay(slide, other, table=table).any()
    n = tilenet.open_mask(mask).info["objects"]
    rewritten(table_of(mask, table), lambda lines: [lines[0] | {"object": str(n + 1)}])
    with pytest.raises(OutputMismatch, match=rf"lists object {n + 1}, and .*m\.zarr has {n}\. Give the table of this"):
        overlay(slide, mask, table=table)
    for wrong in ({"left": "9999"}, {"top": "far"}, {"front": "3"}, {"id": "x"}, {"right": "-5"}):
        rewritten(table_of(mask, table), lambda lines, wrong=wrong: [lines[0] | wrong])
        if "front" in wrong:  # an image of one plane has no other
            assert overlay(slide, mask, table=table).any()
            continue
        with pytest.raises(OutputMismatch, match="is not that of"):
            overlay(slide, mask, table=table)


def test_what_is_no_table_of_objects_is_refused_in_one_line(slide, mask, tmp_path, tilenet_command):
    plain, table, out = tmp_path / "plain.zarr", tmp_path / "t.csv", tmp_path / "o.png"
    tilenet.segment(slide, plain, model=Bright())

    def refusal(of=mask):
        code, printed, err = tilenet_command("overlay", slide, of, "--out", out, "--table", table)
        assert (code, printed, err.count("\n"), out.exists()) == (2, "", 1, False)
        return err

    assert "t.csv: cannot be read (No such file or directory). Check the path" in refusal()
    table.write_text("slide,class,count\n")
    assert "t.csv: has no column object in its first line, so it is no table of objects" in refusal()
    table_of(plain, table)
    assert "t.csv: line 2 is not that of an object, but " in refusal()
    assert "plain.zarr: is a plain mask, and a table chooses objects. Segment again with --objects" in refusal(plain)
    rewritten(table_of(mask, table, positive="0>225"), lambda lines: [*lines[:3], lines[3] | {"positive": "yes"}])
    assert "t.csv: line 5 is not that of an object, but " in refusal()
    whole = table_of(mask, table).read_text()
    for cut in (whole[:-30], whole + "\x00\n", whole + "1,2\n"):
        table.write_text(cut)
        assert f"t.csv: line {whole.count(chr(10)) + (cut > whole)} is not that of" in refusal()


def test_the_overview_of_a_batch_tells_positive_ones_apart_by_the_rule_of_its_table(slide, tmp_path):
    def drawn(**how):
        (result,) = tilenet.batch(slide, tmp_path / "masks", model=Bright(), objects=True, overview=True, **how)
        assert result.status in ("done", "skipped")
        return (tmp_path / "masks" / "slide.overview.png").read_bytes()

    place, table = tmp_path / "masks" / "slide.zarr", tmp_path / "masks" / "slide.csv"
    plain, picture = drawn(), tmp_path / "masks" / "slide.overview.png"
    for rule in ("0>225", "0>100"):
        told = drawn(table=True, positive=rule)
        assert told != plain and np.array_equal(imread(picture), overlay(slide, place, table=table))
        written = picture.stat().st_mtime_ns
        assert drawn(table=True, positive=rule) == told and picture.stat().st_mtime_ns == written
    assert (imread(picture) == RED).all(axis=-1).any() and not (imread(picture) == CYAN).all(axis=-1).any()


def test_the_overview_of_a_batch_shows_what_is_counted_and_is_drawn_again_under_another_rule(slide, tmp_path):
    place, table, picture = (tmp_path / "masks" / f"slide.{end}" for end in ("zarr", "csv", "overview.png"))

    def drawn(**how):
        (result,) = tilenet.batch(
            slide, place.parent, model=Bright(), objects=True, overview=True, table=True, threads=1, **how
        )
        return imread(picture), result.counts["class 1"]

    def shown():
        """Return the numbers of the objects that a picture outlines above the scale bar."""
        labels, pixels = tilenet.open_mask(place)[:200], imread(picture)[:200]
        return set(np.unique(labels[(pixels != pixels[..., :1]).any(axis=-1)]).tolist())

    whole, everything = drawn()
    few, count = drawn(min_area="60px", positive="0>225")
    listed = {int(line["object"]) for line in lines_of(table) if int(line["area_px"]) >= 60}
    in_view = set(np.unique(tilenet.open_mask(place)[:200]).tolist()) - {0}
    assert 10 < count == len(listed) < everything and shown() == listed & in_view
    assert (few == RED).all(axis=-1).any() and (few == CYAN).all(axis=-1).any()
    written = picture.stat().st_mtime_ns
    assert np.array_equal(drawn(min_area="60px", positive="0>225")[0], few)
    assert picture.stat().st_mtime_ns == written
    uncoloured, _ = drawn(min_area="60px")  # the table still says what is positive
    assert not (uncoloured == RED).all(axis=-1).any() and shown() == listed & in_view
    assert np.array_equal(drawn()[0], whole) and shown() == in_view


def test_the_overview_of_a_mask_of_classes_shows_all_of_it_whatever_the_least_area(slide, tmp_path):
    (result,) = tilenet.batch(slide, tmp_path, model=Bright(), overview=True, table=True, min_area="60px")
    assert result.status == "done"
    assert np.array_equal(imread(tmp_path / "slide.overview.png"), overlay(slide, tmp_path / "slide.zarr"))


def test_a_file_where_a_folder_would_be_is_named(slide, mask, tmp_path, tilenet_command):
    (tmp_path / "f").write_text("mine")
    for args in (("export", mask, "--csv"), ("export", mask, "--geojson"), ("overlay", slide, mask, "--out")):
        out = tmp_path / "f" / ("x.png" if args[0] == "overlay" else f"x.{args[-1].strip('-')}")
        code, printed, err = tilenet_command(*args, out)
        assert (code, printed) == (
            4,
            "",
        ) and f"{tmp_path / 'f'}: is a file, and {out} would be inside it. Choose" in err


def test_a_table_with_a_mark_in_a_name_without_quotes_is_refused_for_it(slide, mask, tmp_path):
    table = table_of(mask, tmp_path / "m.csv")
    table.write_text(table.read_text().replace(",", ";").replace(";class 1;", ";class; 1;"))
    with pytest.raises(
        SettingsError, match=r"m\.csv: line 2 has more values than columns\. Put values with semicolons in"
    ):
        overlay(slide, mask, table=table)


def saved_as(table, how):
    """Save a table as a spreadsheet does."""
    lines = lines_of(table)
    if how == "few":
        lines = [{"object": line["object"], "positive": line["positive"]} for line in lines]
    mark, quoting = {"semicolons": (";", 0), "tabs": ("\t", 0), "quotes": (",", csv.QUOTE_ALL)}.get(how, (",", 0))
    encoding = "utf-8-sig" if how in ("mark", "semicolons") else "utf-8"
    with table.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=mark, quoting=quoting)  # lines end with \r\n
        writer.writerows([lines[0], *(line.values() for line in lines), [""] * len(lines[0])])


@pytest.mark.parametrize("how", ["mark", "semicolons", "tabs", "quotes", "few"])
def test_a_table_that_a_spreadsheet_saved_draws_what_it_drew_before(slide, mask, tmp_path, caplog, how):
    table = table_of(mask, tmp_path / "m.csv", min_area="60px", positive="0>225")
    before, written = overlay(slide, mask, table=table), table.read_bytes()
    saved_as(table, how)
    assert table.read_bytes() != written and np.array_equal(overlay(slide, mask, table=table), before)
    expected = [f"{table}: has no column id, so whether it is a table of {mask} was not checked"]
    assert caplog.messages == (expected if how == "few" else [])


def test_a_table_with_decimal_commas_is_refused_for_them_where_they_matter(slide, mask, tmp_path):
    def with_commas(*columns):
        table = table_of(mask, tmp_path / "m.csv")
        rewritten(table, lambda lines: [line | {c: f"{line[c].split('.')[0]},0" for c in columns} for line in lines])
        saved_as(table, "semicolons")
        return overlay(slide, mask, table=table)

    assert np.array_equal(with_commas("x", "y"), overlay(slide, mask))
    with pytest.raises(
        SettingsError, match=r"m\.csv: has numbers with decimal commas, such as left \d+,0\. Save it with"
    ):
        with_commas("x", "left")


TRIANGLE = [[40.5, 30], [200, 50.25], [90, 210], [40.5, 30]]
HOLE = [[80, 80], [120, 80], [100, 120], [80, 80]]


def drawn_in(path, *features):
    return write_regions(path, [feature(rings, name=name) for name, *rings in features])


@pytest.mark.parametrize("how", [{}, {"level": 1}, {"roi": "20:231,31:300"}])
@pytest.mark.parametrize("more", [{}, {"max_side": 150}])
def test_outlines_of_regions_lie_where_they_were_drawn(slide, tmp_path, how, more):
    out = tmp_path / "m.zarr"
    tilenet.segment(slide, out, model=Bright(), **how)
    within = drawn_in(tmp_path / "r.geojson", ("A", TRIANGLE, HOLE))
    without, picture = overlay(slide, out, **more), overlay(slide, out, within=within, **more)
    mask, step = tilenet.open_mask(out), 2 if "level" in how else 1
    scale = np.array(mask.shape) / picture.shape[:2]
    lines = shapely.boundary(shapely.Polygon(TRIANGLE, [HOLE]))
    y, x = np.indices(picture.shape[:2]) + 0.5
    points = shapely.points((x * scale[1] + mask.origin[1]) * step, (y * scale[0] + mask.origin[0]) * step)
    far = shapely.distance(lines, points) / (scale.mean() * step)  # in pixels of the picture
    core, changed = (picture == REGION).all(axis=-1), (picture != without).any(axis=-1)
    beside_the_name = shapely.distance(shapely.Point(40.5, 30), points) / (scale.mean() * step) > 30
    # Pillow rounds the corners of what it fills to pixels.
    assert core[beside_the_name & (far < 0.5)].mean() > 0.95 and far[core].max() < 3
    around = changed & beside_the_name & ~core
    assert around.any() and far[around].max() < 4 and (picture[around] == RIM).all()


def test_the_line_of_a_region_has_a_black_rim_on_both_sides_in_every_direction(slide, mask, tmp_path):
    turns = np.linspace(0, 2 * np.pi, 200)
    ellipse = np.transpose([160 + np.cos(turns) * 120, 135 + np.sin(turns) * 70]).tolist()
    ellipse[-1] = ellipse[0]
    picture = overlay(slide, mask, within=drawn_in(tmp_path / "r.geojson", ("", ellipse), ("", TRIANGLE)))
    line, rim = ((picture == colour).all(axis=-1) for colour in (REGION, RIM))
    beside = ndi.binary_dilation(line, np.ones((3, 3))) & ~line
    below_the_names = np.arange(240) > 75
    assert line[below_the_names].sum() > 500 and rim[below_the_names][beside[below_the_names]].all()


@pytest.mark.parametrize(("side", "colour"), [(30, CYAN), (70, BLUE)])
def test_negative_objects_are_cyan_where_most_of_the_picture_is_dark(tmp_path, side, colour):
    image, out = tmp_path / "s.tif", tmp_path / "m.zarr"
    pixels = np.full((80, 90), 20, np.uint8)
    pixels[5 : 5 + side, 5 : 5 + side] = 200
    tifffile.imwrite(image, pixels)
    tilenet.segment(image, out, model=Bright(), objects=True)
    picture = overlay(image, out, table=table_of(out, tmp_path / "m.csv", positive="0>220"))
    expected = rim_of(tilenet.open_mask(out)[...] == 1)
    assert expected.any() and np.array_equal((picture == colour).all(axis=-1), expected)


def test_names_are_written_at_the_tops_of_regions_and_stay_in_the_picture(slide, mask, tmp_path):
    within = drawn_in(tmp_path / "r.geojson", ("Invasive front", [[x - 30, y] for x, y in TRIANGLE]))
    changed = overlay(slide, mask, within=within) != overlay(slide, mask)
    y, x = np.nonzero(changed.any(axis=-1)[:25, :])
    assert x.min() == 0 and x.max() > 80 and y.max() - y.min() > 12


def test_names_are_written_in_ascii_with_a_mark_for_other_letters_and_as_numbers_without_any(
    slide, mask, tmp_path, caplog
):
    triangles = (TRIANGLE, [[x + 60, y] for x, y in TRIANGLE])
    drawn = [
        overlay(slide, mask, within=drawn_in(tmp_path / "r.geojson", *zip(names, triangles, strict=True)))
        for names in (("T\u00fcm\u03b1?", "\u764c"), ("Tum??", "2"), ("Tom??", "2"))
    ]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    (said,) = caplog.messages
    assert said.endswith("its place in the file: Tum?? for T\u00fcm\u03b1?, 2 for \u764c")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Stra\u00dfe \u0141\u00f3d\u017a", "Strasse Lodz"),
        ("S\u00f8ren, \u0110or\u0111e, \u00deor", "Soren, Dorde, Thor"),
        ("\u00e6ther \u2013 \u0153uvre", "aether - oeuvre"),
        ("O\u2019Brien \u201cq\u201d", 'O\'Brien "q"'),
        ("++", "++"),
        ("\u00b15 \u00b5m\u00b2 10\u00d7", "+-5 um2 10x"),
    ],
)
def test_latin_letters_and_signs_of_names_are_written_without_a_word(slide, mask, tmp_path, caplog, name, written):
    pictures = [
        overlay(slide, mask, within=drawn_in(tmp_path / "r.geojson", (text, TRIANGLE)), max_side=160)
        for text in (name, written)
    ]
    assert np.array_equal(*pictures) and not caplog.messages


def test_the_outline_of_a_region_on_the_border_is_drawn_and_none_in_the_part_is_said(slide, mask, tmp_path, caplog):
    border = [[0, 0], [320, 0], [320, 240], [0, 240], [0, 0]]
    within = drawn_in(tmp_path / "r.geojson", ("All", border))
    picture = overlay(slide, mask, within=within)
    edges = np.concatenate([picture[100:, 0], picture[100:, -1], picture[0, 200:], picture[-1]])
    assert (edges == REGION).all(axis=-1).mean() > 0.9 and not caplog.messages
    overlay(slide, mask, within=within, roi="20:90,30:100")
    (said,) = caplog.messages
    assert said == f"{within}: no outline of its 1 region lies in the part that is drawn"
    far = drawn_in(tmp_path / "r.geojson", ("Far", [[900, 900], [950, 900], [900, 950], [900, 900]]))
    with pytest.raises(SettingsError, match="all of its regions lie outside of what was segmented"):
        overlay(slide, mask, within=far)


def test_nuclei_of_a_real_slide_are_told_apart_as_their_table_does(shared_data, tmp_path, tilenet_command):
    image, out, table = shared_data("slides/OS-2-vsi_Ki67.ome.tif"), tmp_path / "k.zarr", tmp_path / "k.csv"
    assert tilenet_command("segment", image, "--out", out, "--objects", "--roi", "300:600,200:500", "-q")[0] == 0
    rule = ("--positive", "dab>0.2", "--min-area", "20um2")
    assert tilenet_command("export", out, "--csv", table, *rule)[0] == 0
    command = ("overlay", image, out, "--table", table, "--out", tmp_path / "k.png")
    assert tilenet_command(*command) == (0, f"{tmp_path / 'k.png'}: 300 x 300 px\n", "")
    picture, labels = imread(tmp_path / "k.png"), tilenet.open_mask(out)[...]
    above_the_bar = np.arange(300)[:, None] < 260
    for colour, positive in ((RED, "1"), (BLUE, "0")):
        listed = [int(line["object"]) for line in lines_of(table) if line["positive"] == positive]
        seen = np.unique(labels[(picture == colour).all(axis=-1)])
        expected = [n for n in listed if (rim_of(labels == n) & above_the_bar).any()]
        assert set(expected) <= set(seen.tolist()) <= set(listed) and len(listed) > 3
    assert len(lines_of(table)) < labels.max()
