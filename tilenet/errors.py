"""Every error that tilenet raises on purpose, and its exit code.

    TilenetError                     2   refused: bad input or settings
    ├── SettingsError (ValueError)       a setting that cannot be honoured
    │   └── UnknownOption (TypeError)    a keyword argument that a function does not have
    ├── ImageError (ValueError)          a file that is not an image that tilenet can read
    │   └── ImageNotFound (FileNotFoundError)
    ├── ModelError (ValueError)          weights or a model card that do not fit
    │   └── ModelNotFound (FileNotFoundError)
    ├── OutputError (ValueError)         a mask that cannot be used as it is
    │   ├── OutputExists (FileExistsError)
    │   ├── OutputNotFound (FileNotFoundError)
    │   ├── OutputIncomplete             opened before it was complete
    │   ├── OutputMismatch               resumed or used with other options, image or model
    │   └── OutputLocked                 another run is writing it
    ├── BlocksFailed (RuntimeError)  3   the run ended, some blocks could not be computed
    ├── VerifyFailed (RuntimeError)  3   the mask differs from what the network computes
    └── EnvironmentFault (OSError)   4   the machine, such as a full disk or a lost server: resumable
        ├── DeviceLost                   a GPU that failed
        └── DiskFault                    a disk that takes no more of an output: full, read-only, failing

Each message is one line that names the file, the offending number, and the way out. Each class
also inherits from the builtin exception that users would expect to catch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

WINDOWS = os.name == "nt"
# Ways out that hold for whoever reads them: a batch skips complete masks, and neither it nor a share replaces one.
REPAIR = "run the command that made it again, with --resume and without --shard (a batch: remove the mask first)"
ANEW = "start again with --overwrite (a batch, or with --shard: remove the mask, and its folder .making, first)"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if the message is empty.

    >>> first_line(ValueError("\n  a\nb")), first_line(ValueError())
    ('a', 'ValueError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def counted(n: int, what: str) -> str:
    """Return a number and what it counts, in the plural unless it is one.

    >>> counted(1, "block"), counted(0, "image")
    ('1 block', '0 images')
    """
    return f"{n} {what}{'s' * (n != 1)}"


def counted_of(n: int, total: int, what: str) -> str:
    """Return how many of all there are, and the verb that follows.

    >>> counted_of(1, 1, "block"), counted_of(1, 8, "block")
    ('1 of 1 block is', '1 of 8 blocks are')
    """
    return f"{n} of {counted(total, what)} {'is' if total == 1 else 'are'}"


def one_line(error: BaseException) -> str:
    r"""Return the type and message of an exception on one line of bounded length.

    >>> one_line(ValueError("a\n  b")), one_line(ValueError())
    ('ValueError: a b', 'ValueError')
    """
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:160]}" if said else type(error).__name__


@contextmanager
def closed_on_error(*opened: Any) -> Iterator[None]:
    """Close what a function has opened if it fails, also by Ctrl-C: its caller gets nothing that it could close."""
    try:
        yield
    except BaseException:
        for each in opened:
            each.close()
        raise


class TilenetError(Exception):
    """Base class of the errors that tilenet raises on purpose; a command that fails with one exits with `exit_code`."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # An own one, because tblib, which Dask installs, cannot rebuild classes of two builtins without it.
        return type(self), self.args, self.__dict__


class SettingsError(TilenetError, ValueError):
    """A setting that cannot be honoured, such as a tile size off the grid."""


class UnknownOption(SettingsError, TypeError):
    """A keyword argument that a function does not have, such as a misspelt one."""


class ImageError(TilenetError, ValueError):
    """A file or an array that is not an image that tilenet can read."""


class ImageNotFound(ImageError, FileNotFoundError):
    """There is no file at the image's path."""


class ModelError(TilenetError, ValueError):
    """Weights, or a model card, that do not fit the network or the image."""


class ModelNotFound(ModelError, FileNotFoundError):
    """There is no model of that name, and no file at that path."""


class OutputError(TilenetError, ValueError):
    """A mask that cannot be used as it is."""


class OutputExists(OutputError, FileExistsError):
    """The output already exists, and neither `resume` nor `overwrite` was given."""


class OutputNotFound(OutputError, FileNotFoundError):
    """There is no mask at that path."""


class OutputIncomplete(OutputError):
    """Some blocks of the mask are not written yet."""


class OutputMismatch(OutputError):
    """The mask was made with other options, image or model, or the run to be resumed was started with others."""


class OutputLocked(OutputError):
    """Another run is writing the same output."""

    # Whether that run holds the whole of it, as a share that looks whether it is the last does for a moment.
    whole = False


class BlocksFailed(TilenetError, RuntimeError):
    """The run ended, but some blocks could not be computed; the message names them."""

    exit_code = 3


class VerifyFailed(TilenetError, RuntimeError):
    """The mask differs from what the network computes; the message says where."""

    exit_code = 3


class EnvironmentFault(TilenetError, OSError):
    """The machine, not the input: a full or read-only disk, too little memory on a device, a lost server or scheduler.

    The run can be resumed.
    """

    exit_code = 4


class DeviceLost(EnvironmentFault):
    """A GPU failed, and computes nothing more for this process; those of other workers may."""


class DiskFault(EnvironmentFault):
    """The disk takes no more of an output, nor of others beside it: it is full, over a quota, read-only, or fails."""


def refuse_windows() -> None:
    """Refuse to run on Windows, before anything is done."""
    if WINDOWS:
        raise SettingsError("Windows cannot sync folders, so no mask can be written safely there. Use Linux, or WSL2")


def refuse_special_file(path: str | os.PathLike[str]) -> None:
    """Refuse a pipe, a device or a socket, which might be read for ever; what cannot be looked at is left alone."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # whoever reads it says why it cannot be read
        return
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise SettingsError(f"{path}: is a pipe, a device or a socket, and no file. Write it to a file, and give that")
