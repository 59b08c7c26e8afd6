"""Answers of the engine to every route that the worker asks, and errors of the engine."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from fakes.recorded import FOLDER, recorded

from tests.fuzz.jobs import PICTURE, few
from tests.fuzz.target import target
from worker import large_json
from worker.answer import plain
from worker.errors import WorkerError
from worker.extensions.proof import ExpectedUnits
from worker.formats.model_file import ModelFile
from worker.generation import answers, ending, enlarged, proof
from worker.generation.answers import reading
from worker.generation.payload import Expected
from worker.job.models import Models
from worker.tasks import interrogate, lists, picture_result
from worker.webui.client import WebUI, error_from_answer, of_generation
from worker.webui.readiness import check_gpu
from worker.webui.supervisor import Supervisor, _read

RECORDED = [few(recorded(path.stem)) for path in sorted(FOLDER.glob("get_*.json"))]
INFO = {
    "sd_model_name": "x",
    "sd_model_hash": "0123456789",
    "sd_vae_name": "v.safetensors",
    "index_of_first_image": 0,
    "all_seeds": [1],
    "infotexts": ["a\nSteps: 1, Model: x, Model hash: 0123456789, VAE: v.safetensors"],
    "extra_generation_params": {"Lora hashes": "l: 0123456789ab", "Mask blur": 4},
}
DRAWN = {"images": [PICTURE], "parameters": {"prompt": "a"}, "info": json.dumps(INFO)}
WORDS = [*INFO, "x", "l", "images", "info", "parameters", "state", "job", "ram", "cuda", "system"]
SCRIPT = Expected(None, "x", script_args=("--sd_model y", [["x [01]"]]))
EXPECTED = [
    Expected(1, "x", frozenset({"l"}), "v.safetensors"),
    Expected(1, "x", checkpoint_sha256="0123456789" + "0" * 54, size=(64, 64)),
    Expected(1, reported={"Mask blur": 4}),
    SCRIPT,
    replace(SCRIPT, vae="v.safetensors", loras=frozenset({"l"})),
    Expected(1, embeddings=frozenset({"e"})),
]
MODELS = Models(checkpoint=ModelFile("checkpoint", Path("/store/x.safetensors"), "x", 1))


class Session:
    """Answers every request with what was drawn."""

    def __init__(self):
        self.status, self.content = 200, b""

    def request(self, *_, **__):
        return self

    def __enter__(self):
        return SimpleNamespace(status_code=self.status, raw=self)

    def __exit__(self, *_):
        pass

    def read(self, **_):
        return self.content


@cache
def engine():
    """A client of an engine whose answers are drawn."""
    webui = WebUI("http://127.0.0.1:1")
    webui._session = Session()
    return webui, webui._session


def _draw(webui):
    """From the pictures to what a job's answer says about them."""
    answer = webui.draw("txt2img", {}, 1)
    for expected in EXPECTED:
        try:
            proof.check(answer.facts, answer.images, expected)
        except WorkerError:
            continue
        assert len(answer.seeds) == len(answer.images)
        plain([answer.parameters, answer.info])
        picture_result.models_used(answer.facts, MODELS)


def _listed(webui):
    checkpoints, loras = webui.sd_models(), webui.loras()
    proof.check_listed(checkpoints, loras, EXPECTED[0])


def _upscaled(webui):
    answer = webui.post("extra-single-image", None, 1)
    with reading("extra-single-image"):
        enlarged.read(answer, (64, 64))


def _captioned(webui):
    answer = webui.post("interrogate", None, 1)
    with reading("interrogate"):
        interrogate._caption(answer, "clip")


def _lists(webui):
    answer = webui.get("samplers")
    for read in (
        *(lambda: lists._samplers(answer), lambda: lists._schedulers(answer)),
        *(lambda: lists._upscalers(answer, answer), lambda: lists._scripts(answer, answer)),
        *(lambda: lists._styles(answer), lambda: lists._loaded_and_skipped(answer)),
        *(lambda: lists._by("name")(answer), lambda: lists._by("model_name")(answer)),
    ):
        try:
            with reading("x"):
                found = read()
        except WorkerError:
            continue
        json.dumps(plain(found), allow_nan=False)


READERS = (
    _draw,
    _listed,
    _upscaled,
    _captioned,
    _lists,
    lambda webui: of_generation(webui.progress(preview=True)),
    lambda webui: ending.seen(webui.progress()),
    lambda webui: webui.is_idle(),
    lambda webui: proof.check_embeddings(webui.embeddings(), EXPECTED[-1]),
    lambda webui: plain(webui.options()),
    lambda webui: check_gpu(webui.memory()),
    lambda webui: webui.ram_used(),
    lambda webui: webui.catalog(),
)


@target(WorkerError, share=2.0)
def engine_answer(draw):
    """An answer of any route, read as that of any other."""
    webui, session = engine()
    seeds = [draw.choice(RECORDED), DRAWN, DRAWN, {"caption": "a fox"}]
    session.content = draw.json(seeds, WORDS)
    session.status = draw.choice((200, 200, 200, 200, 404, 422, 500, 503))
    draw.choice(READERS)(webui)


@target(WorkerError, share=2.0)
def engine_info(draw):
    """What the engine reports about its pictures, and the proof of it."""
    facts = answers.facts(draw.json([INFO], WORDS).decode("utf-8", "replace"))
    answer = {**DRAWN, "info": json.dumps(facts)}
    webui, session = engine()
    session.status, session.content = 200, json.dumps(answer).encode()
    _draw(webui)
    proof.check(
        facts, [PICTURE], replace(draw.choice(EXPECTED), units=ExpectedUnits({}, draw.randrange(2)))
    )


@target()
def engine_error(draw):
    """An answer with another status than 200."""
    seeds = [recorded(path.stem) for path in FOLDER.glob("err_*.json")]
    content = draw.json(seeds)
    try:
        answer = large_json.parse(content)
    except ValueError:
        answer = object()
    text = content[:5000].decode(errors="replace")
    found = error_from_answer("txt2img", draw.choice((200, 400, 404, 422, 500, 503)), answer, text)
    assert len(str(found)) < 1_500


@target(per_mb=20.0)
def json_with_pictures(draw):
    """JSON with long texts is read and written as Python's own `json` does it."""
    picture = "QUJD" * draw.choice((1, 8_000, 16_384, 16_385, 20_000))
    document = draw.json([{"images": [picture], picture: 1}, DRAWN, [picture]], [picture])
    try:
        expected = json.loads(document)
    except (ValueError, RecursionError):
        try:
            large_json.parse(document)
        except ValueError:
            return
        return
    try:
        found = large_json.parse(document)
    except ValueError:  # nested too deep for it, but not for `json`
        return
    assert repr(found) == repr(expected)
    try:
        written = b"".join(large_json.document_of(found).parts(70_000))
    except (ValueError, RecursionError):
        return
    assert repr(json.loads(written)) == repr(expected)


@cache
def run_dir():
    """A folder for the state of start.sh."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@target()
def run_dir_file(draw):
    """The file in RUN_DIR that says what the engine's process does."""
    file = run_dir() / "engine"
    file.write_bytes(
        draw.blob([b"running 12\n", b"failed 137 start.sh gave up\n", b"restarting 1"])
    )
    supervisor = Supervisor(run_dir(), 1)
    supervisor.engine()
    assert isinstance(supervisor.can_restart, bool)
    try:
        _read(file)
    except ValueError:
        return
