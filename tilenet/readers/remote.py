"""Fetch remote files, or parts of them, with obstore: with timeouts, and with errors that reveal no secrets.

obstore's error messages quote the address with all secrets in it, so they are never passed on.
Messages report only the HTTP status of the answer, or how the connection ended.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

from tilenet.address import Address
from tilenet.errors import EnvironmentFault, ImageError, ImageNotFound, TilenetError
from tilenet.readers.cache import FetchCache
from tilenet.readers.guards import needing

# Timeouts: to connect, between two pieces of an answer, for one answer, and for all retries of a request.
CONNECT, SILENCE, ANSWER, TRYING = (timedelta(seconds=n) for n in (10, 30, 600, 60))
RETRIES = 4
BACKOFF = {"base": 2, "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5)}
# How long credentials are reused before boto3 is asked for them again: it renews them ten minutes before they expire.
CREDENTIALS = timedelta(minutes=5)
REGION = "us-east-1"
_STATUS = re.compile(r"status code: (\d{3})")
CUT = "Interrupted"
_ENDS = {
    "Timeout": "no answer in time",
    "TimedOut": "no answer in time",
    "kind: Connect": "no connection",
    CUT: "the answer was cut off",
    "IncompleteMessage": "the connection was closed",
}
# Statuses 4xx of a server that is busy or too slow, not of a wrong request.
PASSING = (408, 425, 429)


# S3 answers this if the bucket is missing, not the file.
NO_BUCKET = "<Code>NoSuchBucket</Code>"


class Forbidden(ImageError):
    """The server refuses access; it may do so whether or not the image exists."""


class BucketNotFound(ImageNotFound):
    """There is no bucket of that name."""


class Remote:
    """The files below one address, that of an image or of a folder in it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        with needing(str(address), kind="remote", library="obstore", extra="remote"):
            self.store = _s3(address) if address.scheme == "s3" else _http(address)
        self._cache = FetchCache()

    def name_of(self, path: str) -> str:
        """Return the address of a file or a folder without secrets, for messages."""
        return str(replace(self.address, path=path))

    async def fetch(
        self,
        path: str,
        *,
        largest: int,
        part: dict[str, Any] | None = None,
        absent: Callable[[], Awaitable[None]] | None = None,
    ) -> bytes | None:
        """Return a file or a part of it, from the cache if possible; None if there is no such file.

        `path` is from the root of the host or the bucket. A file of more than `largest` bytes is refused before its
        content is fetched. `part` is the ``range`` of obstore's ``GetOptions``: ``(start, stop)``, ``{"suffix": n}`` or
        ``{"offset": n}``. `absent` is awaited if there is no file, before None is cached; it may raise instead.
        `ImageError` if the server refuses the request (`Forbidden`: access) or the file is empty, `EnvironmentFault` if
        the server cannot be reached, fails or is too slow.
        """

        async def get() -> bytes | None:
            data = await self.fetch_anew(path, largest=largest, part=part)
            if data is None and absent:
                await absent()
            return data

        whole = self._cache.find(path)
        if whole is not None and part:
            return _part_of(whole, part["range"])
        return await self._cache.get((path, repr(part)) if part else path, get)

    async def fetch_anew(self, path: str, *, largest: int, part: dict[str, Any] | None = None) -> bytes | None:
        """Return a file or a part of it as it is now, bypassing the cache."""
        from obstore.exceptions import BaseError

        try:
            for _ in range(RETRIES):
                try:
                    return await self._whole(path, largest, part)
                except BaseError as error:
                    # obstore resumes an answer that was cut off only if the server states the version of the file.
                    if CUT not in str(error):
                        raise
            return await self._whole(path, largest, part)
        except TilenetError:
            raise
        except FileNotFoundError as error:
            if NO_BUCKET in str(error):
                bucket = self.address.host
                raise BucketNotFound(f"{self.name_of(path)}: there is no bucket {bucket}. Check its name") from None
            return None
        except (BaseError, ValueError, OSError) as error:
            raise self._fault(path, error) from None

    async def _whole(self, path: str, largest: int, part: dict[str, Any] | None) -> bytes:
        import obstore

        options: Any = part
        found = await obstore.get_async(self.store, path, options=options)
        size = found.meta["size"]
        if size > largest:
            raise ImageError(
                f"{self.name_of(path)}: has {size} bytes, more than the {largest} that it can have. "
                f"The file is damaged; get it again"
            )
        if size == 0:
            raise ImageError(f"{self.name_of(path)}: is empty (0 bytes). Get the image again")
        return bytes(await found.bytes_async())

    def _fault(self, path: str, error: Exception) -> Exception:
        """Return the error to raise, in words that reveal no secrets."""
        kind, said, name = type(error).__name__, str(error), self.name_of(path)
        status = int(found[1]) if (found := _STATUS.search(said)) else None
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
            return Forbidden(f"{name}: access is refused (HTTP status {status or 403}). {self._remedy()}")
        if kind == "NotSupportedError":
            return ImageError(f"{name}: the server does not support HTTP range requests. Use another server")
        if "redirect without LOCATION" in said:
            return ImageError(f"{name}: the bucket lies in another region. Set AWS_REGION to it")
        if status is not None and 400 <= status < 500 and status not in PASSING:
            return ImageError(f"{name}: cannot be fetched (HTTP status {status}). Check the address")
        if kind == "ValueError" or "Content-Length" in said:
            return ImageError(f"{name}: cannot be fetched from a server of this kind. Use another server")
        how = f"HTTP status {status}" if status else next((v for k, v in _ENDS.items() if k in said), "connection lost")
        return EnvironmentFault(f"{name}: the connection to the server failed ({how}). Run again with --resume")

    def _remedy(self) -> str:
        if self.address.scheme == "s3":
            return "Set AWS_ACCESS_KEY_ID or AWS_PROFILE, or for a public bucket AWS_SKIP_SIGNATURE=true"
        return "Give an address that opens it"


def _part_of(data: bytes, part: Any) -> bytes:
    if isinstance(part, tuple):
        return data[slice(*part)]
    return data[-part["suffix"] :] if "suffix" in part else data[part["offset"] :]


def _options() -> dict[str, Any]:
    return {
        "client_options": {
            "allow_http": True,
            "connect_timeout": CONNECT,
            "read_timeout": SILENCE,
            "timeout": ANSWER,
        },
        "retry_config": {"max_retries": RETRIES, "retry_timeout": TRYING, "backoff": BACKOFF},
    }


def _http(address: Address) -> Any:
    """Return an obstore store of a web server; user and password go into a header, the query into each request."""
    from obstore.store import HTTPStore

    options = _options()
    if address.login:
        login = base64.b64encode(unquote(address.login).encode()).decode()
        options["client_options"]["default_headers"] = {"Authorization": f"Basic {login}"}
    query = f"?{address.query}" if address.query else ""
    try:
        return HTTPStore.from_url(f"{address.scheme}://{address.host}/{query}", **options)
    except Exception:  # its message quotes the address
        raise ImageError(f"{address}: is not an address that can be reached. Check it") from None


def _s3(address: Address) -> Any:
    """Return an obstore store of a bucket, with the endpoint, region and credentials that the AWS tools would use.

    Requests are anonymous if there are no credentials, or if AWS_SKIP_SIGNATURE is set to true.
    """
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.store import S3Store

    try:
        session = boto3.Session()
        region = os.environ.get("AWS_REGION") or session.region_name or REGION
        endpoint = session.client("s3", region_name=region).meta.endpoint_url
        signed = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() != "true" and session.get_credentials() is not None
    except BotoCoreError as error:
        raise ImageError(f"{address}: the settings of AWS cannot be used ({error}). Correct them") from error
    if not signed:
        return S3Store(address.host, endpoint=endpoint, region=region, skip_signature=True, **_options())
    from obstore.auth.boto3 import Boto3CredentialProvider

    provider = Boto3CredentialProvider(session, ttl=CREDENTIALS)
    return S3Store(address.host, endpoint=endpoint, region=region, credential_provider=provider, **_options())
