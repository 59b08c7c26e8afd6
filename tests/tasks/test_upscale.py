import asyncio
import base64
import io

import pytest
from fakes.stub_engine import StubEngine, handler_with
from images.samples import file_of, text_of
from PIL import Image

from worker.images.metadata import infotext_of
from worker.service.task import Job
from worker.stopwatch import Stopwatch
from worker.tasks.upscale import check_input

NOISE = Image.effect_noise((24, 16), 80).convert("RGB")


IMAGE = text_of(file_of(NOISE))
SIZE = {"upscaling_resize_w": 101, "upscaling_resize_h": 67}


@pytest.fixture
def upscale(tmp_path, catalog):
    """Run a job of the task; `upscale.models` gives the engine a model."""

    def run(**fields):
        built = handler_with(StubEngine(catalog, tmp_path), tmp_path)
        job = {"task": "upscale", "image": IMAGE} | fields
        return asyncio.run(built({"id": "a", "input": job}))

    def models(name):
        path = tmp_path / "webui/models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    run.models = models
    return run


def opened(images):
    return [Image.open(io.BytesIO(base64.b64decode(image))) for image in images]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"upscaling_resize": 3.3}, (72, 48)),
        ({}, (48, 32)),
        ({"resize_mode": 0, "upscaling_resize_w": 512, "upscaling_resize_h": 512}, (48, 32)),
        (SIZE, (101, 67)),
        ({"upscaling_resize_w": 60, "upscaling_resize_h": 60, "upscaling_crop": False}, (96, 64)),
        ({"upscaler_1": "Nearest", "upscaler_2": "None", "gfpgan_visibility": 0}, (48, 32)),
        # A1111 does not read the other size; clients send it, and numbers for true and false
        ({"resize_mode": 0, "upscaling_resize_w": 0, "show_extras_results": 0}, (48, 32)),
        ({"resize_mode": 1, "upscaling_resize": 1} | SIZE | {"upscaling_crop": 1}, (101, 67)),
    ],
)
def test_a_picture_gets_the_size_that_was_asked_for(upscale, fields, size):
    answer = upscale(**{"upscaler_1": "Lanczos"} | fields)
    (picture,) = opened(answer["images"])
    assert picture.size == size
    assert answer["sizes"] == [{"width": size[0], "height": size[1]}]
    assert answer["html_info"] in picture.info["postprocessing"]
    assert (answer["delivery"]["method"], answer["warnings"]) == ("base64", [])


def test_a_whole_picture_is_cut_from_its_middle_without_a_black_border(upscale):
    white = text_of(file_of(Image.new("RGB", (24, 16), "white")))
    size = {"upscaling_resize_w": 61, "upscaling_resize_h": 33}
    (picture,) = opened(upscale(image=white, upscaler_1="Lanczos", **size)["images"])
    assert picture.getextrema() == ((255, 255),) * 3


def test_several_pictures_come_back_in_their_order_and_format(upscale):
    images = [text_of(file_of(NOISE.resize((side, side)), "JPEG")) for side in (8, 24, 16)]
    output = {"format": "webp", "quality": 80}
    answer = upscale(image=None, images=images, upscaler_1="Nearest", output=output)
    assert [picture.size for picture in opened(answer["images"])] == [(16, 16), (48, 48), (32, 32)]
    assert answer["delivery"]["format"] == "webp"
    listed = [{"data": one, "name": "a"} for one in images]
    again = upscale(image=None, imageList=listed, upscaler_1="Nearest", output=output)
    assert again["images"] == answer["images"]


def test_two_upscalers_are_blended_and_each_is_proven(upscale):
    both = {"upscaler_1": "R-ESRGAN 4x+", "upscaler_2": "Nearest"}
    both["extras_upscaler_2_visibility"] = 0.25
    assert upscale(**both)["code"] == "ENGINE_MODEL_MISSING"
    swapped = both | {"upscaler_1": "Nearest", "upscaler_2": "R-ESRGAN 4x+"}
    assert upscale(**swapped)["code"] == "ENGINE_MODEL_MISSING"
    upscale.models("RealESRGAN/RealESRGAN_x4plus.pth")
    answer = upscale(**both)
    first, second = (upscale(upscaler_1=both[f"upscaler_{n}"])["images"] for n in (1, 2))
    expected = Image.blend(*opened(first + second), 0.25)
    assert opened(answer["images"])[0].tobytes() == expected.tobytes()
    assert answer["html_info"].endswith("upscaler: R-ESRGAN 4x+, Postprocess upscaler 2: Nearest")


def test_faces_are_restored_only_if_the_model_is_there(upscale):
    refused = upscale(gfpgan_visibility=0.5)
    assert (refused["code"], refused["field"]) == ("INVALID_INPUT", "gfpgan_visibility")
    upscale.models("GFPGAN/detection_Resnet50_Final.pth")  # finds faces, cannot restore them
    assert upscale(gfpgan_visibility=0.5)["code"] == "INVALID_INPUT"
    upscale.models("GFPGAN/GFPGANv1.4.pth")
    answer = upscale(gfpgan_visibility=0.5)
    assert (answer["sizes"], answer["html_info"]) == (
        [{"width": 24, "height": 16}],
        "GFPGAN visibility: 0.5",
    )
    assert "not proven" in answer["warnings"][0]
    assert "keep their size" in upscale(gfpgan_visibility=1, upscaling_resize=4)["warnings"][0]
    assert upscale(codeformer_visibility=1)["field"] == "codeformer_visibility"
    upscale.models("Codeformer/codeformer-v0.1.0.pth")
    assert "error" not in upscale(codeformer_visibility=1)


def test_a_picture_of_which_a_model_makes_the_same_as_lanczos_is_proven_by_another(upscale):
    faint = text_of(file_of(Image.effect_noise((24, 16), 1).convert("RGB")))
    job = {"image": faint, "upscaler_1": "R-ESRGAN 4x+"}
    assert upscale(**job)["code"] == "ENGINE_MODEL_MISSING"
    upscale.models("RealESRGAN/RealESRGAN_x4plus.pth")
    assert upscale(**job)["sizes"] == [{"width": 48, "height": 32}]


def test_the_infotext_of_the_picture_is_kept(upscale):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", "a fox\nSteps: 2, Sampler: Euler, Seed: 1")
    size = {"upscaling_resize_w": 61, "upscaling_resize_h": 33}
    for fields in ({}, size):
        answer = upscale(
            image=text_of(file_of(NOISE, pnginfo=chunks)), upscaler_1="Lanczos", **fields
        )
        assert infotext_of(opened(answer["images"])[0]) == chunks.chunks[0][1][11:].decode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "upscaler_1 is missing: without it A1111 returns the picture as it is"),
        ({"upscaler_1": "None"}, "upscaler_1 is missing"),
        ({"upscaler_2": "Lanczos"}, "upscaler_2 has no effect without upscaler_1"),
        ({"upscaler_1": "lanczos"}, "know upscaler_1 'lanczos'. Did you mean 'Lanczos'"),
        ({"upscaler_1": "Latent"}, "this engine does not know upscaler_1 'Latent'"),
        ({"upscaler_1": "Lanczos", "upscaler_2": "x"}, "does not know upscaler_2 'x'"),
        ({"upscaler_1": "Lanczos", "image": ""}, "image is missing: send a picture in `image`"),
        ({"upscaler_1": "Lanczos", "images": [IMAGE]}, "image and images: give one of them"),
        ({"upscaler_1": "Lanczos", "images": [IMAGE], "imageList": [{}]}, "imageList is not a"),
        ({"upscaler_1": "Lanczos", "image": "%%%"}, "image = '%%%': is not a picture"),
        ({"upscaler_1": "Lanczos", "image": "AAAA"}, "image: it is"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 1}, "upscaling_resize = 1: must be greater"),
        (
            {"upscaler_1": "Lanczos", "upscaling_resize_w": 64},
            "a size needs both upscaling_resize_w and",
        ),
        (
            {"upscaler_1": "Lanczos", "upscaling_resize_w": 16, "upscaling_resize_h": 8},
            "the picture has 24 x 16 pixels, so 16 x 8 does not enlarge it",
        ),
        (
            {
                "upscaler_1": "Lanczos",
                "upscaling_resize": 2,
                "upscaling_resize_w": 64,
                "upscaling_resize_h": 64,
            },
            "upscaling_resize and upscaling_resize_w are two sizes",
        ),
        ({"upscaler_1": "Lanczos", "image": text_of(file_of(NOISE.resize((1, 1))))}, "at least 8"),
        ({"upscaler_1": "Lanczos", "steps": 5}, "steps is not a field of this task, which has"),
        ({"upscaler_1": "Lanczos", "output": {"delivery": "s3"}}, "has no bucket"),
        ({"upscaler_1": "Lanczos", "extras_upscaler_2_visibility": 1.5}, "must be at most 1"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_the_engine_is_used(upscale, fields, message):
    answer = upscale(**fields)
    assert (answer["code"], "attempts" in answer) == ("INVALID_INPUT", False)
    assert message in answer["error"]


def test_all_results_together_have_a_limit(upscale, monkeypatch):
    monkeypatch.setattr("worker.tasks.upscale._MAX_PIXELS", 2 * 48 * 32)
    several = {"image": None, "upscaler_1": "Lanczos"}
    assert len(upscale(images=[IMAGE] * 2, **several)["images"]) == 2
    assert "pixels together" in upscale(images=[IMAGE] * 3, **several)["error"]


def test_a_job_has_its_own_deadline(tmp_path, catalog):
    worker = handler_with(StubEngine(catalog, tmp_path), tmp_path).worker
    job_input = {"task": "upscale", "image": IMAGE, "upscaler_1": "Lanczos", "timeout": 9}
    job = Job("a", job_input, Stopwatch(100), None)
    check_input(worker, job)
    assert job.stopwatch.timeout == 9


def test_the_model_of_the_second_upscaler_must_not_make_too_many_pixels(upscale):
    large = text_of(file_of(Image.new("L", (4200, 4200))))
    both = {"upscaler_1": "Lanczos", "upscaler_2": "R-ESRGAN 4x+"}
    both |= {"extras_upscaler_2_visibility": 0.5, "upscaling_resize": 1.1}
    assert "the upscaler's model would make" in upscale(image=large, **both)["error"]
