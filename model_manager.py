"""The model manager: turns the models that a job names into checked files that the engine sees.

The life of a model file:

    find     a file name is looked up in the model store (`worker.models.store`); a reference
             (CivitAI, Hugging Face, https, sha256) that was used before is found without a network
    fetch    a new reference is downloaded, once for all workers
    check    the file is whole, of the right kind, and of the checkpoint's family
    link     a link to it is made in the engine's folder

The engine never sees an unchecked file: a damaged checkpoint would poison A1111 until its next
restart. On the command line: `python model_manager.py --help`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from worker.config.settings import Settings
from worker.errors import (
    JobError,
    ModelFileInvalid,
    ModelNotFound,
    ModelNotSupported,
    ModelUnsafe,
)
from worker.formats.model_file import FOLDERS, ModelFile
from worker.formats.names import Kind
from worker.hosts.registry import Hosts
from worker.http.client import NO_CANCEL, HttpLimits, SafeHttpClient
from worker.job import compatibility
from worker.job.model_fields import LoraReference
from worker.job.models import Models, assign_files, lora_tag, wanted_models
from worker.job.prompt import add_lora_tags, lora_tags
from worker.job.reference import Sha256, StoreName, Wanted
from worker.job.request import Txt2ImgRequest
from worker.models import commands
from worker.models.download.limits import DEFAULT, DownloadLimits
from worker.models.merge.merged_checkpoints import MergedCheckpoints
from worker.models.store import hash_cache
from worker.models.store.fetcher import Fetcher
from worker.models.store.progress import report_for
from worker.models.store.references import References
from worker.models.store.space import SpaceBudget
from worker.models.store.store import Store

log = logging.getLogger("worker.models")


class ModelManager:
    """Finds, fetches, checks and links the models that jobs name. Thread-safe.

    Args:
        settings: of the worker.
        http_limits: of every request to a host.
        download_limits: of every download.
        clock: seconds since the epoch.

    Attributes:
        counts: how many models jobs have `found` in the store and `fetched` since the start.
    """

    def __init__(
        self,
        settings: Settings,
        http_limits: HttpLimits | None = None,
        download_limits: DownloadLimits = DEFAULT,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counts: Counter[str] = Counter(found=0, fetched=0)
        self._engine = settings.engine
        self._lock = threading.Lock()  # several jobs can be prepared at once
        self._in_use: list[Models] = []
        self._loaded: ModelFile | None = None
        self._webui_dir = settings.webui_dir
        self.store = Store(
            settings.webui_dir,
            settings.models_dir,
            settings.baked_models_dir,
            pickles=settings.allow_pickles,
            diffusers=settings.engine == "embedded",
        )
        self.merged = MergedCheckpoints(self.store.baked, self.store.fetched)
        budget = settings.models_budget_gb
        self.space = SpaceBudget(
            self.store.fetched, None if budget is None else round(budget * 1e9), clock=clock
        )
        own, baked = (store.root / "references" for store in (self.store.fetched, self.store.baked))
        hosts = Hosts.from_settings(settings)
        trusted = [*settings.trusted_hosts, *settings.mirrors]
        self.fetcher = Fetcher(
            SafeHttpClient(trusted, hosts.tokens, http_limits),
            hosts,
            self.store.fetched,
            self.space,
            find=self.store.blob,
            references=References(own, baked, clock=clock),
            pickles=settings.allow_pickles,
            report_for=report_for,
            is_taken=self.store.is_taken,
            limits=download_limits,
        )

    # For jobs --------------------------------------------------------------------------------

    def prepare_models_for_request(
        self, request: Txt2ImgRequest, stop: threading.Event = NO_CANCEL
    ) -> tuple[Models, bool]:
        """Find, fetch, check and link every model of the job, and pin them until `release`.

        Returns:
            The files, and whether the engine must read its folders again to see them.

        Raises:
            WorkerError: names the model and the reason; the engine was not used yet.
        """
        models = self.find_models(request, stop)
        with self._lock:
            linked = {file: self.store.link(file) for file in models.engine_files()}
            new = [file for file, is_new in linked.values() if is_new]
            hash_cache.seed(self._webui_dir, [file for file in new if file.kind == "checkpoint"])
            models = models.renamed({file: named for file, (named, _) in linked.items()})
            self._in_use.append(models)
            self._pin()
        return models, bool(new)

    def release(self, models: Models) -> None:
        """Unpin the models of a job that has ended."""
        with self._lock:
            self._in_use.remove(models)
            self._loaded = models.loaded or self._loaded
            self._pin()

    def find_models(self, request: Txt2ImgRequest, stop: threading.Event = NO_CANCEL) -> Models:
        """Find, fetch and check every model of the job, without linking them.

        Raises:
            WorkerError: names the model and the reason.
        """
        models = self._find_all(request, stop)
        if self._may_be_merged(request, models):
            models = replace(models, merged=self.merged.find(models))
        return self._check(models)

    def ensure(
        self, wanted: Sequence[Wanted], stop: threading.Event = NO_CANCEL
    ) -> list[ModelFile]:
        """A file for each model: found in the store, or fetched, several in parallel."""
        files = {one: self._find(one) for one in wanted}
        missing = [one for one in wanted if files[one] is None]
        with self._lock:
            self.counts.update(found=len(wanted) - len(missing), fetched=len(missing))
        if missing:
            fetched = self.fetcher.fetch_all(missing, stop)
            files |= {one: blob.as_file() for one, blob in fetched.items()}
        return [_with_kind_of(one, file) for one in wanted if (file := files[one])]

    def build_lora_prompt(
        self, base_prompt: str, loras: Iterable[tuple[ModelFile, LoraReference]]
    ) -> str:
        """The prompt, with a tag added for each LoRA that has no tag in it yet."""
        return add_lora_tags(base_prompt, [lora_tag(file, ref) for file, ref in loras])

    def get_cache_stats(self) -> dict[str, dict[str, int]]:
        """`{"checkpoints": {"count": 2, "total_size": <bytes>}, "loras": ..., "vaes": ...}`."""
        return self.store.stats()

    def health(self) -> dict[str, Any]:
        """How many models were found and fetched, the bytes fetched, and what is stored."""
        fetched = {"bytes_fetched": self.fetcher.bytes_fetched}
        return {**self.counts, **fetched, "stored": self.get_cache_stats()}

    def template_state(self, request: Txt2ImgRequest) -> dict[str, bool]:
        """Whether all models of a template are in the image, and whether they are merged there."""
        models = self._find_template(request, self._find_baked)
        return {"baked": models is not None, "merged": bool(models and models.merged)}

    # For the engine's start ------------------------------------------------------------------

    def link_everything(self) -> int:
        """Link every good file before the engine starts; returns their number."""
        self.store.remove_dangling_links()
        linked: list[ModelFile] = []
        for kind in FOLDERS:
            for file in self.store.files(kind):
                try:
                    file.check()
                except JobError as error:
                    log.warning("%s: %s The engine will not see it.", file.path, error.message)
                else:
                    linked.append(self.store.link(file)[0])
        hash_cache.seed(self._webui_dir, [file for file in linked if file.kind == "checkpoint"])
        return len(linked)

    def first_checkpoint(self, request: Txt2ImgRequest) -> str | None:
        """The checkpoint that the template's jobs will load, if all of its models are present."""
        models = self._find_template(request, self._find)
        if models is None or models.loaded is None:
            return None
        try:
            self._check(models)
        except JobError as error:
            log.warning("the default template cannot be used: %s", error)
            return None
        return self.store.link(models.loaded)[0].stem

    # One model -------------------------------------------------------------------------------

    def _find(self, wanted: Wanted) -> ModelFile | None:
        """The file, if it can be found without a network.

        Raises:
            ModelNotFound: the job gives a file name that the store does not have.
        """
        ref = wanted.ref
        if isinstance(ref, StoreName):
            return self._find_by_name(wanted.kind or "checkpoint", ref.name)
        sha256 = self._expected_sha256(wanted)
        file = self.store.by_sha256(sha256) if sha256 else None
        return file or self._find_operators_file(wanted)

    def _find_operators_file(self, wanted: Wanted) -> ModelFile | None:
        """A file that the operator added; it is hashed only if the job gives its file name."""
        if not isinstance(wanted.ref, Sha256) or not wanted.filename:
            return None
        file = self.store.find(wanted.kind or "checkpoint", wanted.filename)
        return file if file and file.sha256() == wanted.ref.digest else None

    def _expected_sha256(self, wanted: Wanted) -> str | None:
        """The hash in the job, or that of the file that the reference resolved to last time."""
        ref = wanted.ref
        of_ref = ref.digest if isinstance(ref, Sha256) else None
        return wanted.sha256 or of_ref or self.fetcher.references.sha256(ref)

    def _find_baked(self, wanted: Wanted) -> ModelFile | None:
        """The file, if it is in the image; does not count as a use."""
        ref = wanted.ref
        if isinstance(ref, StoreName):
            file = self.store.find(wanted.kind or "checkpoint", ref.name)
            return file if file and self.store.is_baked(file) else None
        sha256 = self._expected_sha256(wanted)
        blob = self.store.baked.find(sha256) if sha256 else None
        return blob.as_file() if blob else None

    def _find_template(
        self, request: Txt2ImgRequest, find: Callable[[Wanted], ModelFile | None]
    ) -> Models | None:
        """The models of a template, if `find` finds them all; nothing is fetched."""
        files: dict[tuple[str, int], ModelFile] = {}
        for field, wanted in wanted_models(request).items():
            try:
                file = find(wanted)
            except ModelNotFound:
                return None
            if file is None:
                return None
            files[field] = file
        models = assign_files(request, files)
        return replace(models, merged=self.merged.find(models)) if models.loras else models

    def _find_by_name(self, kind: Kind, name: str) -> ModelFile:
        """By file name or stem; a LoRA also by the name from its training, as in A1111."""
        file = self.store.find(kind, name)
        if file is None and kind == "lora":
            named = (f for f in self.store.files("lora") if _trained_name(f) == name)
            file = next(named, None)
        if file is None:
            raise self.store.not_found(kind, name)
        if file.verified_sha256:
            self.store.by_sha256(file.verified_sha256)  # records the use
        return file

    # One job ---------------------------------------------------------------------------------

    def _find_all(self, request: Txt2ImgRequest, stop: threading.Event) -> Models:
        wanted = wanted_models(request)
        files = dict(zip(wanted, self.ensure(list(wanted.values()), stop), strict=True))
        models = assign_files(request, files)
        return replace(models, written_loras=self._written_loras(request, models.loras))

    def _may_be_merged(self, request: Txt2ImgRequest, models: Models) -> bool:
        """Whether a merged checkpoint can replace the template's checkpoint and LoRAs.

        Not with a second checkpoint, because LoRA tags apply to that one too; and not if the
        prompt contains a tag of one of the LoRAs, because then the weight in the tag applies.
        """
        loras = {file for file, _ in models.loras}
        second = models.refiner or models.hr_checkpoint
        written = loras & set(models.written_loras.values())
        return bool(request.template and models.checkpoint and loras and not second and not written)

    def _written_loras(
        self, request: Txt2ImgRequest, loras: Sequence[tuple[ModelFile, LoraReference]]
    ) -> dict[str, ModelFile]:
        """The files that tags in the prompt mean; the job's own LoRAs come first."""
        if request.disable_extra_networks:
            return {}
        own = {name: file for file, ref in loras for name in (file.stem, *ref.stems)}
        tags = lora_tags(request.prompt) + lora_tags(request.hr_prompt)
        return {tag.name: own.get(tag.name) or self._find_by_name("lora", tag.name) for tag in tags}

    def _pin(self) -> None:
        """Protect from eviction what jobs use, and the checkpoint that the engine has loaded."""
        files = {file for models in self._in_use for file in models.files()}
        files |= {self._loaded} if self._loaded else set()
        self.space.pinned = frozenset(
            file.verified_sha256 for file in files if file.verified_sha256
        )

    def _check(self, models: Models) -> Models:
        """Check that each file can be used, alone and with the checkpoints; adds the notes.

        Raises:
            ModelFileInvalid, ModelNotSupported, ModelMismatch: names the file and the reason.
        """
        compatibility.check_files(models, self._engine)
        return replace(models, notes=compatibility.check_together(models, self._engine))


def _with_kind_of(wanted: Wanted, file: ModelFile) -> ModelFile:
    """The file with the kind that this job names, so that it is checked as that kind."""
    return replace(file, kind=wanted.kind) if wanted.kind else file


def _trained_name(file: ModelFile) -> str | None:
    try:
        return file.metadata().get("ss_output_name")
    except (ModelFileInvalid, ModelNotFound, ModelNotSupported, ModelUnsafe):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return commands.run(arguments, ModelManager)


if __name__ == "__main__":
    sys.exit(main())
