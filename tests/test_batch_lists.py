"""Lists that name the images of a batch, with what is special to each."""

import csv

import pytest

import tilenet
from tilenet.batches.image_list import read_image_list
from tilenet.errors import SettingsError
from tilenet.jobs.options import Options


def test_a_list_says_names_and_options(tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text('image,name,channels,tile,scaling\nx.tif,first,"0,2",256,\n/data/y.tif,,,,percentile:1,\n')
    with pytest.raises(SettingsError, match="line 3 has no image, or more values"):
        read_image_list([listed], model="nuclei", options=Options())
    listed.write_text('image,name,channels,tile,scaling\nx.tif,first,"0,2",256,\n/data/y.tif,,,,"percentile:1,99"\n')
    one, two = read_image_list([listed], model="nuclei", options=Options(tile=128, level=1))
    assert (one.name, one.image) == ("first", str(tmp_path / "x.tif"))
    assert (one.options.channels, one.options.tile, one.options.level) == ((0, 2), 256, 1)
    assert (two.name, two.image, two.options.tile) == ("y", "/data/y.tif", 128)
    assert two.options.scaling == {"method": "percentile", "low": 1.0, "high": 99.0}
    listed.write_text('image,tile\nvolume.tif,"32,256,256"\n')
    (volume,) = read_image_list([listed], model="nuclei", options=Options())
    assert volume.options.tile == (32, 256, 256)


def test_a_model_in_a_list_is_a_file_relative_to_the_list_or_a_packaged_one(tmp_path, monkeypatch):
    for folder in ("lists", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for file in ("lists/small.pt", "lists/nuclei", "here/small.pt", "here/other.pt"):
        (tmp_path / file).touch()
    listed = tmp_path / "lists" / "list.csv"
    listed.write_text("image,model\na.tif,small.pt\nb.tif,nuclei\nc.tif,other.pt\nd.tif,\n")
    models = [order.model for order in read_image_list([listed], model="plain.pt", options=Options())]
    assert models == [str(tmp_path / "lists" / "small.pt"), "nuclei", "other.pt", "plain.pt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\na\n", "has no column image"),
        ("image,colour\na.tif,red\n", "column 'colour' is none of image, name"),
        ("image,tile\na.tif,big\n", "line 2: tile 'big' is not integers"),
        ("image,name\na.tif,../b\n", "is not a valid, visible file name"),
        ("image\n", r"list\.csv: names no image"),
        ("image,level,level\na.tif,1,0\n", "has two columns level"),
        ("image,missing\na.tif,skip\n", r"list\.csv: line 2: missing 'skip': give one of error, fill"),
        ("image,level\na.tif,0\nb.tif,-1\n", r"list\.csv: line 3: level -1: give a whole number"),
        ("image;mpp\na.tif;0,5\n", r"list\.csv: line 2: mpp cannot be '0,5'\. Write 0\.5, with a point"),
        ("image;level\na.tif;0,5\n", r"list\.csv: line 2: level cannot be '0,5'\. See tilenet segment --help"),
        ("image,mpp\na.tif,nan\n", r"list\.csv: line 2: mpp nan: give micrometres"),
        ('image,name\n"a.tif,x\nb.tif,y\n', r"list\.csv: the quote before 'a\.tif,x' is not closed in its line"),
        ('image,name\na.tif,"x\nb.tif,y"\n', r"list\.csv: the quote before 'x' is not closed in its line"),
        (
            'image,name\n"a.tif,x\n' + "b.tif,y\n" * 20_000,
            r"list\.csv: line \d+: field larger .*Check that every quote",
        ),
        (
            '"image,name\n' + "b.tif,y\n" * 20_000,
            r"list\.csv: line \d+: field larger .*Check that every quote is closed",
        ),
        ("image,name\n,\n , ,\n,b\n", r"list\.csv: line 4 has no image"),
        ("image,name\n,,b\n", r"list\.csv: line 2 has no image"),
    ],
)
def test_a_list_that_says_what_cannot_be_is_refused_by_line(tmp_path, text, said):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SettingsError, match=said):
        tilenet.batch(tmp_path / "list.csv", tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_a_list_in_another_encoding_is_refused_with_how_to_save_it(tmp_path):
    (tmp_path / "list.csv").write_bytes("image,name\na.tif,Fälle\n".encode("cp1252"))
    with pytest.raises(SettingsError, match=r"list\.csv: is not text in UTF-8\. Save it so \(in Excel: CSV UTF-8\)$"):
        tilenet.batch(tmp_path / "list.csv", tmp_path / "masks")


def test_a_plain_list_has_a_path_a_line(tmp_path):
    (tmp_path / "list.txt").write_text("# three\na.tif\n\nb.ome.tif\n./#1.svs\n")
    items = read_image_list([tmp_path / "list.txt"], model="nuclei", options=Options())
    assert [item.name for item in items] == ["a", "b", "#1"]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_lists_are_read_as_spreadsheets_write_them(tmp_path, mark):
    rows = [
        ["Image", "NAME", "channels", "positive"],
        ["a, b.tif", "first", "0,1", "Ki-67>400"],
        ["b;c.tif", "", "", ""],
    ]
    with (tmp_path / "list.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    first, second = read_image_list([tmp_path / "list.csv"], model="nuclei", options=Options(), positive="dab>0.2")
    assert (first.image, first.name) == (str(tmp_path / "a, b.tif"), "first") and first.options.channels == (0, 1)
    assert (second.image, first.positive, second.positive) == (str(tmp_path / "b;c.tif"), "Ki-67>400", "dab>0.2")
    (tmp_path / "list.csv").write_text(f"image{mark}name\na.tif{mark}b{mark}c\n")
    with pytest.raises(SettingsError, match=r"line 2 has no image, or more values .* Put values with .* in quotes"):
        read_image_list([tmp_path / "list.csv"], model="nuclei", options=Options())


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_decimal_comma_in_a_list_is_not_taken_for_two_numbers(tmp_path, mark):
    for size, found in (("1,5", None), ("1.0,5.0", (1, 5)), ("1.5", (1.5, 1.5)), ("2,1,5", (2, 1, 5))):
        (tmp_path / "list.csv").write_text(f"image{mark}pixel_size\na.tif{mark}{size}\n")
        if found is None:
            with pytest.raises(SettingsError, match="line 2: pixel_size '1,5' may be one number or two"):
                read_image_list([tmp_path / "list.csv"], model="nuclei", options=Options())
        else:
            (order,) = read_image_list([tmp_path / "list.csv"], model="nuclei", options=Options())
            assert order.options.pixel_size == found


def test_blanks_around_the_values_of_a_list_mean_nothing(tmp_path):
    (tmp_path / "list.csv").write_text("image,name,level\n a.tif ,first , 1\nb.tif\n")
    first, short = read_image_list([tmp_path / "list.csv"], model="nuclei", options=Options())
    assert (first.image, first.name, first.options.level) == (str(tmp_path / "a.tif"), "first", 1)
    assert (short.name, short.options.level) == ("b", None)


def test_rows_of_empty_cells_in_a_list_are_no_images(tmp_path):
    (tmp_path / "list.csv").write_text('image,name\na.tif,first\n,\n\n"b.tif" ,\n , \n,,,\n')
    items = read_image_list([tmp_path / "list.csv"], model="nuclei", options=Options())
    assert [(item.image, item.name) for item in items] == [
        (str(tmp_path / "a.tif"), "first"),
        (str(tmp_path / "b.tif"), "b"),
    ]


def test_what_file_managers_leave_in_a_folder_matches_no_pattern(tmp_path):
    for name in ("a.tif", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (item,) = read_image_list([tmp_path / "*"], model="nuclei", options=Options())
    assert item.name == "a"


def test_a_pattern_in_a_folder_with_brackets_in_its_name_matches_its_images_and_brackets_still_choose(tmp_path):
    folder = tmp_path / "day [2]"
    folder.mkdir()
    for name in ("a1.tif", "a2.tif", "a3.tif", "[1].tif"):
        (folder / name).write_bytes(b"x")
        (tmp_path / name).write_bytes(b"x")
    for pattern, names in {
        "day [2]/a*.tif": ["a1", "a2", "a3"],
        "a[13].tif": ["a1", "a3"],
        "[1].t*": ["[1]"],
        "day [[]2]/a[12].tif": ["a1", "a2"],
    }.items():
        items = read_image_list([tmp_path / pattern], model="nuclei", options=Options())
        assert [item.name for item in items] == names
