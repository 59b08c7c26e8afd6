"""img2img, upscaling, PNG info and interrogate over HTTP: answers, refusals, and an interrupt."""

import base64
import io
import json

import numpy as np
import pytest
from fakes.a1111.process import wait_until
from fakes.recorded import recorded
from PIL import Image

from benchmarks.parity import files as parity_files
from benchmarks.parity.img2img import sent

SMALL = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}
GIVEN = SMALL | {"init_images": ["@square"], "denoising_strength": 0.8}
MASKED = GIVEN | {"mask": "@mask", "mask_blur": 0, "inpaint_full_res": False}
HTTP, OTHER = "HTTPException", "ValueError"


def post(client, path="img2img", **fields):
    return client.post(path, **sent((GIVEN if path == "img2img" else {}) | fields))


def drawn(client, decode, **fields):
    answer = post(client, **fields)
    assert answer.status_code == 200, answer.text
    return [decode(image) for image in answer.json()["images"]]


def test_answer_has_the_fields_of_a1111_in_its_order(client):
    schema = recorded("openapi")["components"]["schemas"]["StableDiffusionProcessingImg2Img"]
    answer = post(client).json()
    assert list(answer) == ["images", "parameters", "info"]
    assert list(answer["parameters"]) == list(schema["properties"])
    assert answer["parameters"]["init_images"] is None
    with_pictures = post(client, include_init_images=True, mask="@mask").json()["parameters"]
    assert (with_pictures["init_images"], with_pictures["mask"]) == (
        [sent("@square")],
        sent("@mask"),
    )
    assert json.loads(answer["info"])["extra_generation_params"]["Denoising strength"] == 0.8


def test_a_batch_equals_its_single_pictures(client, decode):
    singles = [drawn(client, decode, seed=seed)[0] for seed in (7, 8, 9, 10)]
    assert np.array_equal(drawn(client, decode, seed=7, batch_size=2, n_iter=2), singles)
    two = drawn(client, decode, seed=7, batch_size=3, init_images=["@square", "@wide"])
    assert len(two) == 2  # one for each given picture
    assert np.array_equal(two[0], singles[0])


def test_outside_of_the_mask_the_picture_stays_and_inside_it_is_drawn(client, decode):
    given = np.asarray(
        Image.fromarray(decode(sent("@square")).astype(np.uint8)).resize((64, 64), 1)
    )
    kept = (
        np.asarray(
            Image.fromarray(decode(sent("@mask"))[:, :, 0].astype(np.uint8)).resize((64, 64), 1)
        )
        == 0
    )
    (found,) = drawn(client, decode, **MASKED, override_settings={"sd_model_checkpoint": "alpha"})
    difference = np.abs(found - given.astype(int))
    assert difference[kept].max() <= 1
    assert difference[~kept].mean() > 1


@pytest.mark.parametrize(
    ("option", "mode"), [("return_mask", "RGB"), ("return_mask_composite", "RGBA")]
)
def test_masks_follow_their_picture(client, option, mode):
    settings = {"override_settings": {option: True}}
    images = post(client, **MASKED, **settings, batch_size=2).json()["images"]
    pictures = [read(image) for image in images]
    assert [one.mode for one in pictures] == ["RGB", mode] * 2
    assert ["parameters" in one.info for one in pictures] == [True, False] * 2


def read(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


REFUSED = [
    ({"init_images": None}, 404, HTTP, "Init image not found"),
    ({"init_images": []}, 404, HTTP, "Init image not found"),
    ({"init_images": ["https://a.test/a.png"]}, 422, HTTP, "pictures from URLs"),
    ({"mask": "http://127.0.0.1/a.png"}, 422, HTTP, "pictures from URLs"),
    ({"init_images": ["!"]}, 500, HTTP, "Invalid encoded image: it is not base64"),
    ({"mask": "AAAA"}, 500, HTTP, "Invalid encoded image: it is not one of"),
    ({"latent_mask": "@mask"}, 422, HTTP, "latent_mask"),
    ({"script_name": "loopback"}, 422, HTTP, "Script 'loopback' not found"),
    (
        {"init_images": ["@square"] * 3, "batch_size": 2},
        500,
        "RuntimeError",
        "bad number of images",
    ),
    ({"denoising_strength": 1.5}, 500, OTHER, "denoising_strength must be 0 to 1"),
    ({"denoising_strength": None}, 500, OTHER, "denoising_strength must be 0 to 1"),
    ({"resize_mode": 4}, 500, OTHER, "resize_mode must be 0 to 3"),
    ({"inpainting_fill": -1}, 500, OTHER, "inpainting_fill must be 0 to 3"),
    ({"mask_blur": 100_000}, 500, OTHER, "mask_blur must be at most 256"),
    ({"initial_noise_multiplier": -1}, 500, OTHER, "initial_noise_multiplier must be 0 to"),
    ({"width": 8200}, 500, OTHER, "is too large"),
    (
        {"override_settings": {"img2img_color_correction": True}},
        422,
        HTTP,
        "img2img_color_correction",
    ),
    ({"override_settings": {"img2img_background_color": "red"}}, 500, OTHER, "must be a color"),
    (
        {"override_settings": {"upscaler_for_img2img": "x"}},
        500,
        "LookupError",
        "upscaler named 'x'",
    ),
    (
        {"override_settings": {"ESRGAN_tile": 16, "ESRGAN_tile_overlap": 16}},
        500,
        OTHER,
        "ESRGAN_tile",
    ),
    (
        {
            "resize_mode": 3,
            "mask": "@wide mask",
            "init_images": ["@wide"],
            "inpaint_full_res": False,
        },
        500,
        OTHER,
        "resize_mode 3",
    ),
]


@pytest.mark.parametrize(("fields", "status", "error", "text"), REFUSED)
def test_refused_requests(client, fields, status, error, text):
    answer = post(client, **fields)
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, error)
    assert text in body["detail"] + body["errors"]


def test_upscaling_one_and_many(client, decode):
    one = post(
        client, "extra-single-image", image="@small", upscaler_1="Lanczos", upscaling_resize=2
    ).json()
    assert list(one) == ["html_info", "image"]
    assert one["html_info"] == "<p>Postprocess upscale by: 2.0, Postprocess upscaler: Lanczos</p>"
    files = [{"data": "@small", "name": name} for name in "ab"]
    many = post(client, "extra-batch-images", imageList=files, upscaler_1="Lanczos").json()
    assert list(many) == ["html_info", "images"]
    assert [np.array_equal(decode(image), decode(one["image"])) for image in many["images"]] == [
        True
    ] * 2


UPSCALING_REFUSED = [
    ({"gfpgan_visibility": 0.5}, 422, "gfpgan_visibility with the value 0.5"),
    ({"codeformer_visibility": 1}, 422, "codeformer_visibility with the value 1"),
    ({"upscaler_1": "nope"}, 500, "could not find upscaler named 'nope'"),
    ({"image": "https://a.test"}, 422, "pictures from URLs"),
    ({"image": ""}, 500, "Invalid encoded image"),
    ({"upscaler_1": "Lanczos", "upscaling_resize": 0.01}, 500, "each side must be 8 to 8192"),
    ({"upscaler_1": "Lanczos", "upscaling_resize": 1000}, 422, "each side must be 8 to 8192"),
    ({"resize_mode": 1, "upscaling_resize_w": 9000}, 500, "must be at most 8192"),
]


@pytest.mark.parametrize(("fields", "status", "text"), UPSCALING_REFUSED)
def test_refused_upscaling(client, fields, status, text):
    answer = post(client, "extra-single-image", **({"image": "@small"} | fields))
    assert answer.status_code == status
    assert text in answer.json()["detail"] + answer.json()["errors"]


def test_texts_of_a_drawn_picture_are_read_back_and_kept_by_upscaling(client):
    (image,) = post(client).json()["images"]
    found = client.post("png-info", image=image).json()
    assert list(found) == ["info", "items", "parameters"]
    assert found["parameters"]["Denoising strength"] == "0.8"
    assert (found["parameters"]["Prompt"], found["parameters"]["Size-1"]) == ("a cat", "64")
    larger = client.post("extra-single-image", image=image, upscaler_1="Nearest").json()["image"]
    again = client.post("png-info", image=larger).json()
    assert again["info"] == found["info"]
    assert again["items"]["postprocessing"].startswith("Postprocess upscale by: 2,")


@pytest.mark.parametrize(("model", "status"), [("clip", 422), ("deepdanbooru", 422), ("x", 404)])
def test_interrogate_is_refused_by_name(client, model, status):
    answer = client.post("interrogate", image=sent("@small"), model=model)
    text = "Model not found" if status == 404 else f"interrogate with the model '{model}'"
    assert (answer.status_code, text in answer.json()["detail"]) == (status, True)


@pytest.fixture
def upscaler(data_dir):
    """The name of a model that is there for one test: other tests look at the list."""
    parity_files.write_upscaler(data_dir / "models/ESRGAN")
    yield parity_files.UPSCALER
    (data_dir / f"models/ESRGAN/{parity_files.UPSCALER}.pth").unlink()


def test_upscalers_with_a_model_are_listed_and_serve_both_tasks(client, upscaler, decode):
    listed = {one["name"] for one in client.get("upscalers").json()}
    assert listed >= {"None", "Lanczos", "Nearest", upscaler}
    highres = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5}
    assert client.picture(**highres, hr_upscaler=upscaler).shape == (96, 96, 3)
    (found,) = drawn(
        client, decode, init_images=["@small"], override_settings={"upscaler_for_img2img": upscaler}
    )
    assert found.shape == (64, 64, 3)


def test_an_interrupt_ends_img2img(client):
    job = client.threads.submit(post, client, steps=5000, denoising_strength=1)
    wait_until(lambda: client.state()["sampling_step"] > 0, "the first step", 120)
    client.post("interrupt")
    assert len(job.result().json()["images"]) == 1
