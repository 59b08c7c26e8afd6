import re

import pytest

from worker.clients.foreign_fields import SECOND_PASS
from worker.errors import InvalidInput
from worker.job.img2img import Img2ImgRequest
from worker.job.request import SecondPass, check

A, B = "aGVsbG8=", "https://example.com/b.png"
MASK = {"mask": A}


def parse(**fields):
    return check({"task": "img2img", "init_images": [A]} | fields, Img2ImgRequest)


WEAK, FIXED = {"steps": 10, "denoising_strength": 0.09}, {"img2img_fix_steps": True}
REFUSED = [
    # fields, part of the message
    ({"init_images": None}, "init_images is missing"),
    ({"init_images": []}, "init_images = []: must have at least 1 item"),
    ({"init_images": [A] * 17}, "must have at most 16 items"),
    ({"init_images": A}, "must be a list"),
    ({"init_images": [{"image": A}]}, "init_images.0 = {'image': 'aGVsbG8='}: must be a text"),
    ({"init_images": ["a cat!"]}, "init_images.0 = 'a cat!': is not a picture"),
    ({"init_images": [A, B], "batch_size": 1}, "has 2 pictures, but batch_size is 1: leave out"),
    ({"mask": ["x"]}, "mask = ['x']: must be a text"),
    ({"resize_mode": 4}, "resize_mode = 4: must be at most 3"),
    ({"denoising_strength": 1.01}, "denoising_strength = 1.01"),
    ({"denoising_strength": 0}, "so nothing is drawn: raise one of them"),
    (WEAK, "steps x denoising_strength = 10 x 0.09 is less than 1"),
    ({"denoising_strength": 0, "override_settings": FIXED}, "so nothing is drawn"),
    (MASK | {"inpainting_fill": 4}, "inpainting_fill = 4"),
    (MASK | {"mask_blur": 65}, "mask_blur = 65: must be at most 64"),
    (MASK | {"mask_blur": 8, "mask_blur_x": 5}, "give mask_blur, or the other two"),
    (MASK | {"inpaint_full_res_padding": 257}, "inpaint_full_res_padding = 257"),
    (MASK | {"inpainting_mask_invert": 2}, "inpainting_mask_invert = 2"),
    (MASK | {"inpaint_full_res": 2}, "inpaint_full_res = 2: must be true or false"),
    (MASK | {"latent_mask": A}, "A1111 v1.9.3 cannot take it over the API; send `mask`"),
    ({"enable_hr": True}, "enable_hr belongs to txt2img: img2img has no second pass"),
    ({"output": {"delivery": "put", "put_urls": []}, "n_iter": 2}, "put_urls"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=str)
def test_what_a1111_draws_wrongly_or_not_at_all_is_refused(fields, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        parse(**fields)


# The body of webuiapi 0.9.17 for a picture and a prompt.
WEBUIAPI = {
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "prompt": "a fox",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "image_cfg_scale": 1.5,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "sampler_name": "Euler a",
    "override_settings_restore_afterwards": True,
    "scheduler": None,
    "sampler_index": "Euler a",
    "include_init_images": False,
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}


def test_what_a_client_sends_for_a_picture_and_a_prompt_is_accepted():
    (note,) = parse(**WEBUIAPI).notes
    assert note.startswith("image_cfg_scale has no effect")
    assert parse(**WEBUIAPI, **MASK).only_masked


HIRES_OFF = {"enable_hr": False, "hr_scale": 2, "hr_upscaler": None, "firstphase_width": 0}
UNASKED = {"inpainting_fill": 1, "mask_blur": 4, "inpaint_full_res": False, "mask": None}
NOTED = [
    # fields, those that are left, the warnings
    ({"denoising_strength": None, "resize_mode": None}, {}, []),
    (UNASKED, {}, []),
    (
        {"mask_blur": 9, "inpainting_fill": 2},
        {},
        ["inpainting_fill, mask_blur: no effect"],
    ),
    ({"include_init_images": True}, {}, ["include_init_images has no effect: the answer does not"]),
    ({"image_cfg_scale": 1.5}, {}, ["image_cfg_scale has no effect"]),
    (HIRES_OFF, {}, ["enable_hr has no effect", "firstphase_width has no effect"]),
    (MASK | {"mask_blur": 4.7}, MASK | {"mask_blur": 4}, ["mask_blur 4.7 is not a whole number"]),
    (MASK | {"inpaint_full_res": 0}, MASK | {"inpaint_full_res": False}, []),
    (MASK | {"inpainting_mask_invert": True}, MASK | {"inpainting_mask_invert": 1}, []),
]


@pytest.mark.parametrize(("fields", "left", "notes"), NOTED, ids=str)
def test_what_clients_send_unasked_is_left_out(fields, left, notes):
    request = parse(**fields)
    own = {"task": "img2img", "init_images": [A]}
    assert request.model_dump(exclude_unset=True) == own | left
    assert [note for note, said in zip(notes, request.notes, strict=True) if note not in said] == []


def test_several_pictures_are_a_batch():
    several = parse(init_images=[A, B], n_iter=3, **MASK)
    assert (several.pictures, parse(batch_size=4, n_iter=2).pictures) == (6, 8)
    assert several.images == {"init_images.0": A, "init_images.1": B, "mask": A}


@pytest.mark.parametrize(
    ("steps", "strength", "options", "noisy"),
    [(8, 0.125, {}, 1), (8, 1, {}, 7), (20, 0.5, {}, 10), (1, 1, {}, 0), (8, 0.1, FIXED, 7)],
)
def test_the_picture_takes_the_place_of_the_first_steps(steps, strength, options, noisy):
    request = parse(steps=steps, denoising_strength=strength, override_settings=options)
    assert request.noisy_steps == noisy


def test_the_fields_of_the_second_pass_are_known_to_the_other_task():
    assert {name for name in SecondPass.model_fields if name.startswith("hr_")} == SECOND_PASS
