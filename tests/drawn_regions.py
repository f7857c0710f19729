"""Regions that users draw, as GeoJSON."""

import json


def rectangle(x0, y0, x1, y1):
    """Return the corners of a rectangle, and the first one again."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def square(x, y, side):
    return rectangle(x, y, x + side, y + side)


def feature(coordinates, kind="Polygon", **properties):
    """Return a feature as QuPath writes its annotations."""
    said = {"objectType": "annotation"} | properties
    return {"type": "Feature", "id": "x", "geometry": {"type": kind, "coordinates": coordinates}, "properties": said}


def write_regions(path, features, *, collection=True):
    """Write features as a collection, or as they are; return the path."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features} if collection else features))
    return path


# As QuPath 0.2 wrote them, without a type of object.
OLD = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square(0, 0, 9)]}, "properties": {}}
OPEN = feature([square(0, 0, 9)[:-1]], name="A")
# What is no file of regions of the image of test_drawn_regions, and what is said of it.
BAD = [
    ("", r"is not a GeoJSON that can be read \(Expecting value.*\. In QuPath, select the annotations"),
    ("PK\x03\x04", "not compressed"),
    ("[" * 100000, "is not a GeoJSON that can be read"),
    ({"type": "Feature"}, "feature 1 is a feature without geometry, which has no area"),
    ({"type": "FeatureCollection"}, "is neither a FeatureCollection, nor a list of features, nor one"),
    ({"type": "Polygon"}, "is neither a FeatureCollection, nor a list of features, nor one"),
    ([], r"r\.geojson: has no regions\. In QuPath, select the annotations"),
    ([feature([square(0, 0, 9)]), 3], "entry 2 is not a Feature"),
    ([feature([1, 2], "Point")], "feature 1 is a Point, which has no area. Export areas alone"),
    ([feature([[1, 2], [3, 4]], "LineString", name="A")], r"feature 1 \(A\) is a LineString, which has no area"),
    ([{"type": "Feature", "geometry": None}], "feature 1 is a feature without geometry, which has no area"),
    ([OPEN], r"feature 1 \(A\) has an open ring: its 4 points do not return to the first, \(0, 0\)"),
    ([feature([square(0, 0, 9), square(2, 2, 3)[:-1]])], r"open ring: its 4 points.*\(2, 2\)"),
    (
        [feature([[[0, 0], [9, 9], [0, 0]]])],
        r"has a ring of 3 points at \(0, 0\), which encloses nothing",
    ),
    ([feature([[[0, 0], [9, "a"], [9, 9], [0, 0]]])], "points that are not pairs of numbers"),
    ([feature([[[0, 0], [9, float("nan")], [9, 9], [0, 0]]])], "points that are not pairs of numbers"),
    ([feature([[[0, 0], [9], [9, 9], [0, 0]]])], "points that are not pairs of numbers"),
    ([feature([])], "is a Polygon without rings"),
    ([feature(square(0, 0, 9))], "points that are not pairs of numbers"),
    ([feature([[[0, 0], [9, 9], [4, 4], [0, 0]]])], "has no area"),
    ([feature([square(0, 0, 9)], objectType="detection")], "is a detection, not a region. In QuPath, select the annot"),
    (
        {
            "type": "FeatureCollection",
            "features": [feature([square(0, 0, 9)], objectType="detection", classification={"name": "A"})],
        },
        r"feature 1 \(A\) is a detection, not a region. In QuPath, select the annot",
    ),
    ({"type": "FeatureCollection", "features": []}, r"r\.geojson: has no regions\. In QuPath, select the annotations"),
    ([feature([square(0, 0, 9)], objectType="cell")], "is a cell, not a region"),
    ([OLD | {"id": "PathCellObject"}], "feature 1 is a PathCellObject, not a region"),
    ([OLD | {"id": "PathDetectionObject"}], "is a PathDetectionObject, not a region"),
    ([OLD | {"properties": {"object_type": "cell"}}], "is a cell, not a region"),
    ([OLD | {"properties": {"type": "detection"}}], "is a detection, not a region"),
    ([feature([square(0, 0, 9)], childObjects=[OPEN])], "has other objects inside"),
    ([feature([square(0, 0, 9)], children=[OPEN])], "has other objects inside"),
    (
        [feature([square(900, 900, 9)])],
        "all of its regions lie outside of what was segmented, x 0 to 340 and y 0 to 260",
    ),
]
