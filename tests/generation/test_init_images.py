import io
import re

import pytest
from fakes.a1111.shape import shape_error
from fakes.recorded_tasks import recorded_tasks
from PIL import Image

from worker.errors import InvalidInput
from worker.generation.init_images import body, drawn_size, read, reported, result_size, warnings
from worker.generation.payload import build, engine_names, smaller
from worker.images.base64_text import decoded
from worker.images.decoder import decode
from worker.images.input_image import InputImage
from worker.images.limits import IMAGE_LIMITS
from worker.job.img2img import Img2ImgRequest
from worker.job.models import Models
from worker.job.request import check
from worker.job.txt2img import Txt2ImgRequest

TEXT = "aGVsbG8="
TWO = {"init_images": [TEXT, TEXT]}
HALF = {"inpaint_full_res": False}
INVERT = {"inpainting_mask_invert": 1}


def parse(**fields):
    return check({"task": "img2img", "init_images": [TEXT]} | fields, Img2ImgRequest)


def image(size=(64, 64), colour="white", mode="RGB"):
    Image.new(mode, size, colour).save(file := io.BytesIO(), "PNG")
    return InputImage(file.getvalue(), "png", *size)


def brought(request, *images, mask=None):
    fields = {f"init_images.{n}": one for n, one in enumerate(images or [image()])}
    return read(request, fields | ({"mask": mask} if mask else {}))


def clear(alpha, dot=(0, 0, 0, 0)):
    """A white mask of this opacity, and an opaque dot."""
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, alpha))
    mask.paste((255, 255, 255, 255), dot)
    mask.save(file := io.BytesIO(), "PNG")
    return InputImage(file.getvalue(), "png", 64, 64)


def black_with(*box, size=(64, 64), level=255):
    """A black mask with a white rectangle; with the level 0 it is the other way round."""
    mask = Image.new("L", size, 255 - level)
    mask.paste(level, box)
    mask.save(file := io.BytesIO(), "PNG")
    return InputImage(file.getvalue(), "png", *size)


WIDE, LINE = image((96, 64)), image((64, 4))
THIN, SMALL = black_with(0, 30, 64, 34), black_with(30, 30, 36, 36)
DOT_ON_HALF = clear(128, dot=(30, 30, 36, 36))
LATENT = HALF | {"resize_mode": 3, "width": 64, "height": 64}
STRETCHED, CUT = HALF | {"mask_blur": 0}, HALF | {"resize_mode": 1, "width": 64, "height": 64}
REFUSED = [
    # fields, pictures, mask, part of the message
    (
        {"resize_mode": 3},
        [LINE],
        None,
        "init_images.0 has 64 x 4 pixels, too few for",
    ),
    (TWO | {"resize_mode": 3}, [image(), WIDE], None, "init_images.1 has 96 x 64 pixels, but init"),
    (TWO, [image(), WIDE], image(), "inpaint_full_res needs pictures of one size"),
    ({}, [WIDE], image(), "mask has 64 x 64 pixels, but init_images.0 has 96 x 64"),
    (HALF | {"resize_mode": 1}, [WIDE], image(), "mask has 64 x 64 pixels"),
    ({}, [image()], image(colour="black"), "mask marks nothing"),
    (HALF, [image()], image(colour="#7f7f7f"), "mask marks nothing"),  # A1111 rounds it to black
    (INVERT, [image()], image(), "mask marks nothing"),
    ({}, [image()], clear(128), "mask marks nothing"),  # A1111 takes the alpha, not the colour
    # A1111 rounds what is left after its blur, and after it is reduced to the latent picture
    ({}, [image()], SMALL, "too little: with a blur of 4 pixels nothing"),
    ({"mask_blur_x": 0, "mask_blur_y": 4}, [image()], THIN, "with a blur of 0 x 4 pixels"),
    ({"mask_blur": 64}, [image()], black_with(8, 8, 56, 56), "with a blur of 64"),
    (INVERT, [image()], black_with(30, 30, 36, 36, level=0), "mask marks too little"),
    (STRETCHED, [image()], black_with(10, 10, 13, 13), "mask marks too little"),
    ({}, [image()], DOT_ON_HALF, "mask marks too little"),
    (CUT, [WIDE], black_with(0, 0, 8, 64, size=(96, 64)), "mask marks too little"),
    # A1111 answers 500: it fills the mask's part of a picture that it has not resized
    (LATENT, [WIDE], image((96, 64)), "init_images.0 has 96 x 64 pixels, but is drawn at 64 x 64"),
    (TWO | CUT, [image(), WIDE], image(), "a mask with resize_mode 1 needs pictures of one size"),
]


@pytest.mark.parametrize(("fields", "images", "mask", "message"), REFUSED)
def test_pictures_that_a1111_draws_wrongly_are_refused(fields, images, mask, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        brought(parse(**fields, mask=TEXT if mask else None), *images, mask=mask)


ACCEPTED = [
    ({}, [image()], image()),
    (HALF, [WIDE], image()),  # both are stretched
    (TWO, [image(), WIDE], None),
    (INVERT, [image()], image(colour="black")),
    ({}, [image()], clear(129)),
    ({"mask_round": False}, [image()], clear(1)),
    ({}, [image()], clear(255)),  # opaque everywhere: the grey counts
    ({"resize_mode": 3}, [image((8, 8))], None),
    ({"mask_blur": 0}, [image()], black_with(10, 10, 13, 13)),  # is enlarged
    ({"mask_round": False}, [image()], SMALL),
    (LATENT, [image()], image()),
    (LATENT | {"inpainting_fill": 1}, [WIDE], image((96, 64))),
    (STRETCHED, [image()], black_with(0, 32, 64, 40)),
    (STRETCHED | {"resize_mode": 2}, [image()], black_with(10, 10, 13, 13)),  # may be stretched
    (CUT, [WIDE], black_with(40, 0, 60, 64, size=(96, 64))),
    (TWO | HALF, [image(), WIDE], image()),
]


@pytest.mark.parametrize(("fields", "images", "mask"), ACCEPTED)
def test_pictures_that_fit_are_sent_in_base64(fields, images, mask):
    request = parse(**fields, mask=TEXT if mask else None)
    fields = body(request, brought(request, *images, mask=mask))
    assert fields["init_images"] == [one.base64() for one in images]
    assert fields.get("mask") == (mask and mask.base64())
    assert fields.get("batch_size", 1) == len(images)


SIZES = [
    # the job's size, the picture's, the one at which A1111 draws
    ({}, (640, 480), (640, 480)),
    ({}, (641, 477), (640, 480)),
    ({}, (4000, 3000), (1184, 888)),
    ({}, (32, 16), (128, 64)),
    ({}, (8192, 64), (4096, 64)),
    ({"width": 512}, (640, 480), (512, 384)),
    ({"height": 100}, (640, 480), (128, 96)),
    ({"width": 516, "height": 516}, (640, 480), (512, 512)),
]


@pytest.mark.parametrize(("given", "picture", "drawn"), SIZES)
def test_a_size_that_the_job_leaves_out_follows_from_the_picture(given, picture, drawn):
    request = parse(**given)
    assert drawn_size(request, picture) == drawn
    pictures = brought(request, image(picture))
    says = drawn != picture and len(given) < 2
    assert [str(drawn[0]) in one for one in warnings(request, pictures)] == [True] * says
    assert result_size(request, pictures) == drawn
    masked = parse(**given, mask=TEXT)
    assert result_size(masked, brought(masked, image(picture), mask=image(picture))) == picture


BLURRED = {"mask": TEXT, "mask_blur": 8}
AREA = {"Inpaint area": "Only masked", "Masked area padding": 0}
FILL, PADDED = {"Masked content": "fill"}, AREA | {"Masked area padding": 32}
REPORTED = [
    # as recorded from A1111
    ({}, {}),
    ({"initial_noise_multiplier": 1.5}, {"Noise multiplier": 1.5}),
    ({"override_settings": {"img2img_extra_noise": 0.5}}, {"Extra noise": 0.5}),
    (BLURRED, {"Mask blur": 8} | AREA | FILL),
    (BLURRED | HALF | {"inpainting_fill": 1}, {"Mask blur": 8}),
    (BLURRED | HALF | {"inpainting_fill": 3}, {"Mask blur": 8, "Masked content": "latent nothing"}),
    (BLURRED | {"inpaint_full_res_padding": 32}, {"Mask blur": 8} | FILL | PADDED),
    ({"mask": TEXT, "mask_blur_x": 8, "mask_blur_y": 0}, AREA | FILL),
    (BLURRED | INVERT, {"Mask blur": 8, "Mask mode": "Inpaint not masked"} | AREA | FILL),
]


@pytest.mark.parametrize(("fields", "facts"), REPORTED, ids=str)
def test_a1111_must_report_how_it_drew(fields, facts):
    assert reported(parse(**fields)) == {"Denoising strength": 0.75} | facts


FEWEST = [
    # sampler, steps, denoising_strength, how many are drawn (all measured: A1111 answers 500)
    ("DPM++ 2M SDE", 1, 1, 1),
    ("DPM++ 3M SDE", 1, 1, 1),
    ("DPM fast", 1, 1, 1),
    ("DPM adaptive", 1, 1, 1),
    ("DDIM", 1, 1, 0),  # it would return noise
    ("UniPC", 3, 1, 2),
    ("UniPC", 8, 0.25, 2),
]


@pytest.mark.parametrize(("sampler", "steps", "strength", "drawn"), FEWEST)
def test_a_sampler_that_would_draw_too_few_steps_is_refused(
    catalog, sampler, steps, strength, drawn
):
    job = {"sampler_name": sampler, "steps": steps, "denoising_strength": strength}
    message = re.escape(f"draws {drawn} of them: sampler {sampler!r} needs")
    with pytest.raises(InvalidInput, match=message):
        engine_names(parse(**job), catalog)


@pytest.mark.parametrize(
    ("sampler", "steps", "strength"),
    [("DPM++ 2M SDE", 2, 0.5), ("DPM fast", 2, 0.5), ("UniPC", 8, 0.375), ("Euler", 1, 1)],
)
def test_a_sampler_with_steps_enough_is_accepted(catalog, sampler, steps, strength):
    job = parse(sampler_name=sampler, steps=steps, denoising_strength=strength)
    assert engine_names(job, catalog) == {"sampler_name": sampler}


def test_the_payload_goes_to_img2img_and_expects_what_a1111_reports(catalog):
    request = parse(**TWO, prompt="a fox", n_iter=2, mask=TEXT, script_args=[], timeout=9)
    pictures = brought(request, image(), image(), mask=image())
    payload = build(request, engine_names(request, catalog), Models(), {}, pictures)
    assert payload.route == "img2img"
    assert payload.body == body(request, pictures) | {
        "prompt": "a fox",
        "n_iter": 2,
        "script_args": [],
        "override_settings": {},
    }
    assert (payload.expected.images, payload.expected.size) == (4, (64, 64))
    assert payload.expected.reported == reported(request)
    assert smaller(payload.body) == "Send fewer init_images: they are drawn together."


def test_a_script_may_change_what_is_reported(catalog):
    request = parse(script_name="Loopback", script_args=[2, 0.6, "Linear", "None"])
    payload = build(request, engine_names(request, catalog), Models(), {}, brought(request))
    expected = payload.expected
    assert (expected.images, expected.size, expected.reported) == (None, None, {})
    with pytest.raises(InvalidInput, match="does not know script_name 'Loopback'"):
        engine_names(check({"script_name": "Loopback"}, Txt2ImgRequest), catalog)


NAMED_LATER = re.compile("url|script|always|null|None|sampler|checkpoint|refiner|save_images")
RECORDED = [
    task
    for task in recorded_tasks()
    if task.path == "img2img" and not NAMED_LATER.search(task.name)
]


def test_what_a1111_answered_with_an_error_is_refused_or_sent_in_another_form(catalog):
    """And where it drew, it drew what the worker expects, or the worker refuses it."""
    refused = 0
    for task in RECORDED:
        try:
            request = parse(**task.sent_body())
            texts = request.images.items()
            images = {field: decode(decoded(text), IMAGE_LIMITS) for field, text in texts}
            pictures = read(request, images)
            payload = build(request, engine_names(request, catalog), Models(), {}, pictures)
        except InvalidInput:
            refused += 1
            continue
        assert shape_error(payload.body, route="img2img") is None, task.name
        if task.status == 200 and {"width", "height"} <= task.body.keys():
            facts = task.answer["extra_generation_params"]
            assert reported(request).items() <= facts.items(), task.name
            sizes = [tuple(picture[1:]) for picture in task.answer["pictures"]]
            assert sizes == [payload.expected.size] * payload.expected.images, task.name
    assert 100 < refused < len(RECORDED) - 100
