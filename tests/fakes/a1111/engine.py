"""The fake A1111 at work: its models and options, and one picture after the other."""

import os
import random
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

from fakes.a1111.extensions import Extensions
from fakes.a1111.faults import Faults
from fakes.a1111.models import (
    AppliedLora,
    Checkpoint,
    Checkpoints,
    Conditioning,
    Embedding,
    HashCache,
    Lora,
    Loras,
    lora_tags,
    read_embeddings,
)
from fakes.a1111.picture import Job, png
from fakes.a1111.request import Params, engine_error
from fakes.a1111.shape import refuse_clip_skip, refuse_in_job
from fakes.a1111.state import LOAD_FAILURES, LoadedModel, Options, Progress, say

COMMENT_LINE = re.compile(r"(?:\A|\n)#[^\n]*(?:\n|\Z)")
COMMENT = re.compile(r"#[^\n]*(?:\n|\Z)")
WEIGHT = re.compile(r"\([^()\[\]]*:\s*([+-]?[.\d]+)\s*\)")  # of a simple `(words:1.2)`


def _fixed_seed(seed: int | None) -> int:
    return random.randrange(4294967294) if seed in (None, -1) else seed


class Engine:
    """All but the HTTP routes; `draw` runs in one thread only."""

    def __init__(self, data_dir: Path, ckpt_dir: str | None, faults: Faults) -> None:
        self.data_dir = data_dir
        self.faults = faults
        self.options = Options(data_dir / "config.json")
        self.progress = Progress()
        self.hashes = HashCache(data_dir / "cache/hashes/cache.db")
        folders = [data_dir / "models/Stable-diffusion", *([Path(ckpt_dir)] if ckpt_dir else [])]
        self.checkpoints = Checkpoints(folders, self.hashes)
        self.model = LoadedModel(self.checkpoints, self.options, faults)
        self._applied: list[AppliedLora] = []  # what the weights contain
        self._bundled: dict[Path, set[str]] = {}  # embeddings that act, by the LoRA they lie in
        self.embeddings: dict[str, Embedding] = {}
        self._embeddings_read = -1  # modification time of their folder
        self._conditioning = Conditioning(), Conditioning()  # of the prompt, of the negative one
        self.loras = self._lora_extension()
        self.extensions = Extensions(data_dir / "models/ControlNet")

    def _lora_extension(self) -> Loras | None:
        try:
            hashes = HashCache(self.data_dir / "cache/hashes-addnet/cache.db", skip_header=True)
            return Loras(self.data_dir / "models/Lora", hashes)
        except sqlite3.DatabaseError as error:
            say(f"*** Error loading script: lora_script.py\n    sqlite3.DatabaseError: {error}")
            return None

    def refresh_embeddings(self) -> None:
        """Read the embeddings again; a txt2img does so only if their folder has changed."""
        self.model.require()
        folder = self.data_dir / "embeddings"
        self._embeddings_read = folder.stat().st_mtime_ns if folder.is_dir() else -1
        self.embeddings = read_embeddings(folder, self.hashes)

    def _notice_embeddings(self) -> None:
        folder = self.data_dir / "embeddings"
        if folder.is_dir() and folder.stat().st_mtime_ns > self._embeddings_read:
            self.refresh_embeddings()

    def refuse_unknown_checkpoint(self, changes: dict[str, Any]) -> None:
        """Raise when options name a checkpoint that is not listed."""
        name = changes.get("sd_model_checkpoint")
        if name is not None and self.checkpoints.find(name) is None:
            raise engine_error("RuntimeError", f"model {name!r} not found")

    def set_options(self, changes: dict[str, Any]) -> None:
        """POST /options: a checkpoint that does not load is reset without an error."""
        for name, value in changes.items():
            before = self.options.data.get(name)
            if self.options.set(name, value) and name == "sd_model_checkpoint":
                try:
                    self.model.reload()
                except LOAD_FAILURES:
                    self.options.data[name] = before
        self.options.save()

    def draw(self, params: Params) -> dict[str, Any]:
        """The answer to a valid request for txt2img or img2img."""
        self.model.load_first()
        passes = 2 if params.get("enable_hr") else 1
        job = "scripts_img2img" if "init_images" in params else "scripts_txt2img"
        self.progress.begin(job, (params["n_iter"] or 0) * passes, params["steps"] or 0)
        try:
            return self._with_overrides(params)
        finally:
            self.progress.end()

    def _with_overrides(self, params: Params) -> dict[str, Any]:
        if self.faults.take("poisoned"):
            self.model.broken = True
        overrides = dict(params["override_settings"] or {})
        data = self.options.data
        # Only keys that config.json or an earlier request set are put back: the others leak.
        kept = {name: data[name] for name in overrides if name in data}
        try:
            if self.checkpoints.find(overrides.get("sd_model_checkpoint")) is None:
                overrides.pop("sd_model_checkpoint", None)
                self.model.reload()
            for name, value in overrides.items():
                self.options.set(name, value)
                if name == "sd_model_checkpoint":
                    self.model.reload()
                if name == "sd_vae" and value in self.vaes():
                    self.model.load_vae()
            return self._generate(params)
        finally:
            if params["override_settings_restore_afterwards"]:
                data |= kept

    def _generate(self, params: Params) -> dict[str, Any]:
        refuse_in_job(params, [checkpoint.title for checkpoint in self.checkpoints.listed])
        refuse_clip_skip(self.options.get("CLIP_stop_at_last_layers"))
        if params.get("mask") and self.faults.take("mask_ignored"):
            params = params | {"mask": None}
        job = self._job(params, self.model.in_use())
        if fault := self.faults.take("exit"):
            os._exit(fault["status"])
        if fault := self.faults.take("hang"):
            time.sleep(fault["seconds"])
        if error := self.faults.error():
            raise error
        units, maps = self.extensions.apply(params)
        job.extra |= units
        self._sample(job)
        job.images += [png(64, 64, b"\xff\xff\xff", "")] * maps
        script = params["script_name"]
        if script and (fault := self.faults.take("script_sets")):  # for good, as "x/y/z plot" does
            self.options.set(fault["option"], fault["value"])
        if self.faults.take("no_images"):
            job.images.clear()
        return job.answer()

    def _job(self, params: Params, checkpoint: Checkpoint) -> Job:
        if self.faults.take("wrong_checkpoint"):
            checkpoint = next(one for one in self.checkpoints.listed if one is not checkpoint)
        self._notice_embeddings()
        clip_skip = self.options.get("CLIP_stop_at_last_layers")
        texts = prompt, negative_prompt = self._without_comments(params)
        loras = self._apply_loras(params, prompt)
        tags = tuple(lora_tags(prompt))
        key = checkpoint, clip_skip, tags, *(params[it] for it in ("steps", "width", "height"))
        padding = self.options.get("comma_padding_backtrack")
        read, read_negative = (
            conditioning.read(text, key, self.embeddings, padding)
            for conditioning, text in zip(self._conditioning, texts, strict=True)
        )
        vae = self.options.get("sd_vae")
        return Job(
            params=params,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=_fixed_seed(params["seed"]),
            subseed=_fixed_seed(params["subseed"]),
            clip_skip=clip_skip,
            model_name=checkpoint.path.stem,
            model_hash=checkpoint.shorthash,
            vae_name=vae if vae in self.vaes() else None,
            timestamp=self.progress.timestamp,
            embeddings=read[0] | read_negative[0],
            conditioning=[read[1], read_negative[1]],
            loras=loras,
            weights=[(item.lora.hash, item.te, item.unet) for item in self._applied],
            has_half_a_vae=self.model.has_half_a_vae,
            settings=self.options.changed(),
        )

    def vaes(self) -> dict[str, Path]:
        """The VAE files by their names."""
        return {path.name: path for path in (self.data_dir / "models/VAE").glob("*")}

    def _without_comments(self, params: Params) -> tuple[str, str]:
        """The prompts that A1111 encodes; a weight that is not a number is its 500."""
        texts = [params["prompt"], params["negative_prompt"]]
        if self.options.get("enable_prompt_comments"):
            texts = [COMMENT.sub("\n", COMMENT_LINE.sub("\n", text)) for text in texts]
        for weight in (found for text in texts for found in WEIGHT.findall(text)):
            try:
                float(weight)
            except ValueError as error:
                raise engine_error("ValueError", str(error)) from error
        return texts[0], texts[1]

    def _apply_loras(self, params: Params, prompt: str) -> list[AppliedLora]:
        missing = self.faults.take("missing_lora")
        found = []
        if params["disable_extra_networks"]:
            return []  # the LoRAs of the last picture stay applied
        if not missing and self.loras:
            found = self.loras.apply(lora_tags(prompt))
        self._apply_bundles([item.lora for item in found])
        # Names and weights are compared: another file of the same name changes nothing.
        if [item[:3] for item in found] != [item[:3] for item in self._applied]:
            self._applied = found
        return found

    def _apply_bundles(self, loras: list[Lora]) -> None:
        """Embeddings inside LoRAs; those of the last picture are forgotten by their names."""
        before, self._bundled = self._bundled, {}
        for name in (name for names in before.values() for name in names):
            self.embeddings.pop(name, None)
        for lora in loras:
            acting = self._bundled[lora.path] = set()
            for name, embedding in lora.bundle.items():
                # A name in the folder comes first, unless this LoRA had taken it before.
                if name in before.get(lora.path, ()) or name not in self.embeddings:
                    self.embeddings[name] = embedding
                    acting.add(name)

    def _sample(self, job: Job) -> None:
        progress = self.progress
        seconds = self.faults.seconds("slow_steps")
        decoding = self.faults.seconds("slow_decoding")
        batch = job.count // job.params["n_iter"]
        for first in range(0, job.count, batch):
            if progress.stop.is_set():
                break
            for progress.step in range(job.params["steps"]):
                if progress.stop.wait(seconds):
                    break
            time.sleep(decoding * batch)
            for index in range(first, first + batch):
                job.draw(index, partial=progress.stop.is_set())
            progress.job_no += 1
            progress.step = 0
