"""The model manager: from the models that a job names to checked files that the engine can see.

The life of a model file:

    a name         is looked up in the model store (`worker.store`)
    a reference    (CivitAI, Hugging Face, https, sha256) that was seen before leads to its file
                   without a network; a new one is fetched, once for all workers (`worker.fetcher`)
    the file       is checked: whole, of the right kind, of the checkpoint's family
    a link         to it appears in the engine's folder

The engine never sees a file that was not checked before: a damaged checkpoint would poison A1111
until its next restart. On the command line: `python model_manager.py --help`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace

from worker import architecture, commands, hash_cache, model_ref
from worker.architecture import Kind
from worker.civitai import CIVITAI, CIVITAI_RED, CivitAI
from worker.errors import (
    FetchError,
    ModelFileInvalid,
    ModelNotFound,
    ModelNotSupported,
    ModelUnsafe,
)
from worker.fetcher import Fetcher
from worker.huggingface import HuggingFace
from worker.internet import NEVER, Internet, origin
from worker.model_file import FOLDERS, ModelFile
from worker.model_host import AnyHost, ModelHost
from worker.model_ref import (
    CivitAIModel,
    CivitAIVersion,
    HuggingFaceFile,
    Sha256,
    StoreName,
    Wanted,
    WebFile,
)
from worker.named_models import LoraReference
from worker.payload import Models, lora_tag
from worker.progress import report_for
from worker.prompt import add_lora_tags, lora_tags
from worker.references import References
from worker.request import OverrideSettings, Txt2ImgRequest
from worker.room import Room
from worker.settings import Settings
from worker.store import Store

log = logging.getLogger("worker.models")

# Values of `sd_vae` that are no file.
_VAE_WORDS = {"Automatic", "None"}

AT_ONCE = 4  # files that are fetched in parallel; each has several connections
_LOOK_EVERY = 0.1  # seconds


class ModelManager:
    """Finds, fetches, checks and links the models that jobs name.

    Attributes:
        tell: hears now and then how far a download is, in a line for people.
    """

    def __init__(self, settings: Settings) -> None:
        self.tell: Callable[[str], None] | None = None
        self._engine = settings.engine
        self._loaded: ModelFile | None = None
        self._webui_dir = settings.webui_dir
        self.store = Store(
            settings.webui_dir,
            settings.models_dir,
            settings.baked_models_dir,
            pickles=settings.allow_pickles,
        )
        budget = settings.models_budget_gb
        self.room = Room(self.store.fetched, None if budget is None else round(budget * 1e9))
        internet = Internet([*settings.trusted_hosts, *settings.mirrors], _tokens(settings))
        self.fetcher = Fetcher(
            internet,
            _hosts(settings, internet),
            self.store.fetched,
            self.room,
            find=self.store.blob,
            references=References(
                self.store.fetched.root / "references", self.store.baked.root / "references"
            ),
            pickles=settings.allow_pickles,
            report_for=lambda name: report_for(name, self.tell),
            is_taken=self.store.is_taken,
        )

    # For jobs --------------------------------------------------------------------------------

    def prepare_models_for_request(
        self, request: Txt2ImgRequest, stop: threading.Event = NEVER
    ) -> tuple[Models, bool]:
        """Make every model of the job usable.

        Returns:
            The files, and whether the engine must read its folders again to see them.

        Raises:
            WorkerError: before the engine is asked for anything; it says which model and why.
        """
        models = self._find_all(request, stop)
        self._check(models)
        self._pin(models)
        linked = {file: self.store.link(file) for file in models.files()}
        new = [file for file, is_new in linked.values() if is_new]
        hash_cache.seed(self._webui_dir, [file for file in new if file.kind == "checkpoint"])
        return models.renamed({file: seen for file, (seen, _) in linked.items()}), bool(new)

    def ensure(self, wanted: Sequence[Wanted], stop: threading.Event = NEVER) -> list[ModelFile]:
        """Each of them as a checked file: found in the store, or fetched, several at once."""
        files = [self._find(one) for one in wanted]
        missing = [one for one, file in zip(wanted, files, strict=True) if file is None]
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

    # For the engine's start ------------------------------------------------------------------

    def link_everything(self) -> int:
        """Show every good file to an engine that is about to start; return how many."""
        self.store.remove_dangling_links()
        linked: list[ModelFile] = []
        for kind in FOLDERS:
            for file in self.store.files(kind):
                try:
                    if file.known_sha256 is None:  # a fetched one was checked when it came
                        file.check()
                except (ModelFileInvalid, ModelNotSupported, ModelNotFound) as error:
                    log.warning("%s The engine will not see it.", error.message)
                else:
                    linked.append(self.store.link(file)[0])
        hash_cache.seed(self._webui_dir, [file for file in linked if file.kind == "checkpoint"])
        return len(linked)

    # One model -------------------------------------------------------------------------------

    def _find(self, wanted: Wanted) -> ModelFile | None:
        """The file, if it can be had without a network.

        Raises:
            ModelNotFound: it is named by a file name that the store does not have.
        """
        ref = wanted.ref
        if isinstance(ref, StoreName):
            return self._find_by_name(wanted.kind or "checkpoint", ref.name)
        known = wanted.sha256 or (
            ref.digest if isinstance(ref, Sha256) else self.fetcher.references.sha256(ref)
        )
        return self.store.by_sha256(known) if known else None

    def _find_by_name(self, kind: Kind, name: str) -> ModelFile:
        """By file name or stem; a LoRA else, as in A1111, by the name its training gave it."""
        file = self.store.find(kind, name)
        if file is None and kind == "lora":
            named = (f for f in self.store.files("lora") if _trained_name(f) == name)
            file = next(named, None)
        if file is None:
            raise self.store.not_found(kind, name)
        if file.known_sha256:
            self.store.by_sha256(file.known_sha256)  # notes the use
        return file

    def _fetch_all(
        self, missing: Sequence[Wanted], stop: threading.Event
    ) -> dict[Wanted, ModelFile]:
        """Fetch in parallel; the first error ends the others, what has arrived is kept."""
        halt = threading.Event()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            futures = {one: pool.submit(self._fetch, one, halt) for one in dict.fromkeys(missing)}
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
        wanted = _wanted(request)
        files = dict(zip(wanted, self.ensure(list(wanted.values()), stop), strict=True))
        loras = [(files["lora", n], ref) for n, ref in enumerate(request.loras)]
        return Models(
            checkpoint=files.get(("checkpoint", 0)),
            loras=tuple(loras),
            written_loras=self._written_loras(request, loras),
            vae=files.get(("vae", 0)),
            embeddings=tuple(files["embedding", n] for n in range(len(request.embeddings))),
            refiner=files.get(("refiner", 0)),
            hr_checkpoint=files.get(("hr_checkpoint", 0)),
        )

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

    def _pin(self, models: Models) -> None:
        """Nothing that this job uses is evicted, nor the checkpoint that stays loaded after it."""
        if models.checkpoint:
            self._loaded = models.checkpoint
        files = [*models.files(), *([self._loaded] if self._loaded else [])]
        self.room.pinned = frozenset(file.known_sha256 for file in files if file.known_sha256)

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


def _hosts(settings: Settings, internet: Internet) -> dict[type, ModelHost]:
    """Class of a reference -> the host that understands it."""
    civitai = CivitAI(internet, *_civitai_fronts(settings))
    return {
        CivitAIVersion: civitai,
        CivitAIModel: civitai,
        Sha256: civitai,
        HuggingFaceFile: HuggingFace(internet, settings.hf_endpoint),
        WebFile: AnyHost(),
    }


def _civitai_fronts(settings: Settings) -> list[str]:
    """CivitAI's two fronts are one site with one set of keys; the operator's mirror is alone."""
    url = settings.civitai_url
    return [url, CIVITAI_RED] if url == CIVITAI else [url]


def _tokens(settings: Settings) -> dict[str, str]:
    """Origin -> token."""
    key, token = settings.civitai_api_key, settings.hf_token
    fronts = _civitai_fronts(settings)
    tokens = {origin(front): key.get_secret_value() for front in fronts} if key else {}
    return tokens | ({origin(settings.hf_endpoint): token.get_secret_value()} if token else {})


def _wanted(request: Txt2ImgRequest) -> dict[tuple[str, int], Wanted]:
    """What the job names, by its place in the job."""
    override = request.override_settings or OverrideSettings()
    names = {
        "checkpoint": override.sd_model_checkpoint,
        "vae": None if override.sd_vae in _VAE_WORDS else override.sd_vae,
        "refiner": _unless_same(request.refiner_checkpoint),
        "hr_checkpoint": _unless_same(request.hr_checkpoint_name),
    }
    found: dict[tuple[str, int], Wanted] = {}
    for place, name in names.items():
        if name:
            found[place, 0] = Wanted(
                model_ref.parse(name), "vae" if place == "vae" else "checkpoint"
            )
    if request.checkpoint:
        found["checkpoint", 0] = request.checkpoint.wanted("checkpoint")
    if request.vae:
        found["vae", 0] = request.vae.wanted("vae")
    found |= {("lora", n): ref.wanted("lora") for n, ref in enumerate(request.loras)}
    return found | {
        ("embedding", n): ref.wanted("embedding") for n, ref in enumerate(request.embeddings)
    }


def _as_named(file: ModelFile, wanted: Wanted) -> ModelFile:
    """A file that is there already is checked as what this job takes it for."""
    same = wanted.kind in {None, file.kind}
    return file if same else replace(file, kind=wanted.kind or file.kind)


def _unless_same(name: str | None) -> str | None:
    return None if name is None or name.casefold() == "use same checkpoint" else name


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
