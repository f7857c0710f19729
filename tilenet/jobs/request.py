"""What a user wants segmented, as a new job or as the job of an output that exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilenet import machine
from tilenet.errors import ImageError, SettingsError, TilenetError
from tilenet.footprint import Footprint
from tilenet.jobs.image_times import remark_written_since
from tilenet.jobs.job import Job, identity_of, named_as_now
from tilenet.jobs.mismatch import check_info, refuse_contradiction, remark_other_version
from tilenet.jobs.options import Options
from tilenet.jobs.setup import found_model, make_job
from tilenet.masks.label_target import LabelTarget
from tilenet.predict import predictors
from tilenet.readers import open_image
from tilenet.readers.image import closing
from tilenet.scaling import Scaling
from tilenet.store import Store

Refusal = Callable[[Mapping[str, Any], Mapping[str, Any], str | Path], None]
# Devices and engines that name none.
UNSAID = ("", None, "auto")


@dataclass(frozen=True)
class Request:
    """What is to be segmented, with which model and options: the arguments of `make_job`.

    `facts` are for the first line of the log of the output.
    """

    image: Any
    model: Any
    options: Options = field(default_factory=Options)
    footprint: Footprint | None = None
    target: LabelTarget | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def new_job(self) -> Job:
        """Return the job of a new output."""
        return make_job(self.image, self.model, self.options, footprint=self.footprint, target=self.target)

    def job_like(self, info: Mapping[str, Any], name: str | Path, *, refuse: Refusal | None = None) -> Job:
        """Return the job of an output that exists already.

        Parameters
        ----------
        info : mapping
            `Job.info` as stored in the output; supplies the options that the caller did not give.
        name : str or path
            Name of the output, for messages.
        refuse : callable, optional
            Raises if the stored info and that of the new job contradict each other; default `refuse_contradiction`,
            for a run to be resumed.

        Raises
        ------
        OutputError, OutputMismatch
            If the output does not say how it was made, or was made with other settings.
        """
        check_info(info, name)
        options, scaling = self.options.filled_from(info["record"]), Scaling.from_json(info["scaling"])
        refuse = refuse or refuse_contradiction
        try:
            job = make_job(self.image, self.model, options, footprint=self.footprint)
        except (ImageError, SettingsError):
            self.refuse_another_image(info, name)
            self.refuse_another_model(info, name, refuse)
            self._refuse_another_backend(info, name, options.device, refuse)
            raise
        try:
            refuse(named_as_now(info, job.network), job.info(scaling), name)
        except BaseException:
            job.close()
            raise
        return job

    def refuse_another_image(self, info: Mapping[str, Any], name: str | Path) -> None:
        """Raise `OutputMismatch` if the image is another one; nothing is known of one that cannot be opened."""
        try:
            image = open_image(self.image, axes=self.options.axes, missing=self.options.missing or "error")
        except TilenetError:
            return
        with closing(image, self.image):
            refuse_contradiction(info, {**info, "image": image.identity()}, name)

    def refuse_another_model(self, info: Mapping[str, Any], name: str | Path, refuse: Refusal) -> None:
        """Call `refuse` for the model alone, as far as it can be compared without an image."""
        found = found_model(self.model)
        identity = identity_of(found.network, found.card, predictors.footprint_of(found.network, self.footprint))
        info = named_as_now(info, found.network)
        refuse(info, {**info, "model": {**info["model"], **identity}}, name)

    def _refuse_another_backend(
        self, info: Mapping[str, Any], name: str | Path, device: str | None, refuse: Refusal
    ) -> None:
        """Call `refuse` for device and engine alone, in case the recorded options do not fit because of them."""
        here = {} if self.options.engine in UNSAID else {"engine": self.options.engine}
        with suppress(SettingsError):
            here["device"] = machine.find_device(device or "auto").type
        refuse(info, {**info, "record": {**info["record"], **here}}, name)

    def job_like_complete(self, info: Mapping[str, Any], name: str | Path, *, refuse: Refusal | None = None) -> Job:
        """Return the job of a complete output, for which nothing is computed; parameters and errors as `job_like`.

        This machine needs neither the device nor the engine that the output was made with. They are compared only
        if the user named one: ``auto`` is either.
        """
        refuse_another = refuse or refuse_contradiction
        said = {"device": (self.options.device or "").partition(":")[0], "engine": self.options.engine}
        given = {option: value for option, value in said.items() if value not in UNSAID}

        def refuse_given(found: Mapping[str, Any], here: Mapping[str, Any], place: str | Path) -> None:
            made = {option: found["record"].get(option) for option in said}
            refuse_another(found, {**here, "record": {**here["record"], **made, **given}}, place)

        # On the device and engine that every machine has; the memory was for computing.
        options = replace(self.options, device="cpu", engine="plain", memory=None)
        return replace(self, options=options).job_like(info, name, refuse=refuse_given)

    def job_for(self, store: Store, *, computed: bool = False) -> Job:
        """Return the job of a store opened for resuming; closes the store if it cannot be resumed.

        `computed` says that the network has nothing left to do, as if the store were complete.
        """
        make_job = self.job_like_complete if store.complete or computed else self.job_like
        try:
            return make_job(store.info, store.path)
        except BaseException:
            store.close()
            raise

    def job_to_fill(self, store: Store) -> Job:
        """Do the same for a store whose blocks are to be computed here: say so if these may not fit those it has.

        The version of tilenet may be another, the image may have been written since, the last bits may be others.
        """
        job = self.job_for(store)
        try:
            if not store.complete:
                remark_other_version(store)
                remark_written_since(store, job.image.name)
                job.remark_other_bits(store, store.path)
        except BaseException:
            job.close()
            store.close()
            raise
        return job
