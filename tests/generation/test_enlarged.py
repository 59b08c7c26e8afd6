import base64
import io

import pytest
from fakes.recorded import recorded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from worker.errors import EngineModelMissing, IncompleteAnswer, InvalidInput
from worker.generation import enlarged
from worker.generation.enlarged import Enlarged
from worker.generation.picture import infotext

SIDES = st.integers(1, 4096)


def noise(size, mode="RGB"):
    return Image.effect_noise(size, 80).convert(mode)


def answer(pixels, **changes):
    file = io.BytesIO()
    pixels.save(file, "PNG")
    return {"image": base64.b64encode(file.getvalue()).decode(), "html_info": "<p>x</p>"} | changes


def test_a_recorded_answer_has_the_computed_size_and_a_sentence():
    made = enlarged.read(recorded("post_extra-single-image"), enlarged.size_by((64, 64), 1.5))
    assert made.info == (
        "Postprocess upscale by: 1.5, Postprocess upscaler: Lanczos,"
        " Postprocess upscaler 2: Nearest"
    )


@pytest.mark.parametrize(
    ("size", "factor", "made"),  # as recorded of A1111 v1.9.3
    [((101, 67), 1.5, (144, 96)), ((16, 16), 3.3, (48, 48)), ((16, 16), 8, (128, 128))],
)
def test_sides_are_rounded_down_to_multiples_of_8(size, factor, made):
    assert enlarged.size_by(size, factor) == made


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_a_factor_for_a_size_covers_it_and_not_much_more(size, target):
    factor = enlarged.covering(size, target)
    made = enlarged.size_by(size, factor)
    assert all(has >= asked for has, asked in zip(made, target, strict=True))
    assert any(has <= asked + 8 for has, asked in zip(made, target, strict=True))


@pytest.mark.parametrize(
    ("size", "factor", "scales", "message"),
    [
        ((1, 1), 2, [], "become 0 x 0: each side needs at least 8"),
        ((8192, 64), 2.5, [], "become 20480 x 160; at most 16384 a side"),
        ((8192, 8192), 1.5, [], "become 12288 x 12288; at most 16384 a side and 67 million"),
        ((4000, 4000), 2, [4.0, 20.0], "would make 6400 million pixels of it"),
        ((1100, 1100), 5, [4.0], "would make 310 million pixels of it"),
    ],
)
def test_a_result_of_no_or_too_many_pixels_is_refused(size, factor, scales, message):
    with pytest.raises(InvalidInput, match=message) as raised:
        enlarged.check_size("images.1", size, factor, scales)
    assert raised.value.message.startswith("images.1: ")
    enlarged.check_size("image", (512, 512), factor, [4.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "x"}, "cannot be read"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "did not return a picture"),
        ({"image": answer(noise((16, 16)))["image"]}, "expected .* 8 x 8 pixels, .* 16 x 16"),
        ({"image": answer(noise((8, 8)))["image"][:80]}, "cannot be read"),
    ],
)
def test_an_answer_without_the_picture_is_refused(changes, message):
    with pytest.raises(IncompleteAnswer, match=message):
        enlarged.read(answer(noise((8, 8)), **changes), (8, 8))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_what_lanczos_makes_is_no_proof_of_a_model(mode):
    source = noise((24, 16), mode)
    plain = source if mode == "RGBA" else source.convert("RGB")
    lanczos = plain.resize((48, 32), Image.Resampling.LANCZOS)
    with pytest.raises(EngineModelMissing, match="upscaler 'R-ESRGAN 4x\\+' was not used"):
        enlarged.prove(source, lanczos, "R-ESRGAN 4x+")
    enlarged.prove(source, lanczos, "Lanczos")
    enlarged.prove(source, lanczos.filter(ImageFilter.SHARPEN), "R-ESRGAN 4x+")
    flat = Image.new(mode, (24, 16), 7)
    enlarged.prove(flat, flat.resize((48, 32)), "R-ESRGAN 4x+")


def test_our_own_changes_keep_the_texts_of_the_file():
    def made(colour, upscaler):
        pixels = Image.new("RGB", (48, 32), colour)
        pixels.info = {"parameters": "a füchs 狐", "postprocessing": "old", "dpi": (1, 1)}
        return Enlarged(
            "", pixels, f"Postprocess upscale by: 2.0, Postprocess upscaler: {upscaler}"
        )

    both = enlarged.blended(made((0, 0, 0), "A"), made((200, 100, 0), "B"), 0.5)
    cut = enlarged.cropped(both, (33, 31))
    file = Image.open(io.BytesIO(base64.b64decode(cut.image)))
    assert (file.size, file.getpixel((0, 0)), infotext(file)) == (
        (33, 31),
        (100, 50, 0),
        "a füchs 狐",
    )
    assert (
        file.info["postprocessing"]
        == cut.info
        == (
            "Postprocess upscale by: 2.0, Postprocess upscaler: A, Postprocess upscaler 2: B,"
            " Postprocess crop to: 33x31"
        )
    )
