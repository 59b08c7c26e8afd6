"""The pictures of an answer, wherever they were delivered, and those of a calm worker."""

import base64
import hashlib
import io
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from campaign.jobs import Job
from campaign.world import PATIENCE, World

Pixels = tuple[str, ...]


def pixels(data: bytes) -> str:
    """What is to be seen, without the texts in the file."""
    with Image.open(io.BytesIO(data)) as image:
        size = "x".join(map(str, image.size))
        return f"{image.mode} {size} {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"


def read_answer(world: World, job_id: str, output: dict[str, Any]) -> Pixels:
    """The pictures of an answer, in their order."""
    if "data" in output:
        return tuple(pixels(base64.b64decode(one["b64_json"])) for one in output["data"])
    method = output["delivery"]["method"]
    if method == "stream":
        return tuple(streamed(world, job_id).values())
    return tuple(pixels(_fetch(world, method, one)) for one in output["images"])


def _fetch(world: World, method: str, image: str) -> bytes:
    if method == "base64":
        return base64.b64decode(image, validate=True)
    if method == "put":
        path = image.removeprefix(world.hosts.web)
        taken = [one for one in world.put.received if one.path == path and one.status == 200]
        return taken[-1].body
    answer = requests.get(image, timeout=PATIENCE)
    answer.raise_for_status()
    return answer.content


def streamed(world: World, job_id: str) -> dict[int, str]:
    """The whole pictures that a job has sent to /stream, by their number; of a piece the newest."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    parts: dict[int, int] = {}
    for event in world.plane.events("chunk"):
        piece = event["output"]
        if event["id"] == job_id and piece["type"] == "picture" and "data" in piece:
            found[piece["number"]][piece["part"]] = piece["data"]
            parts[piece["number"]] = piece["parts"]
    whole = {number: one for number, one in found.items() if len(one) == parts[number]}
    return {
        number: pixels(base64.b64decode("".join(data for _, data in sorted(one.items()))))
        for number, one in sorted(whole.items())
    }


FIRST_ORDER_STEPS = 2  # the first and the last step of DPM++ 2M are those of Euler


class Calm:
    """A worker without faults, which draws each drawing once; its pictures are the right ones."""

    def __init__(self, folder: Path, world: World) -> None:
        self._world = World(folder, world.engine, has_bucket=False)
        self._of = world
        self._known: dict[tuple[str, tuple[int, ...]], Pixels] = {}
        self._drawings: dict[str, str] = {}  # picture -> its drawing

    def __enter__(self) -> "Calm":
        self._world.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._world.__exit__(*reason)

    def right(self, job: Job) -> set[Pixels]:
        """What the job may have drawn: one list of pictures for each file that was there."""
        paths = sorted(self._of.seen)
        choices = [sorted(self._of.seen[path]) for path in paths]
        if not job.names_a_variant:
            choices = [[0] for _ in paths]
        return {
            self._drawn(job, dict(zip(paths, one, strict=True)))
            for one in itertools.product(*choices)
        }

    def _drawn(self, job: Job, variants: dict[str, int]) -> Pixels:
        key = json.dumps(job.drawing, sort_keys=True), tuple(variants.values())
        if key not in self._known:
            self._known[key] = self._draw(job, variants)
            self._check_distinct(job, key[0])
        return self._known[key]

    def _draw(self, job: Job, variants: dict[str, int]) -> Pixels:
        world = self._world
        if not world.workers:
            world.wait_until_taking(world.start(leads=True))
        for path, number in variants.items():
            if job.names_a_variant and world.variants[path] != number:
                world.set_variant(path, number)
        drawing = json.dumps(job.drawing)
        for role in ("web", "civitai", "huggingface"):  # its own hosts have the same files
            drawing = drawing.replace(getattr(self._of.hosts, role), getattr(world.hosts, role))
        job_id = world.plane.submit(json.loads(drawing))
        done = world.plane.wait(job_id, PATIENCE)
        assert done["status"] == "COMPLETED", f"the calm worker: {done}\n{world.main.log()[-4000:]}"
        drawn = read_answer(world, job_id, done["output"])
        world.plane.forget()
        return drawn

    def _check_distinct(self, job: Job, drawing: str) -> None:
        """Two drawings have two pictures: else a mix-up of jobs could not be seen."""
        if job.kind in {"upscale", "openai"}:  # a scaled picture; the order of OpenAI's fields
            return
        for picture in self._known[next(reversed(self._known))]:
            other = self._drawings.setdefault(picture, drawing)
            same = json.loads(other), json.loads(drawing)
            assert _essence(same[0]) == _essence(same[1]), f"one picture for two drawings: {same}"


def _essence(drawing: dict[str, Any]) -> Any:
    """What a drawing is about; the number of pictures and of passes may lead to the same one."""
    left = {"n_iter", "batch_size", "subseed", "output", "seed", "init_images"}
    essence = {key: value for key, value in drawing.items() if key not in left}
    if drawing.get("sampler_name") == "DPM++ 2M" and drawing.get("steps", 0) <= FIRST_ORDER_STEPS:
        essence["sampler_name"] = "Euler"
    return essence | {"loras": sorted(map(str, drawing.get("loras", [])))}
