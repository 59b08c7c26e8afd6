"""The model manager: from the models that a job names to checked files that the engine can see.

The life of a model file:

    a name         is looked up in the model store (`worker.models.store`)
    a reference    (CivitAI, Hugging Face, https, sha256) that was seen before leads to its file
                   without a network; a new one is downloaded, once for all workers
    the file       is checked: whole, of the right kind, of the checkpoint's family
    a link         to it appears in the engine's folder

The engine never sees a file that was not checked before: a damaged checkpoint would poison A1111
until its next restart. On the command line: `python model_manager.py --help`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from worker.config.settings import Settings
from worker.errors import (
    FetchError,
    JobError,
    ModelFileInvalid,
    ModelNotFound,
    ModelNotSupported,
    ModelUnsafe,
)
from worker.formats import architecture
from worker.formats.model_file import FOLDERS, ModelFile
from worker.formats.names import Kind
from worker.hosts.registry import Hosts
from worker.http.client import NO_CANCEL, HttpLimits, SafeHttpClient
from worker.job.model_fields import LoraReference
from worker.job.models import Models, assign_files, lora_tag, wanted_models
from worker.job.prompt import add_lora_tags, lora_tags
from worker.job.reference import Sha256, StoreName, Wanted
from worker.job.request import Txt2ImgRequest
from worker.models import commands
from worker.models.download.limits import DEFAULT, DownloadLimits
from worker.models.merge.store import MergedCheckpoints
from worker.models.store import hash_cache
from worker.models.store.fetcher import Fetcher
from worker.models.store.progress import report_for
from worker.models.store.references import References
from worker.models.store.space import SpaceBudget
from worker.models.store.store import Store

log = logging.getLogger("worker.models")

AT_ONCE = 4  # files that are fetched in parallel; each has several connections
_LOOK_EVERY = 0.1  # seconds


class ModelManager:
    """Finds, fetches, checks and links the models that jobs name. Thread-safe.

    Attributes:
        counts: `found` and `fetched` models of jobs since the start.
    """

    def __init__(
        self,
        settings: Settings,
        http_limits: HttpLimits | None = None,
        download_limits: DownloadLimits = DEFAULT,
    ) -> None:
        self.counts: Counter[str] = Counter(found=0, fetched=0)
        self._engine = settings.engine
        self._lock = threading.Lock()  # around what jobs that are prepared at once share
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
            self.store.fetched, None if budget is None else round(budget * 1e9)
        )
        hosts = Hosts.from_settings(settings)
        http = SafeHttpClient(
            [*settings.trusted_hosts, *settings.mirrors], hosts.tokens, http_limits
        )
        self.fetcher = Fetcher(
            http,
            hosts,
            self.store.fetched,
            self.space,
            find=self.store.blob,
            references=References(
                self.store.fetched.root / "references", self.store.baked.root / "references"
            ),
            pickles=settings.allow_pickles,
            report_for=report_for,
            is_taken=self.store.is_taken,
            limits=download_limits,
        )

    # For jobs --------------------------------------------------------------------------------

    def prepare_models_for_request(
        self, request: Txt2ImgRequest, stop: threading.Event = NO_CANCEL
    ) -> tuple[Models, bool]:
        """Make every model of the job usable; nothing evicts them until `release`.

        Returns:
            The files, and whether the engine must read its folders again to see them.

        Raises:
            WorkerError: before the engine is asked for anything; it says which model and why.
        """
        models = self.find_models(request, stop)
        with self._lock:
            linked = {file: self.store.link(file) for file in models.engine_files()}
            new = [file for file, is_new in linked.values() if is_new]
            hash_cache.seed(self._webui_dir, [file for file in new if file.kind == "checkpoint"])
            models = models.renamed({file: seen for file, (seen, _) in linked.items()})
            self._in_use.append(models)
            self._pin()
        return models, bool(new)

    def release(self, models: Models) -> None:
        """The job has ended."""
        with self._lock:
            self._in_use.remove(models)
            self._loaded = models.loaded or self._loaded
            self._pin()

    def find_models(self, request: Txt2ImgRequest, stop: threading.Event = NO_CANCEL) -> Models:
        """Every model of the job, found or fetched, and checked; the engine sees none of it yet.

        Raises:
            WorkerError: it says which model and why.
        """
        models = self._find_all(request, stop)
        if self._may_be_merged(request, models):
            models = replace(models, merged=self.merged.find(models))
        self._check(models)
        return models

    def ensure(
        self, wanted: Sequence[Wanted], stop: threading.Event = NO_CANCEL
    ) -> list[ModelFile]:
        """Each of them as a checked file: found in the store, or fetched, several at once."""
        files = [self._find(one) for one in wanted]
        missing = [one for one, file in zip(wanted, files, strict=True) if file is None]
        with self._lock:
            self.counts.update(found=len(wanted) - len(missing), fetched=len(missing))
        if missing:
            fetched = self._fetch_all(missing, stop)
            files = [file or fetched[one] for one, file in zip(wanted, files, strict=True)]
        return [_as_named(file, one) for one, file in zip(wanted, files, strict=True) if file]

    def build_lora_prompt(
        self, base_prompt: str, loras: Iterable[tuple[ModelFile, LoraReference]]
    ) -> str:
        """The prompt with a tag for each LoRA that it does not name yet."""
        return add_lora_tags(base_prompt, [lora_tag(file, ref) for file, ref in loras])

    def get_cache_stats(self) -> dict[str, dict[str, int]]:
        """`{"checkpoints": {"count": 2, "total_size": <bytes>}, "loras": ..., "vaes": ...}`."""
        return self.store.stats()

    def health(self) -> dict[str, Any]:
        """How often jobs found their models here, what was fetched, and what is stored."""
        fetched = {"bytes_fetched": self.fetcher.bytes_fetched}
        return {**self.counts, **fetched, "stored": self.get_cache_stats()}

    def template_state(self, request: Txt2ImgRequest) -> dict[str, bool]:
        """Whether all that a template names is in the image, and whether it is merged there."""
        models = self._here(request, self._find_baked)
        return {"baked": models is not None, "merged": bool(models and models.merged)}

    # For the engine's start ------------------------------------------------------------------

    def link_everything(self) -> int:
        """Show every good file to an engine that is about to start; return how many."""
        self.store.remove_dangling_links()
        linked: list[ModelFile] = []
        for kind in FOLDERS:
            for file in self.store.files(kind):
                try:
                    if file.verified_sha256 is None:  # a fetched one was checked when it came
                        file.check()
                except JobError as error:
                    log.warning("%s: %s The engine will not see it.", file.path, error.message)
                else:
                    linked.append(self.store.link(file)[0])
        hash_cache.seed(self._webui_dir, [file for file in linked if file.kind == "checkpoint"])
        return len(linked)

    def first_checkpoint(self, request: Txt2ImgRequest) -> str | None:
        """Name of the checkpoint that a template's jobs will need, if all of it is here."""
        models = self._here(request, self._find)
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
        """The file, if it can be had without a network.

        Raises:
            ModelNotFound: it is named by a file name that the store does not have.
        """
        ref = wanted.ref
        if isinstance(ref, StoreName):
            return self._find_by_name(wanted.kind or "checkpoint", ref.name)
        known = self._verified_sha256(wanted)
        file = self.store.by_sha256(known) if known else None
        return file or self._find_own(wanted)

    def _find_own(self, wanted: Wanted) -> ModelFile | None:
        """A file that the operator put there: it is hashed only where the job says which it is."""
        if not isinstance(wanted.ref, Sha256) or not wanted.filename:
            return None
        file = self.store.find(wanted.kind or "checkpoint", wanted.filename)
        return file if file and file.sha256() == wanted.ref.digest else None

    def _verified_sha256(self, wanted: Wanted) -> str | None:
        ref = wanted.ref
        of_ref = ref.digest if isinstance(ref, Sha256) else None
        return wanted.sha256 or of_ref or self.fetcher.references.sha256(ref)

    def _find_baked(self, wanted: Wanted) -> ModelFile | None:
        """The file if it is one of the image's own; that it is looked at is no use of it."""
        ref = wanted.ref
        if isinstance(ref, StoreName):
            file = self.store.find(wanted.kind or "checkpoint", ref.name)
            return file if file and self.store.is_baked(file) else None
        known = self._verified_sha256(wanted)
        blob = self.store.baked.find(known) if known else None
        return blob.as_file() if blob else None

    def _here(
        self, request: Txt2ImgRequest, find: Callable[[Wanted], ModelFile | None]
    ) -> Models | None:
        """The models of a template if `find` has them all; nothing is fetched."""
        files: dict[tuple[str, int], ModelFile] = {}
        for place, wanted in wanted_models(request).items():
            try:
                file = find(wanted)
            except ModelNotFound:
                return None
            if file is None:
                return None
            files[place] = file
        models = assign_files(request, files)
        return replace(models, merged=self.merged.find(models)) if models.loras else models

    def _find_by_name(self, kind: Kind, name: str) -> ModelFile:
        """By file name or stem; a LoRA else, as in A1111, by the name its training gave it."""
        file = self.store.find(kind, name)
        if file is None and kind == "lora":
            named = (f for f in self.store.files("lora") if _trained_name(f) == name)
            file = next(named, None)
        if file is None:
            raise self.store.not_found(kind, name)
        if file.verified_sha256:
            self.store.by_sha256(file.verified_sha256)  # notes the use
        return file

    def _fetch_all(
        self, missing: Sequence[Wanted], stop: threading.Event
    ) -> dict[Wanted, ModelFile]:
        """Fetch in parallel; the first error ends the others, what has arrived is kept."""
        halt = threading.Event()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            futures = {
                # with the job's id for the log, and who hears how far it is
                one: pool.submit(copy_context().run, self._fetch, one, halt)
                for one in dict.fromkeys(missing)
            }
            running = set(futures.values())
            try:
                while running:
                    done, running = wait(running, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
                    failed = next((error for one in done if (error := one.exception())), None)
                    if failed:
                        raise failed
                    if stop.is_set():
                        halt.set()
            finally:  # also on Ctrl-C
                halt.set()
        return {one: future.result() for one, future in futures.items()}

    def _fetch(self, wanted: Wanted, halt: threading.Event) -> ModelFile:
        try:
            return self.fetcher.fetch(wanted, halt).as_file()
        except FetchError as error:
            # What moved once may be unreachable now; what it meant is still here.
            stale = self.fetcher.references.sha256(wanted.ref, stale=True)
            file = self.store.by_sha256(stale) if stale and not halt.is_set() else None
            if file is None:
                raise
            log.warning("%s The file fetched earlier is used.", error)
            return file

    # One job ---------------------------------------------------------------------------------

    def _find_all(self, request: Txt2ImgRequest, stop: threading.Event) -> Models:
        wanted = wanted_models(request)
        files = dict(zip(wanted, self.ensure(list(wanted.values()), stop), strict=True))
        models = assign_files(request, files)
        return replace(models, written_loras=self._written_loras(request, models.loras))

    def _may_be_merged(self, request: Txt2ImgRequest, models: Models) -> bool:
        """Whether one checkpoint can stand for the template's own and its LoRAs.

        A LoRA's tag acts on a second checkpoint, too; and where the caller writes the tag of one
        of the LoRAs himself, his weight counts.
        """
        loras = {file for file, _ in models.loras}
        second = models.refiner or models.hr_checkpoint
        written = loras & set(models.written_loras.values())
        return bool(request.template and models.checkpoint and loras and not second and not written)

    def _written_loras(
        self, request: Txt2ImgRequest, loras: Sequence[tuple[ModelFile, LoraReference]]
    ) -> dict[str, ModelFile]:
        """The files that tags in the prompt mean; first those that the job itself brings."""
        if request.disable_extra_networks:
            return {}
        brought = {name: file for file, ref in loras for name in (file.stem, *ref.stems)}
        tags = lora_tags(request.prompt) + lora_tags(request.hr_prompt)
        return {
            tag.name: brought.get(tag.name) or self._find_by_name("lora", tag.name) for tag in tags
        }

    def _pin(self) -> None:
        """Nothing that jobs use is evicted, nor the checkpoint that stays loaded after them."""
        files = {file for models in self._in_use for file in models.files()}
        files |= {self._loaded} if self._loaded else set()
        self.space.pinned = frozenset(
            file.verified_sha256 for file in files if file.verified_sha256
        )

    def _check(self, models: Models) -> None:
        """Each file is whole and of its kind, and all are of the checkpoint's family."""
        for file in models.files():
            file.check()
            if self._engine != "embedded":
                architecture.check_naming(file.stem, file.architecture())
        for checkpoint in (models.checkpoint, models.hr_checkpoint):
            for file in models.files() if checkpoint else ():
                if checkpoint and file.kind in {"lora", "embedding"}:
                    architecture.check_match(
                        checkpoint.stem, checkpoint.architecture(), file.stem, file.architecture()
                    )


def _as_named(file: ModelFile, wanted: Wanted) -> ModelFile:
    """A file that is there already is checked as what this job takes it for."""
    same = wanted.kind in {None, file.kind}
    return file if same else replace(file, kind=wanted.kind or file.kind)


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
