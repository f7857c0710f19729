"""Finishing a store: everything is verified, one sorted journal is written, and ``complete: true`` is set last."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

from tilenet.store.blocks import Blocks
from tilenet.store.damage import find_damage, read_verified
from tilenet.store.file_system import fsync_path, put_bytes, remove_parts, remove_tree, step, write_file
from tilenet.store.journal import FOLDER, MERGED, Written
from tilenet.store.leftovers import REPLACED
from tilenet.store.metadata import OWN, root_document

LOG, SHARE = "log.jsonl", "share"


def seal(blocks: Blocks, info: Mapping[str, Any]) -> None:
    """Verify every file and write the sorted journal, so that only the root document is left to write."""
    documents = _mended_documents(blocks)
    documents[blocks.layout.root] = Written.of(root_document(blocks.layout, info, complete=True))
    if damage := [found for found in find_damage(blocks) if found.block is not None]:
        raise blocks.lose(damage)
    lines = blocks.journal.sorted_lines(documents)
    write_file(blocks.path / OWN / MERGED, lines, within=blocks.path / OWN)
    step("sync folder", fsync_path, blocks.path / OWN)
    blocks.journal.documents = documents


def _mended_documents(blocks: Blocks) -> dict[str, Written]:
    """Rewrite any document that is not right, except the root document; return size and checksum of each."""
    fixed = {name: Written.of(data) for name, data in blocks.documents.items()}
    for name, written in fixed.items():
        if read_verified(blocks.path / name, written) is None:
            blocks.put(name, blocks.documents[name])
    return fixed


def write_root(blocks: Blocks, info: Mapping[str, Any], *, complete: bool) -> None:
    """Write the root document, which says whether the store is complete."""
    document = root_document(blocks.layout, info, complete=complete)
    write_file(blocks.path / blocks.layout.root, [document], within=blocks.path / OWN)
    step("sync folder", fsync_path, blocks.path)


def tidy(blocks: Blocks) -> None:
    """Remove what only a run in progress needs."""
    remove_parts(blocks.path / OWN)  # of killed workers, too: there may be no later run to remove them
    remove_tree(blocks.path / OWN / FOLDER)
    remove_tree(blocks.path / OWN / REPLACED)


def log(own: Path, event: str, **facts: Any) -> None:
    """Append a line to ``.tilenet/log.jsonl``, the one file that differs from run to run."""
    line = {"time": round(time(), 3), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **facts}
    put_bytes(own / LOG, os.O_APPEND, json.dumps(line).encode() + b"\n", names=("open log", "log"))


def events(own: Path) -> Iterator[dict[str, Any]]:
    """Yield what the log of a store says, line by line."""
    for line in (own / LOG).read_bytes().splitlines() if (own / LOG).exists() else []:
        with suppress(ValueError):  # cut short: skip it, logs are for people
            if isinstance(event := json.loads(line), dict):
                yield event


def last_shares(own: Path) -> int:
    """Return into how many shares the store was last divided, according to its log; 0 if it never was."""
    count = 0
    for event in events(own):
        with suppress(ValueError, TypeError, IndexError):
            count = int(event.get(SHARE, (0, count))[1])
    return count
