"""The engine: its files, its options, the checkpoint in memory, and its one running job."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from engine.api import extras, second_pass
from engine.api import options as option
from engine.api.drawing import Drawing, Models
from engine.api.given import Pictures
from engine.api.img2img import Img2Img
from engine.api.infotext import Facts, encode_png
from engine.api.job import Job
from engine.api.library import CHECKPOINTS, EMBEDDINGS, LORAS, VAES, Library
from engine.api.loaded_models import LoadedModels
from engine.api.options import Options
from engine.api.parameters import Used
from engine.api.progress import Progress
from engine.api.request import Generation, Txt2Img
from engine.images import decode
from engine.images.upscalers import ESRGAN, NONE, REAL_ESRGAN
from engine.models.checkpoints import HASH_DIGITS, Checkpoint, Checkpoints
from engine.models.loaded_model import LoadedModel
from engine.prompt.styles import Styles

log = logging.getLogger(__name__)

T = TypeVar("T")
# names of the second pass's and the refiner's checkpoint that mean the job's own
NO_OTHER_CHECKPOINT = (None, "", "None", "none", "Use same checkpoint")


@dataclass(frozen=True)
class Drawn:
    """The pictures of a job.

    Attributes:
        facts: what they were made from.
        beside: masks that are returned, by the number of their picture.
    """

    pictures: list[Image.Image]
    facts: Facts
    beside: Mapping[int, list[Image.Image]]

    def encoded(self) -> list[str]:
        """As base64 PNG, each with its infotext; masks follow their picture without."""
        images = []
        for number, picture in enumerate(self.pictures):
            images.append(encode_png(picture, {"parameters": self.facts.infotext(number)}))
            images += [encode_png(mask, {}) for mask in self.beside.get(number, [])]
        return images


class Engine:
    """The functions behind the HTTP endpoints; any thread may call them.

    Everything that uses the model runs on one thread, in order of arrival, beginning with the
    loading of the default checkpoint. All other calls return at once.
    """

    def __init__(self, data_dir: Path, options: Options, threads: int) -> None:
        """`data_dir` has A1111's layout; missing folders are created. `threads` is for torch."""
        for folder in (CHECKPOINTS, LORAS, VAES, EMBEDDINGS):
            (data_dir / folder).mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self.options = options
        self.checkpoints = Checkpoints(data_dir / CHECKPOINTS)
        self.library = Library.of(data_dir)
        self.styles = Styles(data_dir / "styles.csv")
        self.progress = Progress()
        self._models = LoadedModels(self.checkpoints, self.library.embeddings)
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
        """The checkpoint, loaded and on the device; see `LoadedModels`."""
        return self._models.use(checkpoint, self.options.values[option.CHECKPOINTS_LIMIT])

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
        return {
            "data_dir": str(self.data_dir),
            "ckpt_dir": str(self.data_dir / CHECKPOINTS),
            "vae_dir": str(self.data_dir / VAES),
            "embeddings_dir": str(self.data_dir / EMBEDDINGS),
            "esrgan_models_path": str(self.data_dir / "models" / ESRGAN),
            "realesrgan_models_path": str(self.data_dir / "models" / REAL_ESRGAN),
            "ui_settings_file": str(self.options.file),
            "api": True,
            "nowebui": True,
            "no_hashing": False,
            "lora_dir": str(self.data_dir / LORAS),
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
        if option.CHECKPOINTS_LIMIT in changes:  # A1111 frees them at its next switch
            self._queue(self._models.keep, changes[option.CHECKPOINTS_LIMIT])

    def refresh_checkpoints(self) -> None:
        """POST /refresh-checkpoints: waits for the jobs before it, the same as in A1111."""
        self._queue(self.checkpoints.refresh)

    def refresh_embeddings(self) -> None:
        """POST /refresh-embeddings: waits for the jobs before it, the same as in A1111."""
        self._queue(self.library.embeddings.refresh)

    # ------------------------------------------------------------------------------- generation

    def txt2img(self, request: Txt2Img) -> dict[str, Any]:
        """POST /txt2img: refuse an impossible request at once; else wait for the jobs before it."""
        request.check()
        return self._draw("scripts_txt2img", request, None)

    def img2img(self, request: Img2Img) -> dict[str, Any]:
        """POST /img2img: refuse an impossible request or picture at once, as `txt2img`."""
        request.check()
        return self._draw("scripts_img2img", request, Pictures(*request.pictures()))

    def _draw(self, task: str, request: Generation, pictures: Pictures | None) -> dict[str, Any]:
        overrides = request.override_settings or {}
        option.check(overrides)
        self._check_upscaler(Job(request, self.options.merged(overrides), self.styles))
        drawn = self._queue(self._generate, task, request, pictures)
        # In this thread: the next job is computed meanwhile, as in A1111.
        return {
            "images": drawn.encoded() if request.send_images else [],
            "parameters": request.echo(),
            "info": json.dumps(drawn.facts.info(len(drawn.pictures)), ensure_ascii=False),
        }

    def _check_upscaler(self, job: Job) -> None:
        """Raise LookupError for an upscaler that nobody knows."""
        name = job.settings[option.UPSCALER] if job.begun else None
        if job.highres is not None and not second_pass.is_latent(job.highres.hr_upscaler):
            name = job.highres.hr_upscaler
        self.library.upscalers.find(name or NONE)
        extras.tiling(job.settings)

    def _generate(self, task: str, request: Generation, pictures: Pictures | None) -> Drawn:
        """The requested pictures; after an interrupt fewer, and the last one unfinished.

        Raises:
            RuntimeError: the engine is shutting down, which leaves the picture unfinished.
        """
        self._refuse_if_closing()
        settings = self._override(request)  # with the options as the jobs before it left them
        self.library.embeddings.refresh_if_changed()
        job = Job(request, settings, self.styles)
        with self.progress.running(task, job.count * job.passes):
            models = self._models_of(job)
            drawing = Drawing(job, models, self.library, self.progress, pictures)
            with drawing.open() as model:
                if not request.override_settings_restore_afterwards:
                    # only now: a checkpoint that cannot be loaded would make all later jobs fail
                    self.options.values = {name: settings[name] for name in option.DEFAULTS}
                digest, is_inpainting = model.sha256[:HASH_DIGITS], model.is_inpainting
                drawn = drawing.pictures()
            self._refuse_if_closing()
            used = Used(
                models.first.stem,
                digest,
                drawing.vae,
                *drawing.loras,
                drawing.notes,
                pads=drawing.pads,
                second=self._title(models.second),
                refiner=drawing.refined,
                is_inpainting=is_inpainting,
                given=drawing.given.prepared.entries if drawing.given else {},
            )
            facts = Facts.of(job, used, self.progress.job_timestamp)
        log.info("made %d of %d pictures with %s", len(drawn), job.count, models.first.name)
        return Drawn(drawn, facts, drawing.given.beside if drawing.given else {})

    def _refuse_if_closing(self) -> None:
        if self.progress.closing:
            raise RuntimeError("the engine is shutting down")

    # ------------------------------------------------------------------- pictures without a model

    def upscale(self, request: extras.UpscaleOne) -> dict[str, Any]:
        """POST /extra-single-image: waits for the jobs before it."""
        (image,), text = self._upscale(request, [request.image])
        return {"html_info": extras.to_html(text), "image": image}

    def upscale_many(self, request: extras.UpscaleMany) -> dict[str, Any]:
        """POST /extra-batch-images; `html_info` is about the last picture. As `upscale`."""
        images, text = self._upscale(request, [one.data for one in request.imageList])
        return {"html_info": extras.to_html(text), "images": images}

    def _upscale(self, request: extras.Upscaling, encoded: list[str]) -> tuple[list[str], str]:
        request.check()
        for name in (request.upscaler_1, request.upscaler_2):
            self.library.upscalers.find(name)
        for one in encoded:
            decode.read(one)  # refused at once, and not kept: many pictures are much memory
        return self._queue(self._run_extras, request, encoded)

    def _run_extras(self, request: extras.Upscaling, encoded: list[str]) -> tuple[list[str], str]:
        self._refuse_if_closing()
        tiling, found, text = extras.tiling(self.options.values), [], ""
        with self.progress.running("extras", len(encoded)):
            for number, one in enumerate(encoded):
                self.progress.begin_picture(number)
                image, text = extras.upscale(
                    request, decode.read(one), self.library.upscalers, tiling, self.progress.stops
                )
                found.append(image)
                if self.progress.stopping:
                    break
        self._refuse_if_closing()
        return found, text

    # ------------------------------------------------------------------------ the models of a job

    def _models_of(self, job: Job) -> Models:
        """The job's checkpoints. Raises RuntimeError for an unknown one."""
        request, second = job.request, None
        if job.highres and job.highres.hr_checkpoint_name not in NO_OTHER_CHECKPOINT:
            second = self._closest(str(job.highres.hr_checkpoint_name))
        refiner = None
        if request.refiner_checkpoint not in NO_OTHER_CHECKPOINT:
            refiner = self._closest(str(request.refiner_checkpoint))
        first = self._checkpoint(job.settings[option.CHECKPOINT])
        refiner = refiner if refiner != (second or first) else None
        return Models(self._use, first, second, refiner)

    def _closest(self, name: str) -> Checkpoint:
        """As in A1111, the shortest title that contains `name` will do."""
        titles = {c.title(self.checkpoints.known_sha256(c)): c for c in self.checkpoints.all}
        containing = [title for title in titles if name in title]
        found = self.checkpoints.find(name)
        if found is None and containing:
            found = titles[min(containing, key=len)]
        if found is None:
            raise RuntimeError(f"Could not find checkpoint with name {name}")
        return found

    def _title(self, checkpoint: Checkpoint | None) -> str:
        """A1111's short title: the name, and the hash if it is known."""
        if checkpoint is None:
            return ""
        sha256 = self.checkpoints.known_sha256(checkpoint)
        return f"{checkpoint.stem} [{sha256[:HASH_DIGITS]}]" if sha256 else checkpoint.stem

    def _override(self, request: Generation) -> dict[str, Any]:
        """The options for this request."""
        overrides = dict(request.override_settings or {})
        if self.checkpoints.find(str(overrides.get(option.CHECKPOINT))) is None:
            overrides.pop(option.CHECKPOINT, None)  # same as A1111: only the answer shows it
        # A1111 reads it before it applies the options of the request
        overrides.pop(option.NOISE_MULTIPLIER, None)
        return self.options.merged(overrides)

    def _checkpoint(self, alias: str | None) -> Checkpoint:
        return (self.checkpoints.find(alias) if alias else None) or self._default()


def _log_failure(loading: Future[None]) -> None:
    if error := loading.exception():
        log.error("cannot load the default checkpoint: %s", error)
