"""What a user wants segmented, as a new job or as the job of an output that exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilenet import machine
from tilenet.errors import ImageError, OutputMismatch, SettingsError, TilenetError, closed_on_error
from tilenet.footprint import Footprint
from tilenet.jobs.image_times import remark_written_since
from tilenet.jobs.job import Job, identity_of
from tilenet.jobs.mismatch import Difference, begun_with, check_info, contradiction, remark_other_version
from tilenet.jobs.options import Options
from tilenet.jobs.setup import found_model, make_job
from tilenet.masks.label_target import LabelTarget
from tilenet.models.named import load_named
from tilenet.predict import predictors
from tilenet.readers import open_image
from tilenet.readers.image import closing
from tilenet.scaling import Scaling
from tilenet.store import Store

# Devices and engines that name none.
UNSAID = ("", None, "auto")


@dataclass(frozen=True)
class Request:
    """What is to be segmented, with which model and options: the arguments of `make_job`.

    `facts` are for the first line of the log of the output; `explain` says why an output does not fit, and what to do.
    `load` returns the model of a name.
    """

    image: Any
    model: Any
    options: Options = field(default_factory=Options)
    footprint: Footprint | None = None
    target: LabelTarget | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    explain: Callable[[Difference], str] = begun_with
    load: Callable[[str | Path], Any] = load_named

    def new_job(self) -> Job:
        """Return the job of a new output."""
        return self._job(self.options, self.target)

    def _job(self, options: Options, target: LabelTarget | None = None) -> Job:
        model = found_model(self.model, self.load)
        return make_job(self.image, model, options, footprint=self.footprint, target=target)

    def job_like(self, info: Mapping[str, Any], name: str | Path) -> Job:
        """Return the job of an output that exists already, whose `info` supplies the options that were not given.

        `OutputMismatch` if the output was made with other settings.
        """
        check_info(info, name)
        return self._job_like(info, name, {})

    def job_like_complete(self, info: Mapping[str, Any], name: str | Path) -> Job:
        """Return the job of a complete output, for which nothing is computed; parameters and errors as `job_like`.

        This machine needs neither the device nor the engine that the output was made with. They are compared only
        if the user named one: ``auto`` is either.
        """
        check_info(info, name)
        said = {"device": (self.options.device or "").partition(":")[0], "engine": self.options.engine}
        stated = {k: info["record"].get(k) if value in UNSAID else value for k, value in said.items()}
        # On the device and engine that every machine has; the memory was for computing.
        options = replace(self.options, device="cpu", engine="plain", memory=None)
        return replace(self, options=options)._job_like(info, name, stated)

    def _job_like(self, info: Mapping[str, Any], name: str | Path, stated: Mapping[str, Any]) -> Job:
        """Return the job of an output, whose record is compared with that of the job, but for what is `stated`."""
        options, scaling = self.options.filled_from(info["record"]), Scaling.from_json(info["scaling"])
        try:
            job = self._job(options)
        except (ImageError, SettingsError):
            self.refuse_another_image(info, name)
            self.refuse_another_model(info, name)
            self._refuse(info, {**info, "record": {**info["record"], **self._backend(options), **stated}}, name)
            raise
        with closed_on_error(job):
            here = job.info(scaling)
            self._refuse(info, {**here, "record": {**here["record"], **stated}}, name)
        return job

    def refuse_another_image(self, info: Mapping[str, Any], name: str | Path) -> None:
        """Raise `OutputMismatch` if the image is another one; nothing is known of one that cannot be opened."""
        try:
            image = open_image(self.image, axes=self.options.axes, missing=self.options.missing or "error")
        except TilenetError:
            return
        with closing(image, self.image):
            self._refuse(info, {**info, "image": image.identity()}, name)

    def refuse_another_model(self, info: Mapping[str, Any], name: str | Path) -> None:
        """Raise `OutputMismatch` if the model is another one, as far as it can be compared without an image."""
        found = found_model(self.model, self.load)
        identity = identity_of(found.network, found.card, predictors.footprint_of(found.network, self.footprint))
        self._refuse(info, {**info, "model": {**info["model"], **identity}}, name)

    def _backend(self, options: Options) -> dict[str, str]:
        """Return device and engine as a record has them, in case the recorded options do not fit because of these."""
        here = {} if self.options.engine in UNSAID else {"engine": str(self.options.engine)}
        with suppress(SettingsError):
            here["device"] = machine.find_device(options.device or "auto").type
        return here

    def _refuse(self, info: Mapping[str, Any], here: Mapping[str, Any], name: str | Path) -> None:
        """Raise `OutputMismatch` if the stored info of an output and that of a job contradict each other."""
        if differs := contradiction(info, here):
            raise OutputMismatch(f"{name}: {self.explain(differs)}")

    def job_for(self, store: Store, *, network_done: bool = False) -> Job:
        """Return the job of a store opened for resuming, where the network may be done; on error, close the store."""
        job_like = self.job_like_complete if store.complete or network_done else self.job_like
        with closed_on_error(store):
            return job_like(store.info, store.path)

    def job_to_fill(self, store: Store) -> Job:
        """Do the same for a store whose blocks are to be computed here: say so if these may not fit those it has."""
        job = self.job_for(store)
        with closed_on_error(job, store):
            if not store.complete:
                remark_other_version(store)
                remark_written_since(store, job.image.name)
                job.remark_other_bits(store, store.path)
        return job
