"""Make the picture of docs/design.md: what two tiles of an image read, and what they write.

    python pipelines/tile_picture.py docs/tiles.png

The image is scikit-image's photograph of stained tissue. The boxes are those of a plan for the packaged model, and the
mask is stitched from such tiles.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.data import immunohistochemistry

import tilenet

TILE, MARGIN = 256, 64
GAP, FOOT, WIDTH = 24, 34, 3
COLOURS = ((255, 150, 0), (60, 130, 255))


def mirrored(image):
    """Return a picture of an image and of its mirrored border, which is pale."""
    high, wide = image.box_shape
    seen = image.read(tilenet.Box((-MARGIN, -MARGIN), (high + MARGIN, wide + MARGIN)))
    pixels = np.moveaxis(seen, 0, -1)
    pale = (pixels.astype(np.float32) * 0.4 + 255 * 0.6).astype(np.uint8)
    inside = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    pale[inside] = pixels[inside]
    return Image.fromarray(pale)


def outline(draw, box, colour, *, dashed=False):
    """Draw a box of the image on a picture of it, as a rectangle."""
    (top, left), (bottom, right) = ([at + MARGIN for at in corner] for corner in (box.start, box.stop))
    if not dashed:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=WIDTH)
        return
    for along in range(0, max(bottom - top, right - left), 12):
        for y in (top, bottom - 1):
            draw.line((left + along, y, min(left + along + 6, right), y), colour, WIDTH)
        for x in (left, right - 1):
            draw.line((x, top + along, x, min(top + along + 6, bottom)), colour, WIDTH)


def picture_of(photo, model):
    """Return the picture: the mirrored image with what the tiles read, and the mask with what they write."""
    with tilenet.open_image(photo, axes="yxc") as image:
        left = mirrored(image)
        mask = tilenet.segment(image, model=model, tile=TILE)
        plan = tilenet.plan_tiles(image.box_shape, model.footprint, tile=TILE, block=TILE)
    right = Image.new("RGB", left.size, "white")
    right.paste(Image.fromarray(mask * np.uint8(255)), (MARGIN, MARGIN))
    tiles = [tile for block in (plan[0], plan[-1]) for tile in block.tiles]
    for tile, colour in zip(tiles, COLOURS, strict=True):
        outline(ImageDraw.Draw(left), tile.read, colour)
        for panel in (left, right):
            outline(ImageDraw.Draw(panel), tile.write, colour, dashed=panel is left)
    out = Image.new("RGB", (2 * left.width + GAP, left.height + FOOT), "white")
    out.paste(left, (0, 0))
    out.paste(right, (left.width + GAP, 0))
    read, written = (" x ".join(map(str, box.shape)) for box in (tiles[0].read, tiles[0].write))
    texts = (f"read: {read} px (solid), mirrored outside the image", f"written: {written} px, side by side")
    for x, text in zip((0, left.width + GAP + MARGIN), texts, strict=True):
        ImageDraw.Draw(out).text((x, left.height + 6), text, "black", ImageFont.load_default(20))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    picture = picture_of(immunohistochemistry(), tilenet.load_model("nuclei"))
    picture.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
