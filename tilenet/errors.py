"""Every error that tilenet raises on purpose, and the exit code that goes with it.

    TilenetError                     2   refused: bad input or settings
    ├── SettingsError (ValueError)       a setting that cannot be honoured
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
    ├── VerifyFailed (RuntimeError)  3   the mask is not what the network gives
    └── EnvironmentFault (OSError)   4   disk full, read-only, remote lost: resumable

Each message is one line: the file, the number, and the way out. Each kind also inherits
the builtin that users would catch.
"""


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an error says, or of which kind it is where it says nothing.

    >>> first_line(ValueError("\n  a\nb")), first_line(ValueError())
    ('a', 'ValueError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class TilenetError(Exception):
    """Anything that tilenet refuses or gives up on; `exit_code` is that of the command."""

    exit_code = 2


class SettingsError(TilenetError, ValueError):
    """A setting that cannot be honoured, such as a tile size off the grid."""


class ImageError(TilenetError, ValueError):
    """A file or an array that is not an image that tilenet can read."""


class ImageNotFound(ImageError, FileNotFoundError):
    """There is nothing at the path of the image."""


class ModelError(TilenetError, ValueError):
    """Weights, or a model card, that do not fit the network or the image."""


class ModelNotFound(ModelError, FileNotFoundError):
    """There is no model of that name, and no file at that path."""


class OutputError(TilenetError, ValueError):
    """A mask that cannot be used as it is."""


class OutputExists(OutputError, FileExistsError):
    """The output is there already, and neither `resume` nor `overwrite` was said."""


class OutputNotFound(OutputError, FileNotFoundError):
    """There is no mask at that path."""


class OutputIncomplete(OutputError):
    """The mask has blocks that are not written yet."""


class OutputMismatch(OutputError):
    """The mask was made, or the run to be resumed was started, with other options, image or model."""


class OutputLocked(OutputError):
    """Another run is writing the same output."""


class BlocksFailed(TilenetError, RuntimeError):
    """The run ended, but some blocks could not be computed; the message names them."""

    exit_code = 3


class VerifyFailed(TilenetError, RuntimeError):
    """The mask differs from what the network gives; the message says where."""

    exit_code = 3


class EnvironmentFault(TilenetError, OSError):
    """The disk is full or read-only, or a remote is lost; the run can be resumed."""

    exit_code = 4
