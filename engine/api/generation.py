"""The engine: its files, its options, the checkpoint in memory, and its one running job."""

import gc
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from engine.api import options as option
from engine.api.infotext import Facts, encode_png
from engine.api.options import Options
from engine.api.progress import Progress
from engine.api.request import Txt2Img
from engine.models import files
from engine.models.checkpoints import HASH_DIGITS, Checkpoint, Checkpoints
from engine.models.loaded_model import LoadedModel, PictureSettings
from engine.models.loras import Loras, LoraUse
from engine.prompt import syntax
from engine.sampling import samplers

log = logging.getLogger(__name__)

T = TypeVar("T")
FOLDERS = ("models/Stable-diffusion", "models/Lora", "models/VAE", "embeddings")
MODEL_SUFFIXES = (".safetensors", ".pt", ".ckpt")
IGNORE_SCHEDULER = ("DDIM", "PLMS", "UniPC")  # these samplers have their own schedule
RANDOM_SEEDS = 2**32 - 1  # A1111 chooses a seed from 0 to 2^32 - 2


class Engine:
    """The functions behind the HTTP endpoints; any thread may call them.

    Everything that uses the model runs on one thread, in order of arrival, beginning with the
    loading of the default checkpoint. All other calls return at once.
    """

    def __init__(self, data_dir: Path, options: Options, threads: int) -> None:
        """`data_dir` has A1111's layout; missing folders are created. `threads` is for torch."""
        for folder in FOLDERS:
            (data_dir / folder).mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self.options = options
        self.checkpoints = Checkpoints(data_dir / FOLDERS[0])
        self.loras = Loras(data_dir / FOLDERS[1])
        self.progress = Progress()
        self._model: LoadedModel | None = None
        self._jobs = ThreadPoolExecutor(1, "job", torch.set_num_threads, (threads,))

    def start(self) -> None:
        """Start loading the default checkpoint. A failure is logged; later jobs report it again."""
        self._jobs.submit(self._load_default).add_done_callback(_log_failure)

    def close(self) -> None:
        """End the running job at its next step; the waiting jobs fail."""
        self.progress.close()

    def _queue(self, function: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - passed through
        return self._jobs.submit(function, *args).result()

    # ------------------------------------------------------------------ checkpoints and options

    def _default(self) -> Checkpoint:
        """The configured checkpoint, otherwise the first. Raises FileNotFoundError."""
        name = self.options.values[option.CHECKPOINT]
        if not self.checkpoints.all:
            raise FileNotFoundError(
                "No checkpoints found. When searching for checkpoints, looked at:\n"
                f" - directory {self.checkpoints.folder}\n"
                "Find and place a .safetensors file there."
            )
        # config.json may contain a title with a hash that is not computed yet
        names = (name, name.partition(" [")[0]) if name else ()
        found = next(filter(None, map(self.checkpoints.find, names)), None)
        return found or self.checkpoints.all[0]

    def _load_default(self) -> None:
        checkpoint = self._default()
        name = self.options.values[option.CHECKPOINT]
        if name and checkpoint.name not in name and checkpoint.stem not in name:
            log.warning("checkpoint %r not found; loading %s", name, checkpoint.name)
        self._use(checkpoint)

    def _use(self, checkpoint: Checkpoint) -> LoadedModel:
        """Load this checkpoint unless it is loaded and its file is still the same.

        The other one is freed first: memory holds only one.
        """
        if self._model is None or not self._model.is_current(checkpoint):
            started = time.monotonic()
            self._model = None
            gc.collect()  # a pipeline contains reference cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._model = LoadedModel.load(checkpoint, self.checkpoints.sha256(checkpoint))
            log.info("loaded %r in %.1f s", checkpoint.name, time.monotonic() - started)
        return self._model

    def get_options(self) -> dict[str, Any]:
        """The answer of GET /options; it names the default checkpoint by its title."""
        checkpoint = self._default() if self.checkpoints.all else None
        sha256 = self.checkpoints.known_sha256(checkpoint) if checkpoint else None
        current = {
            option.CHECKPOINT: checkpoint and checkpoint.title(sha256),
            option.CHECKPOINT_HASH: sha256 or "",
        }
        return option.ALL | self.options.values | current

    def get_flags(self) -> dict[str, Any]:
        """The answer of GET /cmd-flags: A1111's flags for the folders and the enabled parts."""
        checkpoints, loras, vaes, embeddings = (str(self.data_dir / name) for name in FOLDERS)
        return {
            "data_dir": str(self.data_dir),
            "ckpt_dir": checkpoints,
            "vae_dir": vaes,
            "embeddings_dir": embeddings,
            "ui_settings_file": str(self.options.file),
            "api": True,
            "nowebui": True,
            "no_hashing": False,
            "lora_dir": loras,
        }

    def set_options(self, changes: dict[str, Any]) -> None:
        """POST /options: load the checkpoint if it is named, then save the options to disk.

        A value equal to the current one is ignored. Raises RuntimeError for an unknown checkpoint,
        Unsupported for an unknown option.
        """
        now = {name: v for name, v in self.get_options().items() if name != option.CHECKPOINT}
        changes = {name: v for name, v in changes.items() if (name, v) not in now.items()}
        option.check(changes)
        if (alias := changes.get(option.CHECKPOINT)) is not None:
            checkpoint = self.checkpoints.find(alias)
            if checkpoint is None:
                raise RuntimeError(f"model {alias!r} not found")
            changes = changes | {option.CHECKPOINT: checkpoint.name}
            self._queue(self._use, checkpoint)
        self.options.change(changes)

    def refresh_checkpoints(self) -> None:
        """POST /refresh-checkpoints: waits for the jobs before it, the same as in A1111."""
        self._queue(self.checkpoints.refresh)

    def list_vaes(self) -> list[dict[str, str]]:
        """The answer of GET /sd-vae; the engine lists these files but does not support them."""
        paths = files.find(self.data_dir / FOLDERS[2])
        found = [path for path in paths if path.suffix.lower() in MODEL_SUFFIXES]
        return [{"model_name": path.name, "filename": str(path)} for path in found]

    # ------------------------------------------------------------------------------- generation

    def txt2img(self, request: Txt2Img) -> dict[str, Any]:
        """POST /txt2img: refuse an impossible request at once; else wait for the jobs before it."""
        request.check()
        overrides = request.override_settings or {}
        option.check(overrides)
        settings = self.options.merged(overrides)
        job = _Job(request, has_comments=bool(settings[option.COMMENTS]))
        pictures, facts = self._queue(self._generate, job)
        infotexts = map(facts.infotext, range(len(pictures)))
        encoded = [encode_png(p, text) for p, text in zip(pictures, infotexts, strict=True)]
        return {
            "images": encoded if request.send_images else [],
            "parameters": request.model_dump(),
            "info": json.dumps(facts.info(len(pictures)), ensure_ascii=False),
        }

    def _generate(self, job: "_Job") -> tuple[list[Image.Image], Facts]:
        """The requested pictures; after an interrupt fewer, and the last one unfinished."""
        if self.progress.closing:
            raise RuntimeError("the engine is shutting down")
        request = job.request
        settings = self._override(request)
        count = request.n_iter * request.batch_size
        with self.progress.running("scripts_txt2img", count):
            model = self._use(self._checkpoint(settings[option.CHECKPOINT]))
            if not request.override_settings_restore_afterwards:
                # only now: a checkpoint that cannot be loaded would make all later jobs fail
                self.options.values = {name: settings[name] for name in option.DEFAULTS}
            uses = self.loras.resolve(job.tags)
            with model.with_loras(uses):
                facts = job.facts(model, uses, settings, self.progress.job_timestamp)
                pictures = self._pictures(job, model, facts)
        log.info("made %d of %d pictures with %s", len(pictures), count, model.checkpoint.name)
        return pictures, facts

    def _pictures(self, job: "_Job", model: LoadedModel, facts: Facts) -> list[Image.Image]:
        """Make pictures one by one: in a batch, the same seed gives slightly different pixels."""
        pictures: list[Image.Image] = []
        calls = job.sampler.calls(job.request.steps)
        conditioning = model.encode(job.text, job.negative_prompt, facts.clip_skip, calls)
        for number, seed in enumerate(facts.seeds):
            self.progress.begin_picture(number)
            settings = job.picture_settings(seed, facts)
            pictures.append(model.picture(conditioning, settings, self.progress.step))
            if self.progress.stopping:
                break
        return pictures

    def _override(self, request: Txt2Img) -> dict[str, Any]:
        """The options for this request."""
        overrides = dict(request.override_settings or {})
        if self.checkpoints.find(str(overrides.get(option.CHECKPOINT))) is None:
            overrides.pop(option.CHECKPOINT, None)  # same as A1111: only the answer shows it
        return self.options.merged(overrides)

    def _checkpoint(self, alias: str | None) -> Checkpoint:
        return (self.checkpoints.find(alias) if alias else None) or self._default()


class _Job:
    """A parsed request: its sampler, scheduler, LoRA tags and text. Raises Refused.

    Attributes:
        prompt, negative_prompt: without comments, as in the answer.
        text: the prompt without tags.
        tags: the LoRA tags that apply.
    """

    def __init__(self, request: Txt2Img, *, has_comments: bool) -> None:
        self.request = request
        both = (request.prompt, request.negative_prompt)
        self.prompt, self.negative_prompt = (
            syntax.without_comments(text) if has_comments else text for text in both
        )
        sampler = samplers.find_sampler(request.sampler_name or request.sampler_index or "")
        self.sampler = sampler.with_eta(request.eta)
        self.scheduler = samplers.find_scheduler(self.sampler, request.scheduler)
        self.text, tags = syntax.extract_loras(self.prompt)
        self.tags = [] if request.disable_extra_networks else tags
        syntax.refuse_unsupported(self.text)

    def picture_settings(self, seed: int, facts: Facts) -> PictureSettings:
        """The settings of the picture with this seed."""
        request = self.request
        return PictureSettings(
            seed,
            request.width,
            request.height,
            request.steps,
            request.cfg_scale,
            self.sampler,
            self.scheduler,
            zero_terminal_snr=facts.noise_schedule == option.ZERO_TERMINAL_SNR,
        )

    def facts(
        self, model: LoadedModel, uses: list[LoraUse], settings: Mapping[str, Any], timestamp: str
    ) -> Facts:
        """The facts for the answer; picture i has the first seed plus i."""
        request = self.request
        seed = _resolve_seed(request.seed)
        return Facts(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seeds=[seed + i for i in range(request.n_iter * request.batch_size)],
            subseed=_resolve_seed(request.subseed),
            width=request.width,
            height=request.height,
            sampler_name=self.sampler.name,
            asked_schedule=request.scheduler,
            schedule_label=self._schedule_label(),
            eta_ddim=request.eta if self.sampler.name == "DDIM" and request.eta else None,
            cfg_scale=request.cfg_scale,
            steps=request.steps,
            batch_size=request.batch_size,
            model_name=model.checkpoint.stem,
            model_hash=model.sha256[:HASH_DIGITS],
            clip_skip=settings[option.CLIP_SKIP],
            noise_schedule=settings[option.NOISE_SCHEDULE],
            lora_hashes={use.lora.name: use.lora.hash() for use in uses},
            seed_resize=(request.seed_resize_from_w, request.seed_resize_from_h),
            denoising_strength=request.denoising_strength,
            job_timestamp=timestamp,
        )

    def _schedule_label(self) -> str | None:
        """The label of a computed schedule, also if it is the sampler's default (as in A1111)."""
        computed = self.scheduler.name != "automatic" and self.sampler.name not in IGNORE_SCHEDULER
        return self.scheduler.label if computed else None


def _resolve_seed(seed: int | None) -> int:
    return secrets.randbelow(RANDOM_SEEDS) if seed in (None, -1) else int(seed or 0)


def _log_failure(loading: Future[None]) -> None:
    if error := loading.exception():
        log.error("cannot load the default checkpoint: %s", error)
