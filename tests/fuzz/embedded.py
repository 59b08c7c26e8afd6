"""What the embedded engine reads: prompts, requests, options, pictures and model files.

Its server answers each of these errors as A1111 does, so here they are allowed. What counts is that
nothing else is raised and that each input takes little time.
"""

import base64
import json
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from fakes import model_files as fakes
from pydantic import ValidationError

from engine.api import options as engine_options
from engine.api.img2img import Img2Img
from engine.api.job import Job
from engine.api.request import Txt2Img
from engine.errors import Refused
from engine.images import decode, generation_text, png_info
from engine.models import architecture, embeddings, files
from engine.prompt import encoding, syntax
from engine.prompt.schedule import schedule
from engine.prompt.styles import Styles
from engine.sampling import samplers
from tests.fuzz.jobs import BODIES, FIELDS, OWN
from tests.fuzz.model_files import STARTS, header_of
from tests.fuzz.pictures import files as pictures
from tests.fuzz.prompts import INFO, PROMPT
from tests.fuzz.target import target

ANSWERED = (Refused, ValueError, LookupError, TypeError, OverflowError, OSError)
NAMES = sorted(engine_options.CHANGEABLE)
EMPHASES = ("Original", "None", "Ignore", "No norm")


class Tokenizer:
    """A token for each word and each other character, as CLIP's tokenizer has about."""

    eos_token_id = 1

    def __call__(self, texts, **_):
        return SimpleNamespace(input_ids=[self._ids(text) for text in texts])

    @staticmethod
    def _ids(text):
        return [2 + len(word) % 7 for word in text.replace(",", " , ").split()]


@target(Refused, ValueError, OverflowError, seconds=1.0, per_mb=40.0, share=1.5)
def engine_prompt(draw):
    """A1111's syntax: tags, brackets, schedules, chunks."""
    text = syntax.without_comments(draw.text(PROMPT))
    plain, _ = syntax.extract_loras(text)
    syntax.refuse_hypernetworks(text)
    stretches = schedule(plain, draw.choice((1, 20, 150)), draw.choice((None, 20)))
    assert len(stretches) <= 151
    emphasis = draw.choice(EMPHASES)
    for part, _ in syntax.split_parts(plain):
        encoding.chunk(Tokenizer(), part, encoding.TextOptions(emphasis=emphasis))


@target(*ANSWERED, seconds=1.0)
def engine_request(draw):
    """A request for a picture, up to the moment when it would be drawn."""
    kind = draw.choice((Txt2Img, Img2Img))
    document = draw.json([*BODIES, *OWN[:2]], FIELDS)
    try:
        request = kind.model_validate_json(document)
    except ValidationError:
        return
    request.check()
    settings = engine_options.DEFAULTS | engine_options.ALL
    overrides = request.override_settings or {}
    engine_options.check(overrides)
    Job(request, settings | overrides, styles())
    json.dumps(request.echo(), allow_nan=False)


@cache
def folder():
    """A data folder."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@cache
def styles():
    """Some styles, one of which repeats the prompt."""
    file = folder() / "styles.csv"
    file.write_text("name,prompt,negative_prompt\nx,{prompt} a {prompt},b\ny,z,\n")
    return Styles(file)


@target(Refused, seconds=1.0)
def engine_styles(draw):
    """styles.csv of any content."""
    file = folder() / "any.csv"
    seeds = [b"name,prompt,negative_prompt\nx,a {prompt},b\n", b"name,text\nx,y"]
    file.write_bytes(draw.blob(seeds))
    found = Styles(file)
    json.dumps(found.describe())
    prompt, negative = found.apply("a", "b", list(found.all)[:3])
    found.extract(prompt, negative)


@target(*ANSWERED, seconds=1.0)
def engine_config_json(draw):
    """The engine's config.json: its start ends with one sentence, or it is read."""
    file = folder() / "config.json"
    file.write_bytes(draw.json([engine_options.DEFAULTS, {"x": [1]}], NAMES))
    found = engine_options.Options(file)
    found.change({"CLIP_stop_at_last_layers": 2})
    assert engine_options.Options(file).values["CLIP_stop_at_last_layers"] == 2


@target(*ANSWERED, seconds=1.0)
def engine_infotext(draw):
    """Generation parameters in a picture."""
    json.dumps(generation_text.read(draw.text(INFO), styles()))


@target(*ANSWERED, seconds=2.0)
def engine_picture(draw):
    """A picture of a request."""
    data = draw.blob(pictures())
    found = decode.read(base64.b64encode(data).decode())
    text, items = png_info.texts_of(found, {})
    json.dumps([text, png_info.writable(list(items.values()))], allow_nan=False)


@target(*ANSWERED, seconds=2.0)
def engine_model_file(draw):
    """A file in one of the model folders."""
    place = folder() / draw.choice(("x.safetensors", "x.pt", "x.bin"))
    place.write_bytes(
        draw.counted(header_of(draw) + bytes(draw.choice((0, 4, 1_000))))
        if draw.randrange(2)
        else draw.blob([*STARTS, *(fakes.safetensors(one) for one in (fakes.SD1, fakes.EMBEDDING))])
    )
    embeddings._read_or_none(place)
    with files.open_tensors(place) as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in [*opened.keys()]}
        architecture.infer(shapes, opened.metadata() or {})


@target(*ANSWERED)
def engine_names(draw):
    """Names of samplers and schedulers."""
    sampler = samplers.find_sampler(draw.choice(("Euler a", "k_dpmpp_2m", draw.text())))
    samplers.find_scheduler(sampler, draw.choice((None, "Karras", draw.text())))
