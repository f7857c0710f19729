"""Keyword arguments that a function does not have: they are refused with the name that was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

from tilenet.errors import UnknownOption

P = ParamSpec("P")
T = TypeVar("T")
# Options of `tilenet segment` that are something else in Python.
WORKERS = {"workers": "Give client=distributed.Client(n_workers=...), with threads_per_worker=1"}


def unknown_option(function: str, name: str, known: Iterable[str], hints: Mapping[str, str] | None = None) -> Exception:
    """Return the error that a function has no option of a name: with its hint, or else the nearest of those known.

    >>> unknown_option("segment", "tiles", ["tile", "batch"]).args[0]
    'segment has no option tiles. Did you mean tile?'
    >>> unknown_option("segment", "color", ["tile", "batch"]).args[0]
    'segment has no option color. See help(tilenet.segment)'
    """
    near = get_close_matches(name, list(known), n=1)
    meant = f"Did you mean {near[0]}?" if near else f"See help(tilenet.{function})"
    return UnknownOption(f"{function} has no option {name}. {(hints or {}).get(name, meant)}")


def known_options(
    hints: Mapping[str, str] | None = None, more: Iterable[Parameter] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator of a public function, or of an `__init__`: unknown keyword arguments raise `UnknownOption`.

    `hints` says of arguments that the function does not have what to give instead, in sentences without their full
    stop; `more` is what the function takes by ``**``, which its signature then has, too.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        called, taken = function.__qualname__.removesuffix(".__init__"), signature(function)
        own = [*(of for of in taken.parameters.values() if of.kind is not of.VAR_KEYWORD), *more]
        known = [of.name for of in own]

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name not in known:
                    raise unknown_option(called, name, known, hints)
            return function(*args, **kwargs)

        vars(checked)["__signature__"] = taken.replace(parameters=own)
        return checked

    return decorate


def plain(value: Any) -> Any:
    """Return a value with NumPy's numbers and arrays, also in sequences and mappings, as Python's, which JSON can hold.

    >>> plain({"per axis": (1, 2), "how": "a"})
    {'per axis': [1, 2], 'how': 'a'}
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
