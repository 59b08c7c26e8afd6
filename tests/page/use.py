"""What the tests of the page share: answers of a worker, and steps of a user."""

import base64
import functools
import json

from fakes.input_pictures import saved, scene
from PIL import Image, PngImagePlugin

from gateway.catalog.builtin_lists import SAMPLERS, SCHEDULERS, UPSCALERS
from gateway.catalog.catalog import TASKS as LISTS
from worker.tasks.schema import document
from worker.tasks.table import TASKS

HOSTILE = "<img src=x onerror=\"document.title='run'\"> </script><script>alert(1)</script>"
LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 4294967297, Size: 128x128, Model: base"


@functools.cache
def schema():
    return json.loads(json.dumps(document(TASKS)))


def lists_of_a_worker(name="base"):
    """The results of a batch of all lists, with this name of all models and templates."""
    file = {"name": f"{name}.safetensors", "model_name": name, "title": name, "trained_words": []}
    template = {"template": name, "name": name, "description": name, "default": True}
    template |= {"checkpoint": name, "loras": [], "defaults": {"steps": 12, "width": 640}}
    lists = {
        "models": [file],
        "loras": [file],
        "samplers": SAMPLERS,
        "schedulers": SCHEDULERS,
        "upscalers": UPSCALERS,
        "templates": [template],
    }
    answers = [{one: list(lists.get(one, []))} for one in LISTS]
    return [*answers, {"document": schema()}]


def png(infotext=""):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", infotext)
    return saved(scene(), "PNG", pnginfo=info)


def drawn(prompt="a fox", count=1, **more):
    """The answer of a job that has drawn."""
    infotext = f"{prompt}\nNegative prompt: blurry\n{LINE}"
    info = json.dumps({"infotexts": [infotext] * count})
    images = [base64.b64encode(png(infotext)).decode()] * count
    return {"images": images, "info": info, "timings": {"total": 2.5}, "warnings": [], **more}


def infotext_of(file):
    with Image.open(file) as image:
        return image.text["parameters"]


def draw(page, prompt):
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")


def wait_for_lists(page):
    page.locator("#form.known").wait_for()


def tiles(page):
    return page.locator("#gallery li")


def open_all(page):
    """Open every part of the form."""
    closed = page.locator("#form details:not([open]) > summary:visible")
    while closed.count():
        closed.first.click()


def drop(page, where, name, content, kind="image/png"):
    """Drop a file on an element."""
    given = page.evaluate_handle(
        """([name, content, kind]) => {
            const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
            const given = new DataTransfer();
            given.items.add(new File([bytes], name, { type: kind }));
            return given;
        }""",
        [name, base64.b64encode(content).decode(), kind],
    )
    page.dispatch_event(where, "drop", {"dataTransfer": given})


def job_in_form(page):
    return page.evaluate("async () => (await import('/page/form.js')).read()")
