"""What the page reads from PNG files, in the browser itself."""

import base64
import zlib

import pytest
from fakes.input_pictures import INFOTEXT, _chunk, picture, saved, scene
from PIL import PngImagePlugin

from gateway.page.routes import FOLDER
from tests.page.use import png
from worker.images.parameters import entries, parameters_of

HEAD = b"\x89PNG\r\n\x1a\n"
TEXTS = [
    INFOTEXT,
    "only a prompt",
    "a prompt: with colons, Steps: 3",
    "two\nlines\nNegative prompt: n1\nn2\nSteps: 8, Sampler: DPM++ 2M, Seed: 1, Size: 8x16",
    'x\nSteps: 8, Sampler: Euler, Hires prompt: "a, \\"b\\": c", Lora hashes: "a: 1, b: 2"',
    "é☃𝄞\nSteps: 8, Sampler: Euler, Seed: 18446744073709551615, Variation seed strength: 0.5",
    "",
]


@pytest.fixture(scope="module")
def page(browser):
    """An empty page that has the module, without a server."""
    context = browser.new_context()
    page = context.new_page()
    page.route("**/*", lambda route: route.fulfill(path=FOLDER / route.request.url.split("/")[-1]))
    page.goto("http://localhost/infotext.js")
    yield page
    context.close()


def call(page, function, *given):
    return page.evaluate(
        f"async (given) => (await import('/infotext.js')).{function}(...given)", list(given)
    )


READ = """async (content) => {
    const { infotextOf } = await import('/infotext.js');
    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
    return infotextOf(new File([bytes], 'fox.png')).catch((error) => `none: ${error.message}`);
}"""


def read(page, content):
    return page.evaluate(READ, base64.b64encode(content).decode())


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_and_values_are_those_that_the_worker_reads(page, text):
    found = page.evaluate(
        """async (text) => {
            const { parsed } = await import('/infotext.js');
            const { prompt, negative, values } = parsed(text);
            return [prompt, negative, Object.fromEntries(values)];
        }""",
        text,
    )
    known = parameters_of(text)
    values = entries(text) if len(entries(text.strip())) >= 3 else {}
    assert found == [known.get("Prompt", ""), known.get("Negative prompt", ""), values]


def test_values_become_the_fields_of_a_job(page):
    text = (
        "a\nNegative prompt: b\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7,"
        " Seed: 9223372036854775807, Size: 512x768, Model: base, Denoising strength: 0.5,"
        " Clip skip: 2, ENSD: 31337, Hires upscale: 1.5, Hires upscaler: Latent, Tiling: True"
    )
    assert call(page, "jobOf", text) == {
        "prompt": "a",
        "negative_prompt": "b",
        "template": "none",
        "steps": 20,
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": 7,
        "seed": "9223372036854775807",
        "width": 512,
        "height": 768,
        "checkpoint": "base",
        "denoising_strength": 0.5,
        "clip_skip": 2,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "tiling": True,
        "enable_hr": True,
        "override_settings": {"eta_noise_seed_delta": 31337},
    }


def with_text(method, text):
    info = PngImagePlugin.PngInfo()
    getattr(info, method[0])("parameters", text, **method[1])
    return saved(scene(), "PNG", pnginfo=info)


METHODS = [
    ("add_text", {}),
    ("add_text", {"zip": True}),
    ("add_itxt", {}),
    ("add_itxt", {"zip": True}),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [INFOTEXT, "é☃𝄞", "x" * 100_000])
def test_each_kind_of_text_in_a_png_is_read(page, method, text):
    assert read(page, with_text(method, text)) == text


def bomb(kind, flags):
    return HEAD + _chunk(kind, b"parameters\0" + flags + zlib.compress(bytes(50_000_000)))


WITHOUT = {
    "no text": saved(scene(), "PNG"),
    "another program's": picture("info_novelai.png"),
    "empty": b"",
    "a JPEG": saved(scene(), "JPEG"),
    "cut": png(INFOTEXT)[:60],
    "a length beyond the file": HEAD + b"\xff\xff\xff\xfftEXtparameters\0a",
    "no zero": HEAD + _chunk(b"tEXt", b"parameters"),
    "a damaged zTXt": HEAD + _chunk(b"zTXt", b"parameters\0\0nothing"),
    "a bomb in zTXt": bomb(b"zTXt", b"\0"),
    "a bomb in iTXt": bomb(b"iTXt", b"\1\0\0\0"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_file_without_parameters_is_said_to_have_none(page, name):
    assert read(page, WITHOUT[name]).startswith("none: fox.png ")
