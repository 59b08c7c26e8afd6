"""Jobs drawn at random: what is sent, what it uses, and what must come back."""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.hosts.bucket import KEY_ID, NAME, SECRET

from campaign.scenery import Model, Scenery

WORDS = ("fox", "hare", "castle", "river", "lamp", "boat", "tower", "pine")
SAMPLERS = {"fake": ("Euler a", "DPM++ 2M Karras", "DDIM"), "embedded": ("Euler", "DPM++ 2M")}
LISTS = ("models", "loras", "vaes", "embeddings", "samplers", "schedulers", "templates", "schema")
ASKED_OF_ENGINE = {"samplers", "schedulers"}
LONGEST = 400  # characters of a text that is shown
NO_PICTURE = "bm90IGEgcGljdHVyZQ=="
WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt": "a fox", "stepz": 4}, "INVALID_INPUT"),
    ({"prompt": "a fox", "checkpoint": "not-there"}, "MODEL_NOT_FOUND"),
    ({"prompt": "a fox", "template": "not-there"}, "TEMPLATE_NOT_FOUND"),
    ({"prompt": "a fox", "steps": 10**9}, "INVALID_INPUT"),
    (
        {"task": "upscale", "upscaler_1": "Lanczos", "image": NO_PICTURE},
        "INVALID_INPUT",
    ),
    ({"prompt": "a fox", "checkpoint": "http://10.0.0.1/x.safetensors"}, "MODEL_URL_REFUSED"),
)


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        kind: for the summary.
        input: what is sent.
        drawing: the input of the same pictures in a calm worker; None: there are none.
        uses: what it needs: `engine`, `models` (fetched ones), a host's name, `image`, `s3`, `put`.
        code: with which it must fail; empty: it must complete.
        request: beside the input, such as `s3Config`.
        parts: the jobs of a batch.
    """

    kind: str
    input: dict[str, Any]
    drawing: dict[str, Any] | None = None
    uses: frozenset[str] = frozenset()
    code: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    parts: tuple["Job", ...] = ()

    @property
    def has_timeout(self) -> bool:
        """Whether it may reach a deadline of its own, which a busy machine makes more likely."""
        return "timeout" in self.input or any(part.has_timeout for part in self.parts)

    @property
    def names_a_variant(self) -> bool:
        """Whether it draws with a file that a neighbour replaces."""
        text = json.dumps(self.drawing)
        return '"swap"' in text or '"turn"' in text


def brief(value: Any) -> Any:
    """The same for people: long texts, such as pictures, are cut off."""
    if isinstance(value, dict):
        return {key: brief(one) for key, one in value.items()}
    if isinstance(value, list):
        return [brief(one) for one in value]
    is_long = isinstance(value, str) and len(value) > LONGEST
    return f"{value[:20]}... ({len(value)})" if is_long else value


class Draw:
    """Draws jobs; the same numbers of `random` give the same jobs."""

    def __init__(self, scenery: Scenery, endpoint: str, put_url: Callable[[str], str]) -> None:
        self._scenery = scenery
        self._endpoint, self._put_url = endpoint, put_url
        self._kinds: dict[Callable[[random.Random], Job], float] = {
            self.txt2img: 8,
            self.img2img: 3,
            self.stream: 2,
            self.batch: 2,
            self.upscale: 1,
            self.openai: 1,
            self.prefetch: 1,
            self.listing: 1,
            self.health: 1,
            self.png_info: 0.5,
            self.wrong: 1,
        }
        if scenery.engine == "fake":
            self._kinds[self.interrogate] = 0.5

    def job(self, rng: random.Random) -> Job:
        """Any job."""
        return rng.choices(list(self._kinds), list(self._kinds.values()))[0](rng)

    def plain(self) -> Job:
        """The job that shows that a worker is healthy."""
        drawing = {"prompt": "a calm fox", "steps": 2, "width": 64, "height": 64, "seed": 4}
        drawing |= {"checkpoint": "first", "loras": ["detail"]}
        return Job("plain", drawing, drawing, frozenset({"engine"}))

    # Pictures ------------------------------------------------------------------------------------

    def txt2img(self, rng: random.Random) -> Job:
        drawing, uses = self._drawing(rng)
        drawing |= rng.choice([{}, {}, {"n_iter": 2}, {"batch_size": 2}, self._second_pass()])
        return self._delivered(rng, "txt2img", drawing, uses)

    def img2img(self, rng: random.Random) -> Job:
        drawing, uses = self._drawing(rng)
        picture, more = self._picture(rng)
        drawing |= {"task": "img2img", "init_images": [picture], "denoising_strength": 0.7}
        drawing["steps"] = 4
        if rng.random() < 0.4:
            drawing |= {"mask": base64.b64encode(self._scenery.mask).decode()}
        drawing.pop("width"), drawing.pop("height")
        return self._delivered(rng, "img2img", drawing, uses | more)

    def stream(self, rng: random.Random) -> Job:
        drawing, uses = self._drawing(rng)
        drawing |= {"n_iter": rng.randint(2, 4), "subseed": rng.randint(1, 9)}
        output = {"stream": True}
        return Job("stream", drawing | {"output": output}, drawing, uses | {"stream"})

    def upscale(self, rng: random.Random) -> Job:
        picture, uses = self._picture(rng)
        drawing = {
            "task": "upscale",
            "image": picture,
            "upscaler_1": rng.choice(["Lanczos", "Nearest"]),
        }
        drawing["upscaling_resize"] = rng.choice([2, 3])
        return self._delivered(rng, "upscale", drawing, frozenset({"engine"}) | uses)

    def openai(self, rng: random.Random) -> Job:
        body = {
            "prompt": self._prompt(rng),
            "model": "first",
            "size": "64x64",
            "n": rng.randint(1, 2),
        }
        body |= {"steps": 2, "seed": rng.randint(1, 20)}
        drawing = {"openai_route": "/v1/images/generations", "openai_input": body}
        return Job("openai", drawing, drawing, frozenset({"engine"}))

    def _drawing(self, rng: random.Random) -> tuple[dict[str, Any], frozenset[str]]:
        scenery = self._scenery
        drawing: dict[str, Any] = {
            "prompt": self._prompt(rng),
            "steps": rng.randint(2, 5),
            "width": 64,
            "height": rng.choice([64, 64, 96]),
            "seed": rng.randint(1, 30),
            "sampler_name": rng.choice(SAMPLERS[scenery.engine]),
        }
        models = [rng.choice(scenery.checkpoints)]
        drawing["checkpoint"] = models[0].ref
        loras = rng.sample(scenery.loras, rng.choice([0, 0, 1, 1, 2]))
        drawing["loras"] = [_with_scale(rng, one) for one in loras]
        models += loras
        if scenery.vaes and rng.random() < 0.2:
            models.append(rng.choice(scenery.vaes))
            drawing["vae"] = models[-1].ref
        if scenery.embeddings and rng.random() < 0.2:
            models.append(rng.choice(scenery.embeddings))
            drawing |= {"embeddings": [models[-1].ref], "negative_prompt": models[-1].word}
        if rng.random() < 0.2:
            drawing["clip_skip"] = 2
        return drawing, _uses(models)

    def _second_pass(self) -> dict[str, Any]:
        return {
            "enable_hr": True,
            "hr_scale": 2,
            "denoising_strength": 0.5,
            "hr_upscaler": "Latent",
        }

    def _prompt(self, rng: random.Random) -> str:
        return f"a {rng.choice(WORDS)} and a {rng.choice(WORDS)}"

    def _picture(self, rng: random.Random) -> tuple[str, frozenset[str]]:
        if rng.random() < 0.5:
            return self._scenery.picture_url, frozenset({"image", "web"})
        return base64.b64encode(self._scenery.picture).decode(), frozenset()

    def _delivered(
        self, rng: random.Random, kind: str, drawing: dict[str, Any], uses: frozenset[str]
    ) -> Job:
        """The job with a way of delivery, a format, and sometimes a deadline."""
        count = drawing.get("n_iter", 1) * drawing.get("batch_size", 1)
        output: dict[str, Any] = {}
        request: dict[str, Any] = {}
        way = rng.choice(["base64", "base64", "base64", "s3", "s3Config", "put"])
        if rng.random() < 0.2:
            output["format"] = "webp"
            drawing = drawing | {"output": {"format": "webp"}}
        if way == "put":
            names = [f"{rng.getrandbits(64):x}-{number}" for number in range(count)]
            output |= {"delivery": "put", "urls": [self._put_url(name) for name in names]}
        elif way == "s3":
            output["delivery"] = "s3"
        elif way == "s3Config":
            values = {"accessId": KEY_ID, "accessSecret": SECRET, "bucketName": NAME}
            request["s3Config"] = values | {"endpointUrl": self._endpoint}
        uses |= {"put", "web"} if way == "put" else {"s3"} if way != "base64" else set()
        given = drawing | ({"output": output} if output else {})
        if rng.random() < 0.1:
            given |= {"timeout": rng.choice([5, 20])}
        return Job(kind, given, drawing, uses, request=request)

    # Others --------------------------------------------------------------------------------------

    def batch(self, rng: random.Random) -> Job:
        kinds = [self.txt2img, self.img2img, self.png_info, self.wrong, self.listing]
        drawn = [rng.choices(kinds, [5, 2, 1, 1, 1])[0](rng) for _ in range(rng.randint(1, 4))]
        parts = tuple(part for part in drawn if not part.request) or (self.plain(),)
        uses = frozenset().union(*(part.uses for part in parts))
        code = "BATCH_FAILED" if all(part.code for part in parts) else ""
        inputs = [part.input for part in parts]
        return Job("batch", {"task": "batch", "inputs": inputs}, None, uses, code, parts=parts)

    def prefetch(self, rng: random.Random) -> Job:
        models = [rng.choice(self._scenery.checkpoints), *rng.sample(self._scenery.loras, 2)]
        names = {"checkpoint": models[0].ref, "loras": [one.ref for one in models[1:]]}
        return Job("prefetch", {"task": "prefetch", **names}, None, _uses(models) - {"engine"})

    def listing(self, rng: random.Random) -> Job:
        task = rng.choice(LISTS)
        uses = {"engine"} if task in ASKED_OF_ENGINE else set()
        return Job("list", {"task": task}, None, frozenset(uses))

    def health(self, _rng: random.Random) -> Job:
        return Job("health", {"task": "health"})

    def png_info(self, rng: random.Random) -> Job:
        picture, uses = self._picture(rng)
        return Job("png_info", {"task": "png_info", "image": picture}, None, uses)

    def interrogate(self, rng: random.Random) -> Job:
        picture, uses = self._picture(rng)
        given = {"task": "interrogate", "model": "clip", "image": picture}
        return Job("interrogate", given, None, uses | {"engine"})

    def wrong(self, rng: random.Random) -> Job:
        given, code = rng.choice(WRONG)
        return Job("wrong", given, None, frozenset(), code)


def _with_scale(rng: random.Random, model: Model) -> Any:
    if rng.random() < 0.5 or not isinstance(model.ref, str):
        return model.ref
    return {"name": model.ref, "scale": rng.choice([0.5, 0.8])}


def _uses(models: list[Model]) -> frozenset[str]:
    hosts = {one.host for one in models if one.host}
    return frozenset({"engine", *hosts, *({"models"} if hosts else ())})
