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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.config import webui_config
from worker.config.settings import Settings
from worker.errors import JobError, ModelNotFound, WorkerError
from worker.extensions.preprocessors import ANNOTATORS
from worker.formats.model_file import FOLDERS, ModelFile
from worker.formats.names import Kind
from worker.hosts.registry import Hosts
from worker.http.client import NO_CANCEL, HttpLimits, SafeHttpClient
from worker.job import compatibility
from worker.job.model_fields import LoraReference
from worker.job.models import (
    Models,
    assign_files,
    lora_tag,
    may_be_merged,
    name_embeddings,
    words,
)
from worker.job.prompt import add_lora_tags
from worker.job.reference import Wanted
from worker.job.request import PictureRequest
from worker.models import commands
from worker.models.convert.converted_loras import ConvertedLoras
from worker.models.download.limits import DEFAULT, DownloadLimits
from worker.models.finder import Finder, all_wanted, check_annotators
from worker.models.merge.merged_checkpoints import MergedCheckpoints
from worker.models.store import hash_cache
from worker.models.store.fetcher import Fetcher
from worker.models.store.listing import look_again, one_look
from worker.models.store.own_files import ARRANGED, OwnFiles
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
        # Never held while files are read: a volume that does not answer must not keep `release`.
        self._pinning = threading.Lock()
        self._in_use: list[Models] = []
        self._loaded: ModelFile | None = None
        self._default: ModelFile | None = None
        self._webui_dir = settings.webui_dir
        self._annotators = settings.operators_folder(ANNOTATORS)
        self._pickles = settings.allow_pickles
        self.store = Store(
            settings.webui_dir,
            settings.models_dir,
            settings.baked_models_dir,
            read_only_dir=settings.read_only_models_dir,
            hub_cache_dir=settings.hub_cache_dir,
            pickles=settings.allow_pickles,
            diffusers=settings.engine == "embedded",
        )
        self.merged = MergedCheckpoints(self.store.baked, self.store.fetched)
        budget = settings.models_budget_gb
        self.space = SpaceBudget(
            self.store.fetched, None if budget is None else round(budget * 1e9), clock=clock
        )
        self.converted = ConvertedLoras(
            self.store.fetched,
            self.store.baked,
            self.space,
            lambda stem: self.store.is_taken("lora", stem),
        )
        self.own = OwnFiles(self.store, settings.webui_dir / "left_out.json", self._is_converted)
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
        self.finder = Finder(self.store, self.fetcher.references)

    # For jobs --------------------------------------------------------------------------------

    def prepare_models_for_request(
        self, request: PictureRequest, stop: threading.Event = NO_CANCEL
    ) -> tuple[Models, bool]:
        """Find, fetch, check and link every model of the job, and pin them until `release`.

        Returns:
            The files, and whether the engine must read its folders again to see them.

        Raises:
            WorkerError: names the model and the reason; the engine was not used yet.
        """
        with one_look():
            return self._prepare(request, stop)

    def _prepare(self, request: PictureRequest, stop: threading.Event) -> tuple[Models, bool]:
        models = self.find_models(request, stop)
        with self._lock:
            look_again()  # another job may have held the lock, and linked its files
            is_new = self.own.show()
            named: dict[ModelFile, ModelFile] = {}
            for file in models.engine_files():
                if file.kind in ARRANGED:  # linked when it is the job's turn
                    named[file] = self.store.named(file)
                else:
                    named[file], is_new_file = self.store.link(file)
                    is_new |= is_new_file
            default = self._default_checkpoint()
            # The job may use these, too: they may have been replaced.
            for file in [*self.own.arranged("vae"), *([default] if default else [])]:
                is_new |= self.store.note_linked(file)
            checkpoints = [file for file in named.values() if file.kind == "checkpoint"]
            hash_cache.seed(self._webui_dir, checkpoints if is_new else [])
            models = models.renamed(named)
            self.own.check_names(models.embeddings)
            with self._pinning:
                self._in_use.append(models)
                self._default = default
                self._pin()
        return models, is_new

    def arrange_embeddings(self, models: Models) -> bool:
        """Let the engine see exactly the embeddings of this job and the operator's own.

        Call it when it is the job's turn: those that were fetched for other jobs are hidden.

        Returns:
            Whether the engine must read its embeddings again.
        """
        with self._lock:
            taken = {words(file.stem) for file in models.embeddings}
            own = [f for f in self.own.arranged("embedding") if words(f.stem) not in taken]
            embeddings = [*own, *models.embeddings]
            is_new = self.store.arrange("embedding", embeddings)
            if is_new:
                hash_cache.seed(self._webui_dir, embeddings)
            return is_new

    def arrange_vaes(self, models: Models) -> bool:
        """The same for VAEs; returns whether the engine must read all of its folders again."""
        with self._lock:
            own = [self.store.named(file) for file in self.own.arranged("vae")]
            return self.store.arrange("vae", [*own, *([models.vae] if models.vae else [])])

    def take_replaced(self) -> set[Kind]:
        """Kinds of which the operator has replaced a file under its name, since the last call."""
        with self._lock:
            replaced, self.store.replaced = self.store.replaced, set()
            return replaced

    def mark_used(self, models: Models) -> None:
        """Let no other worker evict the models of a job that waits or draws for long.

        Call it every few minutes; `SpaceLimits.in_use` says how long a mark holds.
        """
        for sha256 in _hashes(models.files()):
            self.store.fetched.mark_used(sha256)

    def release(self, models: Models, *, was_loaded: bool = True) -> None:
        """Unpin the models of a job that has ended.

        Args:
            models: those that the job had.
            was_loaded: whether the engine may have loaded the checkpoint, which then stays pinned.
        """
        with self._pinning:
            self._in_use.remove(models)
            self._loaded = (models.loaded if was_loaded else None) or self._loaded
            self._pin()

    def stored(self, request: PictureRequest) -> set[Path]:
        """The files of the job's models that are found without a download."""
        found: set[Path] = set()
        for wanted in all_wanted(request).values():
            with suppress(ModelNotFound):  # the search for all of them reports it
                file = self.finder.find(wanted)
                found |= {file.path} if file else set()
        return found

    def list_files(self, kind: Kind) -> dict[str, ModelFile]:
        """The model files of this kind, by the names that a job can give.

        Of several with one name in different trees it is the first.
        """
        return self.store.names(kind)

    def find_models(self, request: PictureRequest, stop: threading.Event = NO_CANCEL) -> Models:
        """Find, fetch and check every model of the job, without linking them.

        Raises:
            WorkerError: names the model and the reason.
        """
        check_annotators(request, self._annotators, pickles=self._pickles)
        models = self._find_all(request, stop)
        if self._engine != "embedded":
            models = self.convert(models, stop)
        if may_be_merged(request, models):
            models = replace(models, merged=self.merged.find(models))
        with self._hiding_bad_files(models):
            models = self._check(models)
        details = models.loaded.architecture().details if models.loaded else ()
        return replace(
            models,
            zero_terminal_snr="zero-terminal-SNR" in details,
            has_bundle=any(file.has_bundle() for file in models.engine_files()),
        )

    def convert(self, models: Models, stop: threading.Event = NO_CANCEL) -> Models:
        """The same models with each LoRA as A1111 can read it; see `ConvertedLoras`.

        Raises:
            WorkerError: names the LoRA and the reason.
        """
        loras = [*(file for file, _ in models.loras), *models.written_loras.values()]
        made = {file: self.converted.get(file, stop) for file in dict.fromkeys(loras)}
        names = {file: new for file, new in made.items() if new != file}
        if names:
            look_again()  # they may have been made just now
        return replace(models.renamed(names), sources=(*models.sources, *names))

    def ensure(
        self, wanted: Sequence[Wanted], stop: threading.Event = NO_CANCEL
    ) -> list[ModelFile]:
        """A file for each model: found in the store, or fetched, several in parallel."""
        files = {one: self.finder.find(one) for one in wanted}
        missing = [one for one in wanted if files[one] is None]
        with self._lock:
            self.counts.update(found=len(wanted) - len(missing), fetched=len(missing))
        if missing:
            fetched = self.fetcher.fetch_all(missing, stop, _hashes(files.values()))
            look_again()
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
        stored = self.get_cache_stats()
        more = {"cached": self.store.hub.health(), "left_out": self.own.health()}
        return {**self.counts, **fetched, "stored": stored, **more}

    def template_state(self, request: PictureRequest) -> dict[str, bool]:
        """Whether all models of a template are in the image, and whether they are merged there."""
        models = self._find_template(request, self.finder.find_baked)
        return {"baked": models is not None, "merged": bool(models and models.merged)}

    # For the engine's start ------------------------------------------------------------------

    def link_everything(self) -> int:
        """Link every good file before the engine starts; returns their number."""
        with self._lock:
            self.store.remove_dangling_links()
            self.own.show()
            linked = [self.store.link(file)[0] for kind in FOLDERS for file in self._fetched(kind)]
            hash_cache.seed(self._webui_dir, linked)
        self.arrange_embeddings(Models())
        self.arrange_vaes(Models())
        self.own.write_note()
        return self.store.count_links()

    def _fetched(self, kind: Kind) -> list[ModelFile]:
        """The fetched files of kinds that act only where a job names them."""
        files = self.store.files(kind) if kind not in ARRANGED else ()
        return [file for file in files if file.verified_sha256 and self._is_linked_as_it_is(file)]

    def _is_linked_as_it_is(self, file: ModelFile) -> bool:
        """Whether the engine can use the file itself; if not, our link to it is removed."""
        if self.own.is_good(file) and not self._is_converted(file):
            return True
        self.store.hide(file)
        return False

    def _is_converted(self, file: ModelFile) -> bool:
        """Whether the engine gets a conversion in place of the file."""
        is_for_a1111 = self._engine != "embedded"
        return is_for_a1111 and file.kind == "lora" and self.converted.needs(file)

    def first_checkpoint(self, request: PictureRequest) -> str | None:
        """The checkpoint that the template's jobs will load, if all of its models are present."""
        models = self._find_template(request, self.finder.find)
        if models is None or models.loaded is None:
            return None
        try:
            self._check(models)
        except JobError as error:
            log.warning("the default template cannot be used: %s", error)
            return None
        linked = self.store.link(models.loaded)[0]
        hash_cache.seed(self._webui_dir, [linked])
        return linked.stem

    def _find_template(
        self, request: PictureRequest, find: Callable[[Wanted], ModelFile | None]
    ) -> Models | None:
        """The models of a template, if `find` finds them all; nothing is fetched."""
        files: dict[tuple[str, int], ModelFile] = {}
        for field, wanted in all_wanted(request).items():
            try:
                file = find(wanted)
            except ModelNotFound:
                return None
            if file is None:
                return None
            files[field] = file
        models = assign_files(request, files)
        return replace(models, merged=self.merged.find(models)) if models.loras else models

    # One job ---------------------------------------------------------------------------------

    def _find_all(self, request: PictureRequest, stop: threading.Event) -> Models:
        wanted = all_wanted(request)
        files = dict(zip(wanted, self.ensure(list(wanted.values()), stop), strict=True))
        models = assign_files(request, files)
        return replace(
            models,
            embeddings=name_embeddings(request, models.embeddings),
            written_loras=self.finder.written_loras(request, models.loras),
        )

    def _default_checkpoint(self) -> ModelFile | None:
        """The checkpoint that the engine loads for a job that names none, if it is known."""
        file = self.store.in_engine("checkpoint", webui_config.checkpoint(self._webui_dir))
        if file and file.verified_sha256:
            self.store.fetched.mark_used(file.verified_sha256)  # for the other workers
        return file

    def _pin(self) -> None:
        """Protect from eviction what jobs use, and what the engine has loaded or loads again."""
        files = [file for models in self._in_use for file in models.files()]
        self.space.pinned = _hashes([*files, self._loaded, self._default])

    def _check(self, models: Models) -> Models:
        """Check that each file can be used, alone and with the checkpoints; adds the notes.

        Raises:
            ModelFileInvalid, ModelNotSupported, ModelMismatch: names the file and the reason.
        """
        compatibility.check_files(models, self._engine)
        return replace(models, notes=compatibility.check_together(models, self._engine))

    @contextmanager
    def _hiding_bad_files(self, models: Models) -> Iterator[None]:
        """When a check in this block fails, hide the operator's bad files from the engine."""
        try:
            yield
        except WorkerError as error:
            for file in models.files():
                # The file on the disk can be the target of a link, whose name is not for callers.
                error.message = error.message.replace(repr(file.path.name), repr(file.filename))
            with self._lock:
                self.own.check(file for file in models.files() if not file.verified_sha256)
            raise


def _hashes(files: Iterable[ModelFile | None]) -> frozenset[str]:
    return frozenset(file.verified_sha256 for file in files if file and file.verified_sha256)


def _with_kind_of(wanted: Wanted, file: ModelFile) -> ModelFile:
    """The file with the kind that this job names, so that it is checked as that kind."""
    is_other = wanted.kind not in {None, file.kind}
    return replace(file, kind=wanted.kind) if wanted.kind and is_other else file


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return commands.run(arguments, ModelManager)


if __name__ == "__main__":
    sys.exit(main())
