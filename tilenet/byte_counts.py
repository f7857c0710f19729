"""Numbers of bytes, as people write and read them, and what libraries take."""

from __future__ import annotations

import re
import sys
from decimal import Decimal

from tilenet.errors import SettingsError
from tilenet.geometry import ceil_div

# Fewer bytes are a number whose unit is missing.
LEAST_MEMORY = 1_000_000
# Powers of a thousand; of 1024 if an "i" follows, as in 4GiB.
POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# Fewer bytes than the first are shown in MB; as many as the second and more, in TB.
SMALL, LARGE = 10**8, 10**12
# What Python and the libraries of a run take before the first tile; and how much more if PyTorch is built for CUDA,
# which needs no GPU to take it. Measured with PyTorch 2.13.
LIBRARIES, FOR_CUDA = 320_000_000, 400_000_000


def parse_bytes(text: str) -> int:
    """Parse a number of bytes with a unit.

    >>> parse_bytes("4GB"), parse_bytes("500 mb"), parse_bytes("4GiB")
    (4000000000, 500000000, 4294967296)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", text, re.IGNORECASE)
    if not found:
        raise SettingsError(f"{text!r} is not a number of bytes, such as 4GB")
    count = int(Decimal(found[1]) * (1024 if found[3] else 1000) ** POWERS[(found[2] or "").upper()])
    if count < LEAST_MEMORY:
        unit = "Give more" if found[2] else f"Give a unit, such as {found[1]}GB"
        raise SettingsError(f"{text!r} is {count} bytes. {unit}")
    return count


def gigabytes(count: int) -> str:
    """Return a number of bytes as text, in GB, in MB if it is small, or in TB if it is large.

    >>> gigabytes(850_000_000), gigabytes(2_700_000), gigabytes(66_664_960_000_000)
    ('0.85 GB', '2.7 MB', '66.66 TB')
    """
    if count < SMALL:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.2f} GB" if count < LARGE else f"{count / 1e12:.2f} TB"


def memory_option(count: int) -> str:
    """Return at least so many bytes as ``--memory`` takes them.

    >>> memory_option(652_000_001), memory_option(2_800_001)
    ('653MB', '3MB')
    """
    return f"{ceil_div(count, 10**6)}MB"


def library_bytes() -> int:
    """Return the bytes of memory that Python and its libraries take in this process, before the first tile."""
    torch = sys.modules.get("torch")  # not imported for this: a process that finds objects does without
    return LIBRARIES + (FOR_CUDA if torch is not None and torch.version.cuda else 0)
