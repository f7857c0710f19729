"""Addresses of remote images, and the part of them that may be shown: never a password or a signature."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from errno import ELOOP
from os import PathLike
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from tilenet.errors import ImageError, OutputError, SettingsError

SCHEMES = ("https", "http", "s3")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# `pathlib.Path` collapses the two slashes after the colon into one.
_SCHEME_OF_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@\s]+)(:\d+)?")


@dataclass(frozen=True)
class Address:
    """The address of a remote image.

    As text it holds no secrets, so that it may be shown and stored; it still opens the image if that is public.
    """

    # One of `SCHEMES`.
    scheme: str
    # With its port; or the bucket.
    host: str
    # Without percent-encoding, and without a slash at either end.
    path: str
    # What follows the question mark, and the ``user:password`` before the host. Both may hold credentials.
    query: str = field(default="", repr=False)
    login: str = field(default="", repr=False)

    def __str__(self) -> str:
        path = self.path if self.scheme == "s3" else quote(self.path, safe="/:!$&'()*+,;=~")
        return f"{self.scheme}://{self.host}/{path}".rstrip("/")


def is_address(name: object) -> bool:
    """Return whether a name is an address rather than a path.

    >>> is_address("https://host/image.zarr"), is_address("image.zarr"), is_address("C:/image.zarr")
    (True, False, False)
    """
    return isinstance(name, str) and _SCHEME.match(name) is not None


def parse_address(text: str) -> Address:
    """Parse an address (raises `ImageError` if its scheme is not supported, or if it is malformed).

    >>> str(parse_address("https://me:secret@host/my%20image.zarr?signature=secret"))
    'https://host/my%20image.zarr'
    """
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise ImageError(
            f"{shown(text)}: is an address of the kind {scheme}, and {', '.join(SCHEMES)} are read. Fetch it first"
        )
    if scheme == "s3":  # not a URL: everything after the bucket is the key, even ? and #
        bucket, _, key = rest.partition("/")
        address = Address(scheme, bucket, key.strip("/"), login=bucket.rpartition("@")[0])
    else:
        try:
            parts = urlsplit(text)
        except ValueError:
            raise ImageError(f"{shown(text)}: is not an address that can be understood. Check it") from None
        login, _, host = parts.netloc.rpartition("@")
        address = Address(scheme, host, unquote(parts.path).strip("/"), parts.query, login)
    if address.scheme != "s3" and _hides_a_login(text):
        raise ImageError(
            f"{shown(text)}: has an @ behind the host. Write / in a password as %2F, and @ in a path as %40"
        )
    if address.scheme == "s3" and address.login:
        raise ImageError(f"{shown(text)}: credentials are not taken from an s3 address. Set AWS_ACCESS_KEY_ID, ...")
    if not _is_host(address.host, address.scheme):
        raise ImageError(f"{shown(text)}: names no host. Check the address")
    return address


def shown(name: str) -> str:
    """Return an address without its credentials; return a path unchanged.

    >>> shown("https://me:secret@host:80/image.zarr?signature=secret"), shown("slide?.tif")
    ('https://host:80/image.zarr', 'slide?.tif')
    """
    if not is_address(name):
        return name
    scheme, _, rest = name.partition("://")
    s3 = scheme.lower() == "s3"
    host, slash, path = (rest if s3 else re.split(r"[?#]", rest, maxsplit=1)[0]).partition("/")
    host = host.rpartition("@")[2]
    # If this is no valid host, it may be the first part of a password with an unencoded slash: show nothing of it.
    if not _is_host(host, scheme) or (not s3 and _hides_a_login(name)):
        return f"{scheme}://..."
    return f"{scheme}://{host}{slash}{path}".rstrip("/")


def _is_host(host: str, scheme: str) -> bool:
    """Return whether a text can be a host with its port or, for s3, a bucket, which has none."""
    return bool(_HOST.fullmatch(host)) and not (scheme.lower() == "s3" and ":" in host)


def _hides_a_login(name: str) -> bool:
    """Return whether what looks like the host may be part of a login: an @ comes after a slash, ? or #.

    >>> _hides_a_login("https://me:12/34@host/a"), _hides_a_login("https://me:1234@host/a%40b")
    (True, False)
    """
    return "@" in "".join(re.split(r"([/?#])", name.partition("://")[2], maxsplit=1)[1:])


def last_name(name: str) -> str:
    """Return the last part of a path or an address: the name that a file there would have.

    >>> last_name("https://host/a/image.ome.zarr/?signature=x"), last_name("slides/a.svs")
    ('image.ome.zarr', 'a.svs')
    """
    return Path(parse_address(name).path if is_address(name) else name).name


def leads_to_itself(path: Path) -> bool:
    """Return whether a path is a symbolic link to itself, which `Path.resolve` passes over since Python 3.13."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == ELOOP
    return False


def check_local(out: str | PathLike[str]) -> None:
    """Refuse an output that is an address (`OutputError`), or no path at all (`SettingsError`)."""
    if not isinstance(out, str | PathLike):
        raise SettingsError(
            f"a path, or a mask that was opened, is wanted, not a {type(out).__name__}. "
            "With out=..., tilenet.segment writes one"
        )
    if is_address(out) or _SCHEME_OF_PATH.match(str(out)):
        name = shown(re.sub(r":/+", "://", str(out), count=1))
        raise OutputError(f"{name}: is an address, and what tilenet writes is local. Give a path, and copy it there")


def file_of(name: str | Path) -> Path:
    """Return the file or folder that holds an image: of a dataset inside a file, ``volume.h5/raw``, the file."""
    path = Path(name)
    return path if path.exists() else next((p for p in path.parents if p.is_file()), path)


def inside_of(name: str | Path) -> str:
    """Return the path of an image inside the file that holds it: ``raw`` of ``volume.h5/raw``; empty for the file."""
    inside = Path(name).relative_to(file_of(name)).as_posix()
    return "" if inside == "." else inside


def absolute(name: str | Path) -> str:
    """Return the absolute path of an existing image, for use from other working directories; other names unchanged."""
    return str(Path(name).absolute()) if file_of(name).exists() else str(name)


def without_name(message: str, image: str) -> str:
    """Return a message about an image without the name that it begins with: as given, or the absolute path.

    >>> without_name("slide.svs: is damaged", "slide.svs"), without_name(f"{Path.cwd()}: is empty", ".")
    ('is damaged', 'is empty')
    """
    return message.removeprefix(f"{image}: ").removeprefix(f"{absolute(image)}: ")
