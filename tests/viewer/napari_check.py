"""Masks seen in napari: a screenshot with labels against one without. By hand or nightly, not with the tests.

napari and Qt are heavy, so they live in an environment of their own, and this script has two halves (apt-get
install xvfb where there is no screen):

    python -m venv viewer && viewer/bin/pip install "napari[pyqt6]" "napari-ome-zarr==0.8.2"
    python tests/viewer/napari_check.py make shots        # where tilenet is installed
    xvfb-run -a viewer/bin/python tests/viewer/napari_check.py look shots
    xvfb-run -a viewer/bin/python tests/viewer/napari_check.py look shots image.ome.zarr mask.zarr
    xvfb-run -a viewer/bin/python tests/viewer/napari_check.py look shots image.ome.zarr image.ome.zarr/labels/nuclei

`make` writes an OME-Zarr image of bright rectangles and segments it with a network that is a threshold: whole,
at level 1, at another pixel size, and a part; and into the image itself, in OME-Zarr 0.5 and 0.4. `look` opens each
mask with its image as a user would, through napari's OME-Zarr reader (an image brings its labels
with it), saves `NAME.png` and `NAME_control.png`, and asserts that

- the layer of labels has the colour of the model card, and lies inside the image (a whole mask: all over it);
- pixels differ from the control somewhere, and have the labels' colour where they do;
- each rectangle and its label have the same edges, to one pixel of the mask (only for what `make` wrote).

The last two forms are for an image and a mask of your own; there are no edges to compare then.

napari-ome-zarr 0.9.0 and 0.10.0 read the scale of an array but not the translation behind it, which OME-Zarr
allows: with them the mask of a part (`--roi`) is shown at the image's first pixel, and this check fails on it.
"""

import json
import sys
from pathlib import Path

import numpy as np

SIDES, SIZE = (600, 800), 0.5  # px, um
# y0, y1, x0, x1; apart from each other and from the border.
RECTANGLES = [(40, 120, 60, 300), (40, 90, 500, 760), (200, 420, 100, 160), (260, 400, 360, 640), (500, 561, 33, 777)]
COLOUR = (230, 30, 60)
MASKS = {
    "whole": {},
    "level_1": {"level": 1},
    "coarse": {"mpp": 1.3},
    "part": {"roi": ((180, 440), (80, 700))},
}
# Images, by their OME-Zarr version, and the labels that are added to them.
IMAGES = {"image": "0.5", "image_04": "0.4"}
LABELS = {"into_whole": {}, "into_level_1": {"level": 1}, "into_part": {"roi": ((180, 440), (80, 700))}}


def make(folder):
    """Write the image and its masks; where tilenet is installed."""
    import torch

    import tilenet

    def network(batch):
        bright = torch.as_tensor(np.asarray(batch), dtype=torch.float32) - 100
        return torch.cat([-bright, bright], 1)

    network.card = tilenet.ModelCard(
        name="bright", classes=("dark", "bright"), mask_of_class=(0, 1), colors={"1": [*COLOUR, 255]}
    )
    folder.mkdir()
    pixels = np.full(SIDES, 20, np.uint8)
    for y0, y1, x0, x1 in RECTANGLES:
        pixels[y0:y1, x0:x1] = 180
    common = {"model": network, "footprint": tilenet.Footprint.same(2, reach=0, step=1), "tile": 128}
    for name, version in IMAGES.items():
        image = folder / f"{name}.ome.zarr"
        write_image(image, pixels, version)
        for label, options in LABELS.items():
            tilenet.segment(image, into=image, name=label, **common, **options)
    for name, options in MASKS.items():
        tilenet.segment(folder / "image.ome.zarr", folder / f"{name}.zarr", **common, **options)


def write_image(path, pixels, version):
    """Write an OME-Zarr image of two levels, the second the mean of 2 x 2 pixels of the first."""
    import zarr

    coarse = pixels.reshape(pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 2).mean((1, 3)).round().astype(np.uint8)
    group, datasets = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2), []
    named = {"dimension_names": ("y", "x")} if version == "0.5" else {}
    for level, array in enumerate((pixels, coarse)):
        group.create_array(str(level), data=array, chunks=(200, 200), **named)
        scale = {"type": "scale", "scale": [SIZE * 2**level] * 2}
        # The centre of a coarse pixel is where four fine ones meet.
        place = {"type": "translation", "translation": [SIZE * (2**level - 1) / 2] * 2}
        datasets.append({"path": str(level), "coordinateTransformations": [scale, place]})
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    image = {"name": "bars", "axes": axes, "datasets": datasets}
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{"version": version, **image}]


def name_of(image, mask):
    """Return what the screenshots of a mask are called."""
    name = mask.name.partition(".")[0]
    return f"{image.name.partition('.')[0]}_{name}" if mask.parent == image / "labels" else name


def attributes_of(group):
    """Return OME-Zarr's attributes of a mask, and tilenet's."""
    if (group / "zarr.json").exists():
        attributes = json.loads((group / "zarr.json").read_bytes())["attributes"]
        return attributes["ome"], attributes["tilenet"]
    attributes = json.loads((group / ".zattrs").read_bytes())
    return attributes, attributes["tilenet"]


def look(folder, image, mask):
    """Open one mask over its image; save two screenshots and return them, and the layer of labels."""
    import napari

    name = name_of(image, mask)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 1000)
    opened = viewer.open(str(image), plugin="napari-ome-zarr")
    pictures = [layer for layer in opened if not isinstance(layer, napari.layers.Labels)]
    brought = {layer.name.rpartition("/")[2]: layer for layer in opened if layer not in pictures}
    for layer in brought.values():
        layer.visible = False
    if mask.parent == image / "labels":
        assert mask.name in brought, f"{image}: napari shows the labels {', '.join(brought) or '-'}, not {mask.name}"
        labels = [brought[mask.name]]
    else:
        labels = viewer.open(str(mask), plugin="napari-ome-zarr")
        labels = [layer for layer in labels if isinstance(layer, napari.layers.Labels)]
        assert len(labels) == 1, f"{mask}: napari shows {len(labels)} layers of labels, not one"
    labels[0].opacity = 1.0
    for layer in pictures:
        layer.interpolation2d = "nearest"
    viewer.reset_view()
    shots = {}
    for end, visible in (("", True), ("_control", False)):
        labels[0].visible = visible
        shots[end] = viewer.screenshot(str(folder / f"{name}{end}.png"), canvas_only=True, flash=False)[..., :3]
    zoom, world = viewer.camera.zoom, [(layer.extent.world, layer.extent.step) for layer in (pictures[0], labels[0])]
    colour = labels[0].get_color(1)
    viewer.close()
    return shots[""].astype(int), shots["_control"].astype(int), zoom, world, colour


def check(folder, image, mask, *, rectangles):
    """Assert that the labels are seen where they belong."""
    seen, control, zoom, (of_image, of_labels), colour = look(folder, image, mask)
    ome, made = attributes_of(mask)
    step = of_labels[1][-1]  # um of a mask pixel
    assert (of_labels[0][0][-2:] >= of_image[0][0][-2:] - step).all(), "the mask begins before its image"
    assert (of_labels[0][1][-2:] <= of_image[0][1][-2:] + step).all(), "the mask ends behind its image"
    if made["record"].get("roi") is None:
        assert np.allclose(of_labels[0][:, -2:], of_image[0][:, -2:], atol=step), (
            "the mask is not as large as its image"
        )
    changed = (seen != control).any(-1)
    assert changed.mean() > 0.001, "no label is to be seen"
    assert not (control != control[0, 0]).any(-1).all(), "the control has no background"
    listed = ome["image-label"].get("colors")
    if listed:
        wanted = np.array(listed[0]["rgba"][:3])
        assert np.allclose(np.round(colour[:3] * 255), wanted, atol=1), f"napari's colour is {colour}, not {wanted}"
        coloured = (abs(seen - wanted) <= 3).all(-1)
        # What is neither is the smoothed rim of a label.
        assert coloured[changed].mean() > 0.9, "changed pixels have another colour than the labels"
        assert not (abs(control - wanted) <= 3).all(-1).any(), "the control has the labels' colour"
    if rectangles:
        assert_edges(control, changed, made, pixel=SIZE * zoom, tolerance=step * zoom + 1)
    name = name_of(image, mask)
    print(f"{name}: {changed.mean():.1%} of the canvas has the labels' colour; 1 um is {zoom:.2f} canvas px")


def assert_edges(control, changed, made, *, pixel, tolerance):
    """Compare the edges of bright rectangles in the control and of the labels, in canvas pixels."""
    from skimage.measure import label, regionprops

    roi = made["record"].get("roi") or [[0, n] for n in SIDES]
    inside = [
        r for r in RECTANGLES if roi[0][0] <= r[0] and r[1] <= roi[0][1] and roi[1][0] <= r[2] and r[3] <= roi[1][1]
    ]
    boxes = {
        name: np.array(sorted(region.bbox for region in regionprops(label(there)) if region.area > 50))
        for name, there in (("image", control.sum(-1) > 300), ("labels", changed))
    }
    assert (len(boxes["image"]), len(boxes["labels"])) == (len(RECTANGLES), len(inside)), boxes
    worst = 0.0
    for box in boxes["labels"]:
        worst = max(worst, float(min(abs(boxes["image"] - box).max(1))))
    assert worst <= tolerance, f"an edge is {worst / pixel:.1f} image px off, {tolerance / pixel:.1f} are allowed"
    print(f"  edges of {len(inside)} rectangles: at most {worst / pixel:.2f} image px off")


def main():
    """Run one of the two halves."""
    what, folder, *own = sys.argv[1], *map(Path, sys.argv[2:])
    if what == "make":
        make(folder)
    elif own:
        folder.mkdir(exist_ok=True)
        check(folder, *own, rectangles=False)
    else:
        pairs = [(folder / "image.ome.zarr", folder / f"{name}.zarr") for name in MASKS]
        images = [folder / f"{name}.ome.zarr" for name in IMAGES]
        pairs += [(image, image / "labels" / name) for image in images for name in LABELS]
        for image, mask in pairs:
            check(folder, image, mask, rectangles=True)


if __name__ == "__main__":
    main()
