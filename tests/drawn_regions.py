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
