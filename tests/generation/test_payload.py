import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.generation.catalog import Style
from worker.generation.payload import (
    Expected,
    build,
    engine_names,
    has_previews,
    smaller,
    throwaway,
)
from worker.job.models import Models
from worker.job.txt2img import parse


def file(kind, stem):
    return ModelFile(kind, Path(f"/store/{stem}.safetensors"), stem, 1)


LORAS = {name: file("lora", name) for name in ("x", "B", "plain")} | {
    "fox": replace(file("lora", "fox"), trained_words=("fox, red fur",))
}
HIRES = {"enable_hr": True, "denoising_strength": 0.5}
EMPTY = {"prompt": "", "width": 512, "height": 512, "override_settings": {}}


STYLES = {
    "film": Style("film grain", "cartoon"),
    "around": Style("photo of {prompt}, <lora:Grain:0.5>"),
    "detail": Style("# our own\n<lora:x:0.5>", "<lora:x:1>"),
    "hides": Style("photo # {prompt}"),
    "odd": Style("<LoRA:x:1>"),
    "wrong": Style("<lora:x:abc>"),
}


@pytest.fixture
def catalog(catalog):
    return replace(catalog, styles=STYLES)


@pytest.fixture
def compose(catalog):
    """Compose the payload of a job; its LoRAs are found by name, other models are given."""

    def compose_payload(job, **models):
        request = parse(job)
        loras = tuple((LORAS[reference.name], reference) for reference in request.loras)
        names = engine_names(request, catalog)
        return build(request, names, Models(loras=loras, **models), catalog.styles)

    return compose_payload


@pytest.mark.parametrize(
    ("job", "schedule"),
    [
        ({}, "Zero Terminal SNR"),
        ({"override_settings": {"sd_noise_schedule": "Default"}}, "Default"),
    ],
)
def test_zero_terminal_snr_sets_its_option_unless_the_job_does(compose, job, schedule):
    composed = compose(job, zero_terminal_snr=True)
    assert composed.body["override_settings"] == {"sd_noise_schedule": schedule}
    assert composed.warnings == ()


KARRAS = {"hr_sampler_name": "DPM++ SDE Karras"}
SAME = {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}
HYPERTILE = {"HYPERTILE": {"args": [True]}}
BODIES = [
    # the job's fields -> the body's fields
    ({"prompt": "a fox"}, {"prompt": "a fox"}),
    ({"sampler_name": "dpm++ 2m karras"}, {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}),
    ({"sampler_index": "Euler a"}, {"sampler_name": "Euler a"}),
    ({"scheduler": "sgm_uniform"}, {"scheduler": "SGM Uniform"}),
    (HIRES | KARRAS, HIRES | {"hr_sampler_name": "DPM++ SDE", "hr_scheduler": "Karras"}),
    (HIRES | {"hr_upscaler": "Latent"}, HIRES | {"hr_upscaler": "Latent"}),
    (SAME, {}),
    (HIRES | SAME, HIRES),
    ({"alwayson_scripts": HYPERTILE}, {"alwayson_scripts": HYPERTILE}),
    ({"width": 515, "height": 519}, {"width": 512, "height": 512}),
    ({"clip_skip": 2}, {"override_settings": {"CLIP_stop_at_last_layers": 2}}),
    ({"output": {"preview": True}}, {"override_settings": {"live_previews_enable": True}}),
]


@pytest.mark.parametrize(("job", "body"), BODIES)
def test_a_job_becomes_the_body_for_a1111(compose, job, body):
    composed = compose(job).body
    assert composed == EMPTY | body
    assert has_previews(composed) == ("output" in job)


ON = {"args": [True]}
CLIENTS = json.loads((Path(__file__).parents[1] / "job/client_bodies.json").read_text())


@pytest.mark.parametrize("client", sorted(CLIENTS.keys() - {"aiyabot"}))  # it asks for enable_hr
def test_the_embedded_engine_takes_what_clients_send_when_nothing_was_chosen(client):
    request = pytest.importorskip("engine.api.request")
    request.Txt2Img(**build(parse(CLIENTS[client]), {}, Models()).body).check()


SDE_KARRAS, UNI_PC = {"sampler_name": "DPM++ 2M SDE Karras"}, {"sampler_name": "UniPC"}
FAST = {"sampler_name": "DPM fast", "hr_second_pass_steps": 1}
THIRD = {"sampler_name": "Euler", "hr_sampler_name": "DPM++ 3M SDE", "steps": 1}
REFUSED = [
    ({"sampler_name": "Eulr"}, "sampler_name 'Eulr'"),
    ({"scheduler": "Karas"}, "scheduler 'Karas'"),
    (HIRES | {"hr_upscaler": "Latnt"}, "hr_upscaler 'Latnt'"),
    (HIRES | {"hr_sampler_name": "Eulr"}, "hr_sampler_name 'Eulr'"),
    ({"script_name": "nope"}, "script_name 'nope'"),
    ({"alwayson_scripts": {"ADetailr": ON}}, "alwayson_scripts 'ADetailr': it has no such"),
    ({"alwayson_scripts": {"ADetailer": ON}}, "A1111's image with --build-arg WITH_ADETAILER=1"),
    ({"alwayson_scripts": {"Refiner": ON}}, "only on A1111's own page. Send refiner_checkpoint"),
    ({"alwayson_scripts": {"Hypertyle": ON}}, "Did you mean 'Hypertile'?"),
    ({"script_name": "Prompt matrix"}, "takes 5 arguments, but the job has 0. Send one value for"),
    ({"script_name": "x/y/z plot", "script_args": [1] * 19}, "takes 18 arguments, but the job"),
    ({"alwayson_scripts": {"extra options": ON}}, "takes 0 arguments, but the job has 1"),
    ({"styles": ["nope"]}, "styles 'nope'"),
    ({"negative_prompt": "(a), " * 300}, "negative_prompt has 600 of the characters"),
    (SDE_KARRAS | {"steps": 1}, "steps = 1: sampler 'DPM++ 2M SDE' needs"),
    (UNI_PC | {"steps": 2}, "needs at least 3"),
    (UNI_PC | {"steps": 4, "override_settings": {"uni_pc_order": 5}}, "needs at least 5"),
    (HIRES | FAST, "hr_second_pass_steps = 1: sampler 'DPM fast' needs at least 2"),
    (HIRES | THIRD, "sampler 'DPM++ 3M SDE' needs at least 2"),
]


@pytest.mark.parametrize(("job", "message"), REFUSED)
def test_unknown_names_and_too_few_steps_are_refused(catalog, job, message):
    with pytest.raises(InvalidInput) as raised:
        engine_names(parse(job), catalog)
    assert message in f"{raised.value.message} {raised.value.hint}"


SECRETS = "https://a:hunter2@x.y/z?token=hunter3#key=hunter4"
MENTIONS = [
    *({name: SECRETS} for name in ("sampler_name", "scheduler", "sampler_index", "script_name")),
    *(HIRES | {f"hr_{name}": SECRETS} for name in ("sampler_name", "scheduler", "upscaler")),
    *({"prompt": f"a {tag}"} for tag in (f"<lora:{SECRETS}:1>", f"<x:{SECRETS}>")),
    *({"prompt": f"a {text}"} for text in (f"{{{SECRETS}|b}}", SECRETS, f"lora:{SECRETS}:1")),
    *({"negative_prompt": f"a {text}"} for text in (f"<lora:{SECRETS}:1>", SECRETS)),
    {"sampler_name": f"Euler Karras {SECRETS}", "scheduler": "Uniform"},
    {"styles": [SECRETS]},
    {"alwayson_scripts": {SECRETS: {"args": [1]}}},
    {SECRETS: 1},
    {"override_settings": {SECRETS: 1}},
    {"output": {"format": SECRETS}},
]


@pytest.mark.parametrize("job", MENTIONS, ids=lambda job: str(job)[:40])
def test_what_is_said_of_a_job_has_no_secrets_of_a_url(compose, job):
    try:
        said = str(compose(job).warnings)
    except InvalidInput as error:
        said = f"{error} {error.details}"
    assert "hunter" not in said


def test_models_are_sent_by_stem_and_expected_in_the_answer(compose):
    payload = compose(
        {"prompt": "a", "loras": [{"name": "x", "scale": 0.5}], "batch_size": 2, "n_iter": 3},
        checkpoint=replace(file("checkpoint", "base"), verified_sha256="ab" * 32),
        vae=file("vae", "v"),
        hr_checkpoint=file("checkpoint", "second"),
        refiner=file("checkpoint", "third"),
    )
    assert payload.body == EMPTY | {
        "prompt": "a <lora:x:0.5>",
        "batch_size": 2,
        "n_iter": 3,
        "hr_checkpoint_name": "second",
        "refiner_checkpoint": "third",
        "override_settings": {"sd_model_checkpoint": "base", "sd_vae": "v.safetensors"},
    }
    assert payload.expected == Expected(
        *(6, "base", frozenset({"x"}), "v.safetensors"),
        checkpoint_sha256="ab" * 32,
        size=(512, 512),
    )
    script = {"script_name": "prompt matrix", "script_args": [0] * 5}
    assert compose(script).expected.images is None  # the script decides


def test_the_checkpoint_is_the_first_setting(compose):
    """A1111 computes the empty prompt while it loads it, with the settings that came before."""
    job = {"override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "base"}}
    composed = compose(job, checkpoint=file("checkpoint", "base"))
    assert next(iter(composed.body["override_settings"])) == "sd_model_checkpoint"


@pytest.mark.parametrize(
    ("styles", "in_file", "expected"),
    [([], False, False), ([], True, True), (["detail"], False, True), (["film"], False, False)],
)
def test_a_lora_may_have_embeddings_in_its_file(compose, styles, in_file, expected):
    """That of a style is not looked up."""
    composed = compose({"prompt": "a", "styles": styles}, has_bundle=in_file)
    assert composed.expected.has_bundle == expected


X, FOX, WORDS = {"name": "x"}, {"name": "fox"}, "a, fox, red fur <lora:fox:1>"


@pytest.mark.parametrize(
    ("job", "prompt"),
    [
        ({"loras": ["x"], "hr_prompt": "a"}, "a <lora:x:1>"),
        ({"loras": [X | {"scale": 0.7, "te": 0}]}, "a <lora:x:0:0.7>"),
        ({"loras": [X | {"unet": 0.2}]}, "a <lora:x:1:0.2>"),
        ({"loras": [X | {"te": 0.1, "unet": 0.1}]}, "a <lora:x:0.1>"),
        ({"loras": ["fox"]}, "a <lora:fox:1>"),
        # trained words: for all LoRAs of the job, or as a LoRA itself has it
        ({"loras": ["fox"], "trigger_words": True}, WORDS),
        ({"loras": [FOX | {"trigger_words": True}]}, WORDS),
        ({"loras": [FOX | {"trigger_words": False}], "trigger_words": True}, "a <lora:fox:1>"),
    ],
)
def test_loras_become_tags_and_trained_words_in_the_prompt(compose, job, prompt):
    payload = compose(HIRES | {"prompt": "a"} | job)
    assert (payload.body["prompt"], payload.warnings) == (prompt, ())
    assert payload.body.get("hr_prompt", prompt) == prompt  # the second pass has the same


def test_a_tag_that_the_caller_wrote_is_used_once_and_proven(compose):
    job = {"prompt": "a <lora:Alias:0.3>", "loras": ["x"]}
    payload = compose(job, written_loras={"Alias": LORAS["x"]})
    assert (payload.body["prompt"], payload.expected.loras) == ("a <lora:x:0.3>", {"x"})


@pytest.mark.parametrize(
    ("job", "proven", "unproven"),
    [
        (HIRES, {"B", "C"}, ["'A'"]),
        (HIRES | {"hr_prompt": "c"}, {"B"}, ["'A'"]),
        (HIRES | {"hr_prompt": ""}, {"A", "B"}, []),
        ({}, {"A", "B"}, []),
        ({"disable_extra_networks": True, "loras": []}, set(), []),
    ],
)
def test_of_two_passes_a1111_reports_the_loras_of_the_second(compose, job, proven, unproven):
    """Activating the second pass's LoRAs overwrites `Lora hashes`."""
    prompts = {"prompt": "a <lora:A:1>", "hr_prompt": "c <lora:C:1>", "loras": ["B"]}
    payload = compose(prompts | job)
    warnings = [f"LoRA {one}: not proven, A1111 reports only the second pass." for one in unproven]
    assert payload.expected.loras == proven
    assert [warning for warning in payload.warnings if "not proven" in warning] == warnings


@pytest.mark.parametrize(
    ("job", "warning"),
    [
        ({"override_settings": {"pad_cond_uncond": True}}, "can depend on earlier jobs"),
        ({"width": 515}, "width 515 is not a multiple of 8: 512 was used."),
        ({"prompt": "a <hypernet:old:1>"}, "hypernetwork 'old': not proven"),
        ({"negative_prompt": "<lora:x:1>"}, "as plain text"),
        ({"hr_upscaler": "Latent"}, "enable_hr is false"),
        ({"hr_scale": 2.0}, None),
        ({"prompt": "<lora:x:1>", "loras": ["x"]}, "already in the prompt"),
        ({"loras": ["plain"], "trigger_words": True}, "LoRA 'plain': its trained words are unkn"),
        ({"styles": ["odd"]}, "style 'odd': '<LoRA:x:1>' is no tag that A1111 knows"),
        ({"hr_negative_prompt": "<lora:x:1>"} | HIRES, "hr_negative_prompt has a LoRA tag"),
        ({"prompt": "<lora:x>", "disable_extra_networks": True}, "its tags have no effect"),
        ({"prompt": "<LoRA:x:1>"}, "is read as '<lora:x:1>'"),
        ({"override_settings": {"emphasis": "None"}, "prompt": "(a:1.2.3)"}, None),
    ],
)
def test_a_field_without_its_usual_effect_gets_a_warning(compose, job, warning):
    warnings = compose(job).warnings
    assert len(warnings) == bool(warning)
    assert (warning or "") in "".join(warnings)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_an_embedding_is_proven_if_a_prompt_uses_it(compose, field):
    for text, used in (("bad, EasyNeg", {"easyneg"}), ("easy", set())):
        job = {field: text, "embeddings": ["easyneg"]}
        payload = compose(job, embeddings=(file("embedding", "easyneg"),))
        assert payload.expected.embeddings == used
        assert bool(payload.warnings) == (not used)
        assert "embeddings" not in payload.body


def test_out_of_memory_gets_a_hint_with_a_smaller_picture():
    assert "batch_size to 1" in smaller(EMPTY | {"batch_size": 4})
    assert "Lower hr_scale (now 3)" in smaller(EMPTY | {"enable_hr": True, "hr_scale": 3})
    assert "Try 704x704" in smaller(EMPTY | {"width": 1024, "height": 1024})
    assert "is small already" in smaller(EMPTY | {"width": 64, "height": 64})


def test_a_throwaway_picture_keeps_the_models_and_changes_the_prompt():
    models = {"override_settings": {"sd_model_checkpoint": "m"}}
    tiny = throwaway({"prompt": "a", "steps": 50} | models)
    expected = {"prompt": "", "steps": 1, "width": 64} | models
    assert {key: tiny[key] for key in expected} == expected


# How A1111 reads prompts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "sent"),
    [
        # without comments: a style or a tag behind one would be a part of it
        ({"prompt": "a # b", "styles": ["film"]}, {"prompt": "a \n", "styles": ["film"]}),
        ({"negative_prompt": "a # b"}, {"negative_prompt": "a \n"}),
        ({"prompt": "a # b", "loras": ["x"]}, {"prompt": "a \n <lora:x:1>"}),
        ({"prompt": "<LoRA:x:1> <other:x:1>"}, {"prompt": "<lora:x:1> <other:x:1>"}),
        # A1111's own switch would leave the LoRAs of the last job applied
        ({"prompt": "a <lora:x:1> # b", "disable_extra_networks": True}, {"prompt": "a  \n"}),
    ],
)
def test_prompts_are_sent_as_a1111_reads_them(compose, job, sent):
    assert compose(job).body == EMPTY | sent


@pytest.mark.parametrize(
    ("job", "proven"),
    [
        ({"styles": ["around"]}, {"Grain"}),
        ({"styles": ["film", "detail"], "prompt": "<lora:B:1>"}, {"x", "B"}),
        ({"styles": ["hides"], "prompt": "<lora:B:1>"}, {"B"}),  # then the proof fails
        ({"styles": ["odd"]}, set()),
        (HIRES | {"styles": ["around"], "hr_prompt": "b"}, {"Grain"}),
        ({"styles": ["film"], "disable_extra_networks": True}, set()),
        ({"prompt": "# <lora:B:1>\na"}, set()),
        ({"negative_prompt": "<lora:B:1>"}, set()),
    ],
)
def test_the_loras_of_the_whole_prompt_are_proven(compose, job, proven):
    assert compose(job).expected.loras == proven


TWICE = {"written_loras": {"Alias": LORAS["x"], "x": LORAS["x"]}}
COPY = replace(file("lora", "copy"), verified_sha256="ab" * 32)


@pytest.mark.parametrize(
    ("job", "models", "message"),
    [
        ({"loras": ["x", {"name": "x", "scale": 0.9}]}, {}, "loras.1 is the same LoRA as loras.0"),
        ({"prompt": "<lora:x:0.3> <lora:x:0.9>"}, {}, "prompt has the LoRA 'x' twice"),
        (HIRES | {"hr_prompt": "<lora:x> <LORA:x>"}, {}, "hr_prompt has the LoRA 'x' twice"),
        ({"prompt": "<lora:x> <lora:Alias>"}, TWICE, "'Alias' and the tag of 'x' are the same"),
        ({"prompt": "<lora:x:1>", "styles": ["detail"]}, {}, "prompt has the LoRA 'x' twice"),
        ({"loras": ["x"], "styles": ["detail"]}, {}, "prompt has the LoRA 'x' twice"),
        ({"styles": ["wrong"]}, {}, "not a number"),
        ({"styles": ["around"], "disable_extra_networks": True}, {}, "cannot switch off"),
        (
            {"styles": ["film"], "negative_prompt": "(a:1.2.3)"},
            {},
            "negative_prompt has the weight",
        ),
    ],
)
def test_a_lora_that_is_named_twice_is_refused(compose, job, models, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        compose(job, **models)


def test_one_file_under_two_names_is_refused():
    request = parse({"loras": ["one", "two"]})
    loras = [(replace(COPY, stem=ref.name), ref) for ref in request.loras]
    with pytest.raises(InvalidInput, match=r"loras\.0 and loras\.1 are the same LoRA, 'one'"):
        build(request, {}, Models(loras=tuple(loras)))
    written = {"B": replace(COPY, stem="B")}
    with pytest.raises(InvalidInput, match=r"loras\.0 and the tag of 'B' are the same"):
        build(request, {}, Models(loras=tuple(loras[:1]), written_loras=written))


def test_an_embedding_in_a_comment_or_a_tag_is_not_used_but_one_in_a_style_is(compose):
    easy = (file("embedding", "easyneg"), file("embedding", "cartoon"))
    job = {"prompt": "a # easyneg\n<lora:easyneg:1>", "styles": ["film"]}
    payload = compose(job | {"embeddings": ["easyneg", "cartoon"]}, embeddings=easy)
    assert payload.expected.embeddings == {"cartoon"}
    assert "embedding 'easyneg' is in no prompt" in payload.warnings[-1]
