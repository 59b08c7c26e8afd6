"""Whatever a job says: one of our errors, or a body that A1111 does not answer with a 500."""

import json
from pathlib import Path

from fakes.a1111.shape import shape_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.job.models import Models
from worker.job.request import OverrideSettings, Txt2ImgRequest, parse
from worker.webui.payload import build, engine_names

NAMES = ["DPM++ 2M Karras", "Euler a", "euler", "k_dpmpp_sde", "Karras", "SGM Uniform", "nope", ""]
UPSCALERS = ["Latent", "Lanczos", "nope", "None"]
numbers = st.one_of(
    st.integers(-2, 200),
    st.integers(60, 4200),
    st.integers(-(2**70), 2**70),
    st.floats(-1, 2),
    st.floats(),
    st.sampled_from(["20", "abc", "1e3", " 7 "]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["a cat", "<lora:x:0.5>", "<lora:x:bad>", "# <lora:x>", "\ud83d", "a\x00", "😀"]
    ),
    st.sampled_from(NAMES + UPSCALERS),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
models = st.one_of(
    texts,
    st.fixed_dictionaries(
        {"name": texts}, optional={"scale": numbers, "te": numbers, "x": scalars}
    ),
)


def values_for(field: str) -> st.SearchStrategy:
    """Mostly something of the right kind, so that inputs get past the first check."""
    if field in {"checkpoint", "vae"}:
        return models
    if field == "loras":
        return st.lists(models, max_size=3)
    if field == "override_settings":
        names = st.sampled_from([*OverrideSettings.model_fields, "nope"])
        return st.dictionaries(names, scalars, max_size=3)
    if field == "alwayson_scripts":
        names = st.sampled_from(["hypertile", "nope"])
        return st.dictionaries(names, st.just({"args": []}) | anything, max_size=2)
    if field in {"hr_upscaler", "sampler_name", "scheduler", "hr_sampler_name", "hr_scheduler"}:
        return st.sampled_from(NAMES + UPSCALERS)
    return st.one_of(scalars, good_values(field))


def good_values(field: str) -> st.SearchStrategy:
    """What the schema's own bounds allow, their edges included."""
    info = Txt2ImgRequest.model_fields[field]
    bounds = [
        getattr(rule, side)
        for rule in info.metadata
        for side in ("ge", "le")
        if hasattr(rule, side)
    ]
    if len(bounds) == 2 and info.annotation in {int, int | None}:
        return st.integers(*bounds)
    return (
        st.floats(*bounds)
        if len(bounds) == 2
        else st.just(info.get_default(call_default_factory=True))
    )


FIELDS = list(Txt2ImgRequest.model_fields)
one_field = st.sampled_from(FIELDS).flatmap(lambda f: st.tuples(st.just(f), values_for(f)))
job_inputs = st.one_of(
    st.lists(one_field, max_size=6).map(dict),
    st.lists(st.sampled_from(FIELDS).flatmap(lambda f: st.tuples(st.just(f), good_values(f)))).map(
        dict
    ),
    st.dictionaries(texts, anything, max_size=3),
    anything,
)


def found(kind, wanted):
    return ModelFile(kind, Path("/store/x.safetensors"), "x", 1) if wanted else None


@settings(max_examples=6_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(job_inputs)
def test_any_input_is_refused_or_has_a_shape_that_a1111_takes(catalog, job_input):
    try:
        request = parse(job_input)
        names = engine_names(request, catalog)
        composed = build(
            request,
            names,
            Models(
                checkpoint=found("checkpoint", request.checkpoint),
                loras=tuple((found("lora", True), reference) for reference in request.loras),
                vae=found("vae", request.vae),
                refiner=found("checkpoint", request.refiner_checkpoint),
                hr_checkpoint=found("checkpoint", request.hr_checkpoint_name),
            ),
        )
    except InvalidInput as refused:
        json.dumps(str(refused)).encode()
        return
    body = json.loads(json.dumps(composed.body, allow_nan=False))
    error = shape_error(body, checkpoints=["x"])
    # A card that is too small is no matter of shape.
    assert error is None or error[0] < 500 or error[1]["error"] == "OutOfMemoryError", (body, error)
