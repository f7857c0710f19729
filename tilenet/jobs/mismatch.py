"""Whether an output was begun, or made, in another way than a run would continue or repeat it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tilenet
from tilenet.errors import ANEW, OutputError
from tilenet.probe.claims import difference
from tilenet.store import Store
from tilenet.store.metadata import lacking_parts

# Fields that may differ between two runs on one output without changing its bytes: locations, and text for people.
SAME_BYTES = {"path", "source", "training_data", "licence", "notes", "metrics"}
ANSWER = ("model", "answer")
# The event in a store's log, and its fact, that name another version of tilenet that goes on with the store.
VERSION = "version"
LOG = logging.getLogger("tilenet")
# Most characters of a value that an error message quotes.
LONGEST_QUOTE = 60


def check_info(info: Mapping[str, Any], name: str | Path) -> None:
    """Raise `OutputError` if an output no longer says how it was made."""
    if lacking := lacking_parts(info):
        raise OutputError(f"{name}: its {lacking[0]} was changed or removed. To replace the mask, {ANEW}")


class Difference(NamedTuple):
    """A difference between two runs that could change the bytes: its part and field, and both values as text."""

    part: str
    field: str
    old: str
    new: str


def contradiction(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Difference | None:
    """Return the first difference that could change the bytes between the `Job.info` of an output and that of a run.

    Another model differs in the record too, in settings that nobody gave: the record is compared last.
    """
    wanted = json.loads(json.dumps(wanted))
    for part in ("image", "model", "card", "record"):
        # What is asked for comes first, for other settings follow from it.
        for field_ in sorted({*found[part], *wanted[part]} - SAME_BYTES, key=lambda name: (name != "output", name)):
            old, new = found[part].get(field_), wanted[part].get(field_)
            if (part, field_) == ANSWER and old:
                if off := difference(old, new):
                    return Difference(part, field_, "another", f"off by {off:.2g} of its range")
            elif old != new:
                return Difference(part, field_, _said(old), _said(new))
    return None


def begun_with(differs: Difference) -> str:
    """Return why a run cannot be resumed, and what to do."""
    part, field_, old, new = differs
    what = field_ if part == "record" else f"{part} {field_}"
    how = "Leave the option out" if part == "record" else f"Give the {part} that the run was started with"
    return f"was begun with {what} = {old}, and now it is {new}. {how}, or {ANEW}"


def remark_other_version(store: Store) -> None:
    """Say in a warning and in the store's log that another version of tilenet goes on with a store; once for each."""
    noted = [event.get(VERSION) for event in store.events() if event.get("event") == VERSION]
    if (then := [store.info.get(VERSION), *noted][-1]) != tilenet.__version__:
        LOG.warning("%s: tilenet %s wrote it so far, and %s goes on with it", store.path, then, tilenet.__version__)
        store.log(VERSION, version=tilenet.__version__)


def _said(value: Any) -> str:
    """Return a value of a run record as text for messages: a rule's method comes first, a checksum is shortened.

    >>> _said({"method": "linear", "divide": 2}), _said(None), _said([1, 2])
    ('linear (divide 2)', 'not given', '[1, 2]')
    """
    if not isinstance(value, Mapping):
        text = "not given" if value in (None, "") else str(value)
        return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
    more = ", ".join(f"{k} {str(v)[:12] if k == 'sha256' else v}" for k, v in value.items() if k != "method")
    method = str(value.get("method", ""))
    return f"{method} ({more})" if method and more else method or more or "nothing"
