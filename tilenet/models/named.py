"""Models by name: packaged ones, files, and functions of Python modules that return one.

A file is read without running any code in it. A function runs the code that its name says, so it is called only for a
name that the caller gives, never for one that is recorded in an output.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tilenet.errors import ModelError, ModelNotFound, first_line
from tilenet.models.saved import class_name, find_model, load_model, packaged_models
from tilenet.models.weights import read_claims

FUNCTION = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


def function_of(model: Any) -> tuple[str, str] | None:
    """Return the module and the function that a name such as ``package.networks:build`` says; None for other models.

    >>> function_of("my_networks:build"), function_of("nuclei")
    (('my_networks', 'build'), None)
    """
    found = FUNCTION.fullmatch(model) if isinstance(model, str) else None
    return (found[1], found[2]) if found and not Path(model).exists() else None


def load_named(model: str | Path) -> Any:
    """Return the model of a name: what `load_model` reads, or ``module:function``.

    The function takes no arguments and returns any model that `segment` accepts. Its module is installed, or lies in
    the working directory. `ModelNotFound` or `ModelError` if there is no such file, module or function, or if it fails.
    """
    found = function_of(model)
    file, _, called = str(model).partition(":")
    if Path(file).suffix == ".py" and Path(file).is_file():
        right = f"{Path(file).stem}:{called or 'FUNCTION'}"
        raise ModelNotFound(f"{model}: is a file of Python. Give MODULE:FUNCTION, here {right}, in its folder")
    if found is None:
        return load_model(model)
    module, function = found
    make = getattr(_imported(module, str(model)), function, None)
    if make is None:
        raise ModelNotFound(f"{model}: module {module} has no {function}. Give MODULE:FUNCTION")
    try:
        made = make()
    except (Exception, SystemExit) as error:  # of any kind: it is the user's code
        raise ModelError(
            f"{model}: failed ({type(error).__name__}: {first_line(error)}). It is called without arguments, and "
            "returns the model"
        ) from error
    if not callable(made):
        raise ModelError(f"{model}: returned a {type(made).__name__}. Return the model: a network or a function")
    return made


def keeping_last(*, functions: bool = False) -> Callable[[str | Path], Any]:
    """Return a function that does what `load_named` does, and keeps the last model for when it is asked for again.

    A file is read again if it was written since. What a function returned is kept only with `functions`, since it may
    return another model each time.
    """

    @lru_cache(maxsize=1)
    def loaded(model: str, stamp: object) -> Any:
        del stamp  # only a key of the cache
        return load_named(model)

    def load(model: str | Path) -> Any:
        return loaded(str(model), _stamp_of(model)) if functions or not function_of(model) else load_named(model)

    return load


def _stamp_of(model: str | Path) -> tuple[int, ...]:
    """Return numbers that change when a model's file is written, or another takes its place; none if it has no file."""
    with suppress(ModelNotFound, OSError):
        file = find_model(model).stat()
        return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns
    return ()


def refuse_missing(model: Any) -> None:
    """Raise `ModelNotFound` for a name that is of no packaged model and no file, without reading anything."""
    if isinstance(model, str | Path) and not function_of(model):
        find_model(model)


def source_of(model: str | Path) -> str:
    """Return where a model comes from, as outputs record it: its packaged name, its function, or its absolute path."""
    named = str(model) in packaged_models() or function_of(model)
    return str(model) if named else str(Path(model).absolute())


def name_of(model: Any) -> str:
    """Return the name of a model, without reading weights of a file.

    A function is called: the name is that on the card of what it returns, or that of its module.
    """
    if not isinstance(model, str | Path):
        card = getattr(model, "card", None)
        return card.name if card else class_name(model)
    if found := function_of(model):
        card = getattr(load_named(model), "card", None)
        return getattr(card, "name", "") or found[0].rpartition(".")[2]
    path = find_model(model)
    try:
        return read_claims(path)[1].name or path.stem
    except Exception:  # of any kind; `load_model` reports it
        return path.stem


def _imported(module: str, model: str) -> ModuleType:
    """Import a module, also from the working directory, where a console script and a worker do not look."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        if find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
        return import_module(module)
    except (Exception, SystemExit) as error:  # of any kind: it is the user's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise ModelNotFound(
                f"{model}: there is no module {error.name}. Install it, put it into this folder, or set PYTHONPATH"
            ) from error
        raise ModelError(f"{model}: cannot be imported ({type(error).__name__}: {first_line(error)})") from error
