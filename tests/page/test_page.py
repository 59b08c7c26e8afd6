"""The page over an endpoint whose answers a test writes: progress, faults, hostile texts."""

import base64
import itertools
import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from fakes.gateway_server import served_endpoint
from fakes.runpod_endpoint import completed, failed, progress

from gateway.http.guard import Access
from tests.page.use import (
    HOSTILE,
    draw,
    drawn,
    drop,
    job_in_form,
    lists_of_a_worker,
    open_all,
    png,
    tiles,
    wait_for_lists,
)

PREVIEW = base64.b64encode(png()).decode()
FOREVER = itertools.repeat
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 740}}
AWAY = "Failed to load resource"  # what a browser logs for each answer that is an error


def test_progress_shows_phase_percent_time_and_preview_and_is_announced_once_a_phase(
    bridge, runpod, new_page
):
    report = {"phase": "generate", "eta_seconds": 65, "message": "step 3 of 12"}
    steps = [progress(**report, percent=percent) for percent in (25, 30, 35)]
    last = progress(**report, percent=40, preview=PREVIEW)
    runpod.drawing = lambda _job: [progress(phase="load"), *steps, *FOREVER(last, 5), DONE]
    page = new_page(bridge)
    page.evaluate(
        """() => {
            const news = document.getElementById('news');
            window.news = [];
            new MutationObserver(() => window.news.push(news.textContent))
                .observe(news, { childList: true });
        }"""
    )
    draw(page, "a fox")
    job = page.locator(".job")
    job.get_by_text("Drawing: step 3 of 12, 1 min 5 s left").wait_for()
    preview = job.get_by_alt_text("The unfinished picture")
    preview.wait_for()
    assert preview.evaluate("one => one.naturalWidth") == 128
    assert job.locator("progress").get_attribute("value") == "40"
    page.get_by_role("img", name="a fox").wait_for()
    phases = ["Waiting in the queue", "Loading the checkpoint", "Drawing"]
    assert page.evaluate("window.news") == [*phases, "1 picture drawn in 3 seconds."]
    (sent,) = drawings(runpod)
    assert sent == {"prompt": "a fox", "output": {"preview": True}}


DONE = completed(**drawn())


def drawings(runpod):
    """The jobs that are no lists."""
    return [job for job in runpod.inputs() if job.get("task") != "batch"]


def test_cancel_reaches_the_endpoint_and_several_jobs_can_run(bridge, runpod, new_page):
    runpod.drawing = lambda _job: FOREVER(progress(phase="queue"))
    page = new_page(bridge)
    for prompt in ("first", "second"):
        draw(page, prompt)
        page.locator(".job", has_text=prompt).get_by_text("Waiting for the GPU").wait_for()
    page.locator(".job", has_text="first").get_by_role("button", name="Cancel").click()
    page.locator(".job", has_text="first").wait_for(state="detached")
    ids = dict(zip((job.get("prompt") for job in runpod.inputs()), runpod.job_ids, strict=False))
    states = {prompt: runpod.status(ids[prompt]) for prompt in ("first", "second")}
    assert states == {"first": "CANCELLED", "second": "IN_PROGRESS"}


def test_a_job_goes_on_over_a_reload_and_its_picture_arrives_once(bridge, runpod, new_page):
    ended = []
    runpod.drawing = lambda _job: iter(lambda: DONE if ended else progress(phase="load"), None)
    page = new_page(bridge)
    draw(page, "a fox")
    page.locator(".job").get_by_text("Loading the checkpoint").wait_for()
    page.reload()
    page.locator(".job").get_by_text("Loading the checkpoint").wait_for()
    ended.append(True)
    page.get_by_role("img", name="a fox").wait_for()
    page.reload()
    page.get_by_role("img", name="a fox").wait_for()
    assert (tiles(page).count(), page.locator(".job").count()) == (1, 0)
    assert len(drawings(runpod)) == 1


ENDS = [
    # the job's last state, what the page shows
    (
        failed("OUT_OF_MEMORY: the GPU is full. Use fewer pictures."),
        "OUT_OF_MEMORY: the GPU is full.",
    ),
    ({"status": "FAILED"}, "The job ended as FAILED."),
    ({"status": "TIMED_OUT"}, "longer than the endpoint's execution timeout"),
    (completed(images="none"), "The answer has no pictures."),
    (completed(images=["@@"]), "The answer has no pictures that this page can read."),
    ({"status": "COMPLETED"}, "RunPod has no result of the job"),
]


@pytest.mark.parametrize(("state", "shown"), ENDS)
def test_a_job_that_ends_without_pictures_says_why(bridge, runpod, new_page, state, shown):
    runpod.drawing = lambda _job: [state]
    page = new_page(bridge)
    draw(page, "a fox")
    page.get_by_role("alert").filter(has_text=shown).wait_for()
    page.get_by_role("button", name="Dismiss").click()
    assert page.locator(".job").count() == 0


def test_a_server_that_goes_away_and_comes_back_is_shown_and_the_job_goes_on(runpod, new_page):
    ended = []
    runpod.drawing = lambda _job: iter(lambda: DONE if ended else progress(phase="load"), None)
    with served_endpoint(runpod) as gateway:
        page = new_page(gateway.url, allowed=[AWAY])
        draw(page, "a fox")
        page.locator(".job").get_by_text("Loading the checkpoint").wait_for()
    page.locator("#state", has_text="Away").wait_for()
    page.get_by_text("The server does not answer. Trying again.").wait_for()
    ended.append(True)
    with served_endpoint(runpod, port=gateway.port):
        page.get_by_role("img", name="a fox").wait_for()
        page.locator("#state", has_text="Drawing").wait_for()


WORKERS = [
    ({"running": 1, "ready": 1}, "Drawing"),
    ({"idle": 1}, "Ready"),
    ({"initializing": 1}, "Starting"),
    ({"throttled": 2}, "No GPU free"),
    ({"unhealthy": 1}, "Unhealthy"),
    ({}, "Asleep"),
]


@pytest.mark.parametrize(("workers", "word"), WORKERS)
def test_the_state_of_the_workers_is_a_word_and_an_open_page_starts_none(
    bridge, runpod, new_page, workers, word
):
    runpod.health = {"jobs": {"inQueue": 3}, "workers": workers}
    page = new_page(bridge)
    page.locator("#state", has_text=word).wait_for()
    page.locator("#sampler_name option").nth(1).wait_for(state="attached")  # the lists came
    assert [job["task"] for job in runpod.inputs()] == ["batch"] * (word == "Drawing")


# Texts from outside ------------------------------------------------------------------------------


def test_no_text_from_outside_becomes_html(bridge, runpod, new_page):
    lists = lists_of_a_worker(HOSTILE)
    warning = drawn(HOSTILE, warnings=[HOSTILE])
    ends = iter([completed(**warning), failed(HOSTILE, problems=[f"prompt = {HOSTILE}"])])
    runpod.drawing = lambda _job: [progress(message=HOSTILE, phase=HOSTILE), next(ends)]
    runpod.states = lambda job: (
        [completed(results=lists)] if job.get("task") == "batch" else runpod.drawing(job)
    )
    page = new_page(bridge)
    wait_for_lists(page)
    draw(page, HOSTILE)
    tiles(page).first.locator("button.tile").click()
    page.locator("#viewer-prompt").get_by_text(HOSTILE).wait_for()
    page.keyboard.press("Escape")
    draw(page, HOSTILE)
    page.get_by_role("alert").wait_for()
    drop(page, "body", HOSTILE, png(f"{HOSTILE}\n{LINE_OF_HOSTILE}"))
    page.get_by_text("The form has the settings of").wait_for()
    drop(page, "body", HOSTILE, b"no PNG")
    page.get_by_text(f"{HOSTILE} is not a PNG.").wait_for()
    assert page.locator("img[onerror], body script").count() == 0
    assert page.title() == "Draw · A1111 worker"


LINE_OF_HOSTILE = f"Steps: 9, Sampler: {json.dumps(HOSTILE)}, Seed: 1, Model: {json.dumps(HOSTILE)}"


def test_a_fault_in_the_kept_values_does_not_break_the_page(bridge, new_page):
    page = new_page(bridge)
    for value in ("{", "null", "[1]", '{"loras": 5, "seed": {}}', '{"x": {"job": null}}'):
        page.evaluate(
            "value => { localStorage.form = value; localStorage.jobs = value }",
            value,
        )
        page.reload()
        wait_for_lists(page)
        assert page.input_value("#seed") == ""


# Access ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_state_of_the_page_is_accessible_and_fits_the_screen(
    bridge, runpod, new_page, size, scheme
):
    states = {
        "done": [completed(**drawn(count=2, warnings=["The size was rounded down."]))],
        "wrong": [failed("INVALID_INPUT: x.", problems=["steps = 1: must be less"])],
        "runs": FOREVER(progress(phase="generate", percent=5, preview=PREVIEW)),
    }
    runpod.drawing = lambda job: states[job["prompt"].split()[0]]
    page = new_page(bridge, viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")
    wait_for_lists(page)
    check(page, size)
    open_all(page)
    page.click("#add-lora")
    for word in states:
        draw(page, f"{word} of a fox in the snow {'and_a_long_word' * 20} behind a house")
    page.get_by_role("alert").wait_for()
    page.locator(".preview:visible").wait_for()
    tiles(page).nth(1).wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
    check(page, size)
    page.click("#health summary")
    check(page, size)
    page.keyboard.press("Escape")
    tiles(page).first.locator("button.tile").click()
    check(page, size)


def check(page, size):
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0, size


def test_everything_can_be_done_with_the_keyboard_and_the_focus_is_always_seen(
    bridge, runpod, new_page
):
    runpod.drawing = lambda _job: [completed(**drawn("a fox"))]
    page = new_page(bridge)
    wait_for_lists(page)
    page.keyboard.type("a fox")  # the prompt has the focus
    page.keyboard.press("Control+Enter")
    tiles(page).first.wait_for()
    order = walk(page)
    expected = [
        "prompt",
        "template",
        "checkpoint",
        "add-lora",
        "width",
        "seed",
        "draw",
        "read-file",
    ]
    assert [name for name in order if name in expected] == expected
    assert order.index("draw") < order.index("tile")
    page.locator("button.tile").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "tile"


def walk(page):
    """Press Tab through the whole page; the ids, classes or names of what had the focus."""
    page.locator(".skip").focus()
    order = ["skip"]
    for _ in range(200):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => {
                const one = document.activeElement;
                const shown = one.classList.contains('unseen') ? one.previousElementSibling : one;
                const name = one.id || one.className || one.tagName;
                return [name, getComputedStyle(shown).outlineStyle];
            }"""
        )
        if name in {"BODY", "skip"}:
            return order
        assert outline == "solid", name
        order.append(name)
    raise AssertionError(order)


# The form ---------------------------------------------------------------------------------------


def test_fields_of_the_schema_are_fields_of_the_form_and_reach_the_job(bridge, new_page):
    page = new_page(bridge)
    wait_for_lists(page)
    open_all(page)
    page.select_option("#field-trigger_words", "true")
    page.select_option("[name='output.format']", "webp")
    page.fill("[name='override_settings.eta_noise_seed_delta']", "31337")
    page.fill("[name='embeddings']", '["one"]')
    page.fill("#more", '{"override_settings": {"rho": 7}, "template": "other"}')
    page.fill("#seed", "18446744073709551615")
    expected = {
        "trigger_words": True,
        "output": {"format": "webp"},
        "override_settings": {"eta_noise_seed_delta": 31337, "rho": 7},
        "embeddings": ["one"],
        "template": "other",
        "seed": "18446744073709551615",
    }
    assert job_in_form(page) == expected
    page.reload()
    wait_for_lists(page)
    assert job_in_form(page) == expected
    page.evaluate("async (job) => (await import('/page/form.js')).fill(job)", expected)
    assert job_in_form(page) == expected


WRONG = {
    "#seed": ("one", "A seed is a whole number"),
    "#more": ("{", "This is not JSON"),
    "[name='embeddings']": ("[", "This is not JSON"),
}


@pytest.mark.parametrize("field", WRONG)
def test_what_cannot_be_sent_is_said_beside_its_field_and_no_job_starts(
    bridge, runpod, new_page, field
):
    value, sentence = WRONG[field]
    page = new_page(bridge)
    wait_for_lists(page)
    open_all(page)
    page.fill(field, value)
    page.keyboard.press("Control+Enter")
    page.get_by_text(sentence).wait_for()
    assert page.locator(f"{field}:focus").count() == 1
    assert drawings(runpod) == []


# The login ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", [Access(token="t0ken"), Access(login="me:t0ken")])
def test_with_a_login_the_browser_asks_for_it_and_the_page_works(runpod, new_page, access):
    runpod.drawing = lambda _job: [DONE]
    with served_endpoint(runpod, access) as gateway:
        login = {"username": "me", "password": "t0ken"}
        page = new_page(gateway.url, http_credentials=login, allowed=[AWAY])
        draw(page, "a fox")
        page.get_by_role("img", name="a fox").wait_for()
