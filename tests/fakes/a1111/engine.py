"""The fake A1111 at work: its models and options, and one txt2img after the other."""

import random
import re
import sqlite3
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from fakes.a1111.faults import Faults
from fakes.a1111.models import (
    Checkpoint,
    Checkpoints,
    HashCache,
    Loras,
    model_files,
    read_embeddings,
    split_tags,
)
from fakes.a1111.picture import Job
from fakes.a1111.request import Params, engine_error
from fakes.a1111.shape import refuse_clip_skip, refuse_in_job
from fakes.a1111.state import LOAD_FAILURES, LoadedModel, Options, Progress, say

COMMENT = re.compile(r"(?:^|\n)?#[^\n]*(?:\n|$)")


def _fixed_seed(seed: int | None) -> int:
    return random.randrange(4294967294) if seed in (None, -1) else seed


class Engine:
    """All but the HTTP routes; `txt2img` runs in one thread only."""

    def __init__(self, flags: Namespace, data_dir: Path, faults: Faults) -> None:
        models = data_dir / "models"
        self.data_dir = data_dir
        self.faults = faults
        self.options = Options(data_dir / "config.json")
        self.progress = Progress()
        hashing = not flags.no_hashing
        self.hashes = HashCache(data_dir / "cache/hashes/cache.db", enabled=hashing)
        self.hashes.create()
        folders = [models / "Stable-diffusion", *map(Path, filter(None, [flags.ckpt_dir]))]
        folders[0].mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folders, self.hashes)
        self.checkpoints.refresh()
        self.model = LoadedModel(self.checkpoints, self.options)
        self.vae_folder = Path(flags.vae_dir or models / "VAE")
        self.refresh_vaes()
        self.embeddings_folder = Path(flags.embeddings_dir or data_dir / "embeddings")
        self.embeddings: dict[str, str] = {}
        lora_folder = Path(flags.lora_dir or models / "Lora")
        self.loras = (
            None if flags.disable_all_extensions else self._lora_extension(lora_folder, hashing)
        )

    def _lora_extension(self, folder: Path, hashing: bool) -> Loras | None:
        path = self.data_dir / "cache/hashes-addnet/cache.db"
        hashes = HashCache(path, enabled=hashing, skip_header=True)
        loras = Loras(folder, hashes)
        try:
            hashes.create()
            loras.refresh()
        except sqlite3.DatabaseError as error:
            say(f"*** Error loading script: lora_script.py\n    sqlite3.DatabaseError: {error}")
            return None
        return loras

    def refresh_vaes(self) -> None:
        """List the VAE files again."""
        self.vaes = {path.name: path for path in model_files(self.vae_folder)}

    def refresh_embeddings(self) -> None:
        """Read the embeddings again, as every txt2img does too."""
        self.embeddings = read_embeddings(self.embeddings_folder, self.hashes)

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

    def txt2img(self, params: Params) -> dict[str, Any]:
        """The answer to a valid request."""
        self.model.load_first()
        passes = 2 if params["enable_hr"] else 1
        self.progress.begin(job_count=(params["n_iter"] or 1) * passes, steps=params["steps"] or 0)
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
            return self._generate(params)
        finally:
            if params["override_settings_restore_afterwards"]:
                data |= kept

    def _generate(self, params: Params) -> dict[str, Any]:
        refuse_in_job(params, [checkpoint.title for checkpoint in self.checkpoints.listed])
        refuse_clip_skip(self.options.get("CLIP_stop_at_last_layers"))
        job = self._job(params, self.model.in_use())
        if fault := self.faults.take("hang"):
            time.sleep(fault.seconds(3600))
        if error := self.faults.error():
            raise error
        self._sample(job)
        has_grid = job.draw_grid()
        if params["save_images"]:
            self._save(job)
        if self.faults.take("no_images"):
            job.images.clear()
        return job.answer(has_grid=has_grid)

    def _job(self, params: Params, checkpoint: Checkpoint) -> Job:
        if self.faults.take("wrong_checkpoint"):
            others = [other for other in self.checkpoints.listed if other is not checkpoint]
            checkpoint = (
                others[0] if others else Checkpoint(Path("other.ckpt"), "other.ckpt", "0" * 64)
            )
        self.refresh_embeddings()
        texts = (
            self._without_comments(params["prompt"]),
            self._without_comments(params["negative_prompt"]),
        )
        vae = self.vaes.get(self.options.get("sd_vae"))
        vae_hash = self.hashes.sha256(f"vae/{vae.name}", vae) if vae else None
        job = Job(
            params=params,
            prompt=texts[0],
            negative_prompt=texts[1],
            seed=_fixed_seed(params["seed"]),
            subseed=_fixed_seed(params["subseed"]),
            clip_skip=self.options.get("CLIP_stop_at_last_layers"),
            model_name=checkpoint.stem,
            model_hash=checkpoint.shorthash,
            vae_name=vae.name if vae else None,
            vae_hash=vae_hash[:10] if vae_hash else None,
            timestamp=self.progress.timestamp,
            embeddings=self._mentioned_embeddings("\n".join(texts)),
        )
        self._apply_loras(job)
        return job

    def _without_comments(self, text: str) -> str:
        return COMMENT.sub("\n", text) if self.options.get("enable_prompt_comments") else text

    def _mentioned_embeddings(self, text: str) -> dict[str, str]:
        def mentioned(name: str) -> bool:
            return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))

        return {name: short for name, short in self.embeddings.items() if mentioned(name)}

    def _apply_loras(self, job: Job) -> None:
        _, tags = split_tags(job.prompt)
        if job.params["enable_hr"] and job.params["hr_prompt"]:
            # The second pass comes last; if it has LoRAs, the picture's account names only them.
            tags = split_tags(job.params["hr_prompt"])[1] or tags
        if fault := self.faults.take("missing_lora"):
            name = fault.params.get("name")
            tags = [tag for tag in tags if name and name not in tag.positional]
        if self.loras and not job.params["disable_extra_networks"]:
            job.loras = self.loras.apply(tags)

    def _sample(self, job: Job) -> None:
        slow = self.faults.take("slow_steps")
        seconds = slow.seconds(0.1) if slow else 0.0
        for round_number in range(job.params["n_iter"]):
            if self.progress.interrupted:
                break
            ended = False
            for step in range(job.params["steps"]):
                self.progress.step = step
                ended = self.progress.wait_step(seconds)
                if ended:
                    break
            first = round_number * job.params["batch_size"]
            for index in range(first, first + job.params["batch_size"]):
                job.draw(index, partial=ended)
            self.progress.next_job()

    def _save(self, job: Job) -> None:
        folder = self.data_dir / "outputs/txt2img-images" / time.strftime("%Y-%m-%d")
        folder.mkdir(parents=True, exist_ok=True)
        taken = len(list(folder.iterdir()))
        for number, image in enumerate(job.images, taken):
            (folder / f"{number:05}-{job.seed}.png").write_bytes(image)
