"""The image as a network sees it: resolution and channels. Images that do not fit the network are refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilenet.card import ModelCard
from tilenet.errors import ImageError
from tilenet.footprint import Footprint
from tilenet.jobs.options import Options
from tilenet.readers.calibrated import overruled_size
from tilenet.readers.image import INKS, RGB, Image
from tilenet.readers.planes import PlanesImage
from tilenet.readers.resampled import at_resolution, in_plane
from tilenet.readers.views import channel_numbers, first_channel
from tilenet.resolution import Resolution, recorded, resolve, size_text

LOG = logging.getLogger("tilenet")


@dataclass(frozen=True)
class NetworkInput:
    """The image that is read for a network."""

    # With the channels that the network takes.
    image: Image
    # The same image with all channels.
    whole: Image
    # Those that the caller chose; None if the caller chose none.
    channels: tuple[int, ...] | None
    resolution: Resolution

    def to_record(self) -> dict[str, Any]:
        """Return channels and resolution for the run record."""
        channels = None if self.channels is None else list(self.channels)
        return {"channels": channels, **self.resolution.to_json()}


def as_network_input(
    opened: Image, network: Any, card: ModelCard, options: Options, footprint: Footprint
) -> NetworkInput:
    """Return an image as a network sees it; reads no pixels."""
    if opened.stated_axes not in ("", opened.axes):
        LOG.info("%s: axes taken as %s, as asked; the file says %s", opened.name, opened.axes, opened.stated_axes)
    if overruled := overruled_size(opened):
        given = size_text(opened.given_pixel_size) + _left(opened)
        LOG.info("%s: pixel size taken as %s, as asked; the file says %s", opened.name, given, overruled)
    if opened.reader == PlanesImage.reader:
        LOG.info("%s: its %d files are read as one stack along %s", opened.name, opened.shape[0], opened.axes[0])
    if opened.drops_alpha:
        LOG.info("%s: its alpha channel is not read: transparent pixels are segmented like all others", opened.name)
    channels = None if options.channels is None else channel_numbers(opened, options.channels)
    resolution = _resolution(opened, card, options, footprint)
    whole = at_resolution(opened, resolution)
    _check_axes(whole, footprint)
    _check_color(whole, network, channels)
    image = _fit_channels(whole, getattr(network, "in_channels", None), channels)
    return NetworkInput(image, whole, channels, resolution)


def _left(image: Image) -> str:
    """Return which size along z an image keeps that was given sizes along y and x alone; empty if there is none."""
    if "z" not in image.box_axes or len(image.given_pixel_size) > 2:
        return ""
    size = image.levels[0].pixel_size[image.box_axes.index("z")]
    return f" along y and x (along z it stays {'unknown' if size is None else size_text([size])})"


def _resolution(image: Image, card: ModelCard, options: Options, footprint: Footprint) -> Resolution:
    if options.factor is not None:
        return recorded(options.level or 0, options.factor, options.mpp)
    # If the caller gave an open image at a coarser level, that level is the caller's choice.
    level = image.level if options.level is None and image.level else options.level
    resolution = resolve(
        [_size(image, k, volumes=footprint.ndim > 2) for k in range(len(image.levels))],
        level=level,
        mpp=options.mpp,
        card_mpp=card.pixel_size,
        model=card.name,
        name=image.name,
    )
    if resolution.announced:
        LOG.info("%s: %s", image.name, resolution.text)
    return resolution


def _size(image: Image, level: int, *, volumes: bool) -> tuple[float | None, ...]:
    """Return the pixel size at a level along y and x, and before them along z for a network of volumes."""
    sizes = dict(zip(image.box_axes, image.levels[level].pixel_size, strict=True))
    return (*((sizes["z"],) if volumes and "z" in sizes else ()), *in_plane(image, level))


def _check_axes(image: Image, footprint: Footprint) -> None:
    wanted = "zyx"[-footprint.ndim :]
    if not image.box_axes.endswith(wanted):
        raise ImageError(
            f"{image.name}: its axes are {image.axes}, and a {footprint.ndim}-D network runs over {wanted}, "
            f"which must come last (c aside). Move them (numpy.moveaxis), choose another model, or specify --axes"
        )


def _check_color(image: Image, network: Any, chosen: Sequence[int] | None) -> None:
    """Refuse an image of three stains that would be taken for red, green and blue."""
    of_three = getattr(network, "in_channels", None) == image.n_channels == 3
    own = getattr(network, "card", None) is None  # the caller's, which gets the channels as they are
    if chosen is None and of_three and not own and not image.is_color:
        names = ", ".join(name or f"channel {i}" for i, name in enumerate(image.channel_names))
        raise ImageError(
            f"{image.name}: its 3 channels ({names}; {image.dtype}) are not known to be an 8-bit colour picture, and "
            f"the model takes red, green and blue. Choose one stain, such as --channels {first_channel(image)}, "
            f"or all: --channels 0,1,2"
        )


def _fit_channels(image: Image, wanted: int | None, chosen: Sequence[int] | None) -> Image:
    """Return the image with the channels that the network takes."""
    if chosen is not None:
        image = image.with_channels(chosen)
    if wanted is None or image.n_channels == wanted:
        return image
    if image.n_channels == 1:
        return image.with_channels((0,) * wanted)
    names = ", ".join(name for name in image.channel_names if name)
    # A network of three inputs may be one of colour, which no three stains are; a single one goes to every input.
    one = wanted > image.n_channels or wanted == len(RGB)
    some = (first_channel(image) if chosen is None else "0") if one else ",".join(map(str, range(wanted)))
    has = f"has {image.n_channels} channels" if chosen is None else f"{image.n_channels} channels were chosen"
    how = f"Choose with --channels, such as --channels {some}{', one stain' if one else ''}"
    raise ImageError(
        f"{image.name}: {has}{f' ({names})' if names else ''}, the model takes {wanted}. "
        f"{'Write the picture as RGB first' if image.channel_names == INKS else how}"
    )
