import re
from dataclasses import replace
from pathlib import Path

import pytest

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.job.models import Models
from worker.job.request import parse
from worker.webui.payload import build, engine_names, smaller, throwaway


def file(kind, stem):
    return ModelFile(kind, Path(f"/store/{stem}.safetensors"), stem, 1)


def compose(catalog, job_input, **models):
    request = parse(job_input)
    loras = tuple(zip(models.pop("loras", ()), request.loras, strict=True))
    return build(request, engine_names(request, catalog), Models(loras=loras, **models))


def test_only_what_the_job_said_is_sent(catalog):
    payload = compose(catalog, {"prompt": "a fox"})

    assert payload.body == {"prompt": "a fox", "width": 512, "height": 512, "override_settings": {}}
    assert payload.warnings == ()


def test_samplers_are_sent_by_their_exact_names(catalog):
    body = compose(catalog, {"sampler_name": "dpm++ 2m karras"}).body

    assert (body["sampler_name"], body["scheduler"]) == ("DPM++ 2M", "Karras")


def test_sampler_index_stands_in_for_a_missing_sampler_name(catalog):
    body = compose(catalog, {"sampler_index": "Euler a"}).body

    assert body["sampler_name"] == "Euler a"
    assert "sampler_index" not in body


def test_a_scheduler_alone_is_spelled_as_the_engine_does(catalog):
    assert compose(catalog, {"scheduler": "sgm_uniform"}).body["scheduler"] == "SGM Uniform"


def test_the_second_pass_has_its_own_sampler(catalog):
    hires = {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "Latent"}
    body = compose(catalog, hires | {"hr_sampler_name": "DPM++ SDE Karras"}).body

    assert (body["hr_sampler_name"], body["hr_scheduler"]) == ("DPM++ SDE", "Karras")


def test_the_dropdowns_words_for_the_same_are_no_names(catalog):
    same = {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}
    body = compose(catalog, same).body

    assert (body["hr_sampler_name"], body["hr_scheduler"]) == (None, None)


@pytest.mark.parametrize(
    "job_input",
    [
        {"sampler_name": "Eulr"},
        {"scheduler": "Karas"},
        {"hr_upscaler": "Latnt"},
        {"hr_sampler_name": "Eulr"},
        {"script_name": "nope"},
        {"alwayson_scripts": {"ADetailer": {"args": []}}},
        {"styles": ["nope"]},
    ],
)
def test_names_that_the_engine_has_not_are_refused(catalog, job_input):
    with pytest.raises(InvalidInput):
        engine_names(parse(job_input), catalog)


FEW_STEPS = [
    (
        {"sampler_name": "DPM++ 2M SDE Karras", "steps": 1},
        "steps = 1: sampler 'DPM++ 2M SDE' needs",
    ),
    ({"sampler_name": "UniPC", "steps": 2}, "needs at least 3"),
    (
        {"sampler_name": "UniPC", "steps": 4, "override_settings": {"uni_pc_order": 5}},
        "needs at least 5",
    ),
    (
        {"sampler_name": "DPM fast", "enable_hr": True, "denoising_strength": 1}
        | {"hr_second_pass_steps": 1},
        "hr_second_pass_steps = 1: sampler 'DPM fast' needs at least 2",
    ),
    (
        {"sampler_name": "Euler", "hr_sampler_name": "DPM++ 3M SDE", "hr_second_pass_steps": 1}
        | {"enable_hr": True, "denoising_strength": 1},
        "sampler 'DPM++ 3M SDE' needs at least 2",
    ),
]


@pytest.mark.parametrize(("job_input", "said"), FEW_STEPS)
def test_fewer_steps_than_a_sampler_can_do_are_refused(catalog, job_input, said):
    with pytest.raises(InvalidInput, match=re.escape(said)):
        engine_names(parse(job_input), catalog)


def test_sizes_become_multiples_of_eight_with_a_warning(catalog):
    payload = compose(catalog, {"width": 515, "height": 512})

    assert (payload.body["width"], payload.body["height"]) == (512, 512)
    assert payload.warnings == ("width 515 is not a multiple of 8: made 512.",)


def test_clip_skip_becomes_a_number_in_override_settings(catalog):
    body = compose(catalog, {"clip_skip": 2}).body

    assert body["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    assert "clip_skip" not in body


def test_models_are_sent_by_stem_and_expected_back(catalog):
    payload = compose(
        catalog,
        {"prompt": "a", "checkpoint": "base", "vae": "v", "loras": [{"name": "x", "scale": 0.5}]},
        checkpoint=file("checkpoint", "base"),
        vae=file("vae", "v"),
        loras=[file("lora", "x")],
    )

    settings = payload.body["override_settings"]
    assert settings == {"sd_model_checkpoint": "base", "sd_vae": "v.safetensors"}
    assert payload.body["prompt"] == "a <lora:x:0.5>"
    assert payload.expected.checkpoint == "base"
    assert payload.expected.vae == "v.safetensors"
    assert payload.expected.loras == {"x"}


@pytest.mark.parametrize(
    ("weights", "tag"),
    [
        ({}, "<lora:x:1>"),
        ({"scale": 0.7}, "<lora:x:0.7>"),
        ({"scale": 0.7, "te": 0}, "<lora:x:0:0.7>"),
        ({"unet": 0.2}, "<lora:x:1:0.2>"),
        ({"te": 0.1, "unet": 0.1}, "<lora:x:0.1>"),
    ],
)
def test_a_loras_weights_become_its_tag(catalog, weights, tag):
    job_input = {"prompt": "a", "loras": [{"name": "x"} | weights]}

    assert compose(catalog, job_input, loras=[file("lora", "x")]).body["prompt"] == f"a {tag}"


def test_a_prompt_for_the_second_pass_gets_the_loras_too(catalog):
    job_input = {"prompt": "a", "hr_prompt": "b", "loras": ["x"]}

    assert (
        compose(catalog, job_input, loras=[file("lora", "x")]).body["hr_prompt"] == "b <lora:x:1>"
    )


def test_a_tag_written_by_the_caller_counts_once_and_is_proven(catalog):
    payload = compose(
        catalog,
        {"prompt": "a <lora:Alias:0.3>", "loras": ["x"]},
        loras=[file("lora", "x")],
        written_loras={"Alias": file("lora", "x")},
    )

    assert payload.body["prompt"] == "a <lora:x:0.3>"
    assert payload.expected.loras == {"x"}


@pytest.mark.parametrize(
    ("job", "told", "untold"),
    [
        ({"enable_hr": True, "denoising_strength": 0.5}, {"B", "C"}, "'A'"),
        ({"enable_hr": True, "denoising_strength": 0.5, "hr_prompt": "c"}, {"B"}, "'A'"),
        ({"enable_hr": True, "denoising_strength": 0.5, "hr_prompt": ""}, {"A", "B"}, ""),
        ({}, {"A", "B"}, ""),
    ],
)
def test_of_two_passes_a1111_tells_the_loras_of_the_second(catalog, job, told, untold):
    """Activating the second pass's LoRAs writes `Lora hashes` anew."""
    prompts = {"prompt": "a <lora:A:1>", "hr_prompt": "c <lora:C:1>", "loras": ["B"]}
    payload = compose(catalog, prompts | job, loras=[file("lora", "B")])

    assert payload.expected.loras == told
    unproven = [one for one in payload.warnings if "not proven" in one]
    assert unproven == (
        [f"LoRA {untold}: not proven, A1111 tells of the second pass only."] if untold else []
    )


def test_a_hypernetwork_is_not_proven(catalog):
    (warning,) = compose(catalog, {"prompt": "a <hypernet:old:1>"}).warnings

    assert warning.startswith("hypernetwork 'old': not proven")


def test_a_script_decides_how_many_pictures_there_are(catalog):
    job_input = {"prompt": "fox|red|blue", "script_name": "prompt matrix", "script_args": [0]}

    assert compose(catalog, job_input).expected.images is None


def test_the_hash_of_a_fetched_checkpoint_is_expected(catalog):
    known = replace(file("checkpoint", "base"), known_sha256="ab" * 32)
    job_input = {"prompt": "a", "checkpoint": "base"}

    assert compose(catalog, job_input, checkpoint=known).expected.checkpoint_sha256 == "ab" * 32


def test_without_extra_networks_no_lora_is_expected(catalog):
    payload = compose(catalog, {"prompt": "a <lora:x:1>", "disable_extra_networks": True})

    assert payload.expected.loras == frozenset()


WARNINGS = [
    ({"negative_prompt": "<lora:x:1>"}, "as plain text"),
    ({"hr_upscaler": "Latent"}, "enable_hr is false"),
    ({"hr_scale": 2.0}, None),
    ({"prompt": "<lora:x:1>", "loras": ["x"]}, "already in the prompt"),
]


@pytest.mark.parametrize(("job_input", "said"), WARNINGS)
def test_what_would_have_no_effect_is_a_warning(catalog, job_input, said):
    loras = [file("lora", "x")] * len(job_input.get("loras", []))
    warnings = " ".join(compose(catalog, job_input, loras=loras).warnings)

    assert said in warnings if said else not warnings


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"batch_size": 4}, "batch_size to 1"),
        ({"enable_hr": True, "hr_scale": 3}, "Lower hr_scale (now 3)"),
        ({"width": 1024, "height": 1024}, "Try 704x704"),
        ({"width": 64, "height": 64}, "It is small already"),
    ],
)
def test_out_of_memory_leads_to_something_smaller(body, hint):
    assert hint in smaller({"width": 512, "height": 512} | body)


def test_a_throwaway_picture_keeps_the_models_and_changes_the_prompt():
    body = {"prompt": "a", "steps": 50, "override_settings": {"sd_model_checkpoint": "m"}}

    tiny = throwaway(body)

    assert (tiny["prompt"], tiny["steps"], tiny["width"]) == ("", 1, 64)
    assert tiny["override_settings"] == body["override_settings"]


FOX = replace(file("lora", "fox"), trained_words=("fox, red fur",))
PLAIN = file("lora", "plain")


@pytest.mark.parametrize(
    ("job", "prompt"),
    [
        ({}, "a cat <lora:fox:1> <lora:plain:1>"),
        ({"trigger_words": True}, "a cat, fox, red fur <lora:fox:1> <lora:plain:1>"),
    ],
)
def test_trained_words_come_where_the_job_wants_them(catalog, job, prompt):
    loras = {"loras": ["fox", "plain"], "prompt": "a cat"}
    payload = compose(catalog, loras | job, loras=(FOX, PLAIN))

    assert payload.body["prompt"] == prompt
    unknown = ("LoRA 'plain': its trained words are not known.",)
    assert payload.warnings == (unknown if job else ())


def test_a_loras_own_word_on_trained_words_goes_before_the_jobs(catalog):
    loras = [{"name": "fox", "trigger_words": False}]
    assert (
        compose(catalog, {"loras": loras, "trigger_words": True, "prompt": "x"}, loras=(FOX,)).body[
            "prompt"
        ]
        == "x <lora:fox:1>"
    )
    loras = [{"name": "fox", "trigger_words": True}]
    assert compose(catalog, {"loras": loras, "prompt": "x"}, loras=(FOX,)).body["prompt"] == (
        "x, fox, red fur <lora:fox:1>"
    )


@pytest.mark.parametrize(
    ("job", "used"),
    [
        ({"negative_prompt": "bad, EasyNeg"}, {"easyneg"}),
        ({"prompt": "easyneg"}, {"easyneg"}),
        ({"prompt": "easy"}, set()),
    ],
)
def test_an_embedding_counts_where_a_prompt_uses_it(catalog, job, used):
    embeddings = (file("embedding", "easyneg"),)
    payload = compose(catalog, job | {"embeddings": ["easyneg"]}, embeddings=embeddings)

    assert payload.expected.embeddings == used
    assert bool(payload.warnings) == (not used)
    assert "embeddings" not in payload.body


def test_models_get_the_names_that_the_engine_sees():
    base, fox = file("checkpoint", "base"), file("lora", "fox")
    seen = replace(fox, stem="fox-0123456789")
    models = Models(checkpoint=base, loras=((fox, None),), written_loras={"Fox": fox})

    renamed = models.renamed({base: base, fox: seen})

    assert renamed == Models(checkpoint=base, loras=((seen, None),), written_loras={"Fox": seen})
