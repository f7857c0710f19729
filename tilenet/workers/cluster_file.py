"""The cluster file, which describes a cluster of jobs, and TLS files: read and checked before anything is started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilenet.errors import SettingsError, refuse_special_file

if TYPE_CHECKING:
    from distributed import Security

TYPES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
PARTS = {"type", "arguments", "adapt", "tls"}
# Arguments of dask-jobqueue that are lists: of a text it takes each letter for an entry, so that no worker ever starts.
LISTS = (
    *("worker_extra_args", "extra", "job_extra_directives", "job_extra", "job_directives_skip", "header_skip"),
    *("job_script_prologue", "env_extra"),
)
SIZE = re.compile(r"\d+(\.\d+)? *([KMGTP]i?B?|B)|\d{7,}", re.IGNORECASE)  # or bytes, if they may be meant
EXAMPLE = "such as {type: slurm, arguments: {cores: 8, memory: 32GB}, adapt: {minimum: 1, maximum: 40}}"


@dataclass(frozen=True)
class Tls:
    """Files for encrypted connections: Dask's ca-file, cert and key."""

    ca_file: str
    cert: str
    key: str

    def security(self) -> Security:
        """Return Dask's `Security`, with the same files for scheduler, worker and client."""
        from distributed import Security

        for path in (self.ca_file, self.cert, self.key):
            if not Path(path).is_file():
                raise SettingsError(f"{path}: no such file. TLS needs a CA file, a certificate and a key")
        parts = {
            f"tls_{role}_{part}": getattr(self, part)
            for role in ("client", "scheduler", "worker")
            for part in ("cert", "key")
        }
        return Security(require_encryption=True, tls_ca_file=self.ca_file, **parts)


def read_description(path: str | Path) -> tuple[str, dict[str, Any], dict[str, int], Tls | None]:
    """Return the checked type, arguments, adapt and TLS entries of a cluster file."""
    import yaml

    refuse_special_file(path)
    try:
        found = yaml.load(Path(path).read_text(), Loader=_loader())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}). Give a cluster file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: must have type, arguments and adapt, {EXAMPLE}")
    if unknown := sorted(map(str, set(found) - PARTS)):
        raise SettingsError(f"{path}: {unknown[0]} is none of {', '.join(sorted(PARTS))}")
    if str(found.get("type")) not in TYPES:
        raise SettingsError(f"{path}: type {found.get('type')!r} is none of {', '.join(TYPES)}")
    return (
        found["type"],
        _arguments(found.get("arguments") or {}, path),
        _adapt(found.get("adapt"), path),
        _tls(found.get("tls"), path),
    )


def _loader() -> Any:
    """Return a class that reads YAML as `yaml.SafeLoader` does, except for times."""
    import yaml

    # That reads 10:00:00 without quotes as the number 36000, to the base of 60, which Slurm takes for minutes.
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def integer(self, node: Any) -> Any:
            return node.value if ":" in node.value else self.construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.integer)
    return Loader


def _arguments(arguments: Any, path: str | Path) -> dict[str, Any]:
    if not isinstance(arguments, dict):
        raise SettingsError(f"{path}: arguments must be names with values, such as cores: 8")
    for name in LISTS:
        if not isinstance(value := arguments.get(name), list | None):
            raise SettingsError(f"{path}: {name} must be a list, such as [{str(value)!r}]")
    for name in {"cores", "processes"} & set(arguments):
        if type(value := arguments[name]) is not int or value < 1:
            raise SettingsError(f"{path}: {name} must be a whole number from 1, not {value!r}")
    if "memory" in arguments and not SIZE.fullmatch(str(memory := arguments["memory"])):
        raise SettingsError(f"{path}: memory must be a number with a unit, such as 32GB, not {memory!r}")
    if not isinstance(arguments.get("scheduler_options"), dict | None):
        raise SettingsError(f"{path}: scheduler_options must be names with values, such as {{port: 8786}}")
    return dict(arguments)


def _adapt(found: Any, path: str | Path) -> dict[str, int]:
    if not (
        isinstance(found, Mapping)
        and set(found) == {"minimum", "maximum"}
        and all(type(n) is int for n in found.values())
        and 0 <= found["minimum"] <= found["maximum"] > 0
    ):
        raise SettingsError(
            f"{path}: adapt must be two numbers of jobs, such as {{minimum: 1, maximum: 40}}, the second from 1, and "
            f"not below the first"
        )
    return dict(found)


def _tls(found: Any, path: str | Path) -> Tls | None:
    if found is None:
        return None
    if not isinstance(found, Mapping) or set(found) != {"ca_file", "cert", "key"}:
        raise SettingsError(f"{path}: tls must have ca_file, cert and key, each a file")
    return Tls(**{name: str(file) for name, file in found.items()})
