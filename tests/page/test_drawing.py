"""The page with a real worker: the embedded engine draws with the demo model."""

import subprocess
import sys

import pytest
import requests

from tests.page.use import (
    draw,
    drop,
    infotext_of,
    job_in_form,
    open_all,
    tiles,
    wait_for_lists,
)

PROMPT = "a red circle on a blue background"


@pytest.fixture
def page(new_page, worker):
    context = {"permissions": ["clipboard-read", "clipboard-write"]}
    page = new_page(f"{worker}/", **context)
    wait_for_lists(page)
    return page


def download(page, folder):
    """The newest picture, as the page saves it."""
    tiles(page).first.locator("button.tile").click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    page.get_by_role("button", name="Close").click()
    waiting.value.save_as(folder / "picture.png")
    return folder / "picture.png"


def test_a_picture_is_drawn_kept_over_a_reload_and_drawn_again_from_its_file(page, tmp_path):
    draw(page, PROMPT)
    page.get_by_role("button", name="Cancel").wait_for()
    picture = page.get_by_role("img", name=PROMPT)
    picture.wait_for()
    assert picture.evaluate("one => one.naturalWidth") == 256
    first = infotext_of(download(page, tmp_path))
    page.reload()
    assert page.input_value("#prompt") == PROMPT
    picture.wait_for()
    page.click("#clear")
    drop(page, "body", "fox.png", (tmp_path / "picture.png").read_bytes())
    page.get_by_text("The form has the settings of fox.png.").wait_for()
    page.keyboard.press("Control+Enter")
    tiles(page).nth(1).wait_for()
    assert infotext_of(download(page, tmp_path)) == first


def test_every_choice_of_the_form_reaches_the_engine_and_comes_back_with_reuse(page, tmp_path):
    open_all(page)
    fields = {"#prompt": PROMPT, "#negative_prompt": "blurry", "#width": "192", "#steps": "4"}
    fields |= {"#height": "128", "#seed": "7", "#cfg_scale": "5.5", "#checkpoint": "demo-shapes"}
    fields |= {"#hr_scale": "1.5", "#hr_strength": "0.6", "#field-clip_skip": "2", "#n_iter": "2"}
    page.check("#enable_hr")
    page.select_option("#template", "none")
    page.click("#add-lora")
    for field, value in (fields | {"#lora-1": "striped", "#weight-1": "0.8"}).items():
        page.fill(field, value)
    page.select_option("#sampler_name", "DPM++ 2M")
    page.select_option("#scheduler", "Karras")
    page.select_option("#hr_upscaler", "Latent")
    job = job_in_form(page)
    page.click("#draw")
    tiles(page).nth(1).wait_for()
    text = infotext_of(download(page, tmp_path))
    expected = ["Steps: 4", "Sampler: DPM++ 2M", "Schedule type: Karras", "CFG scale: 5.5"]
    expected += ["Seed: 8", "Size: 192x128", "Clip skip: 2", "Hires upscale: 1.5", "striped:0.8"]
    assert [part for part in [*expected, "Negative prompt: blurry"] if part not in text] == []
    page.click("#clear")
    tiles(page).first.get_by_role("button", name="Use the settings").click()
    assert job_in_form(page) == {key: job[key] for key in job if key != "n_iter"} | {"seed": "8"}


def test_a_picture_starts_from_another_one(page, tmp_path):
    draw(page, PROMPT)
    tiles(page).first.locator("button.tile").click()
    page.get_by_role("button", name="Start from it").click()
    page.fill("#strength", "0.2")
    draw(page, "a green circle on a blue background")
    tiles(page).nth(1).wait_for()
    assert "Denoising strength: 0.2" in infotext_of(download(page, tmp_path))
    page.click("#remove-init")
    assert "init_images" not in job_in_form(page)


def test_cancel_ends_the_job_at_the_worker_and_the_queued_one_is_drawn(page, worker):
    page.click("text=Sampling")
    page.fill("#steps", "150")
    page.fill("#n_iter", "64")
    draw(page, "a job that must not end")
    page.get_by_text("Drawing: ").wait_for()
    page.fill("#steps", "4")
    page.fill("#n_iter", "1")
    draw(page, PROMPT)
    page.locator(".job", has_text="must not end").get_by_role("button", name="Cancel").click()
    page.get_by_role("img", name=PROMPT).wait_for()
    page.locator(".job").first.wait_for(state="detached")
    job = {"input": {"task": "health"}}
    counts = requests.post(f"{worker}/runsync", json=job, timeout=60).json()["output"]["worker"]
    assert (counts["jobs"]["cancelled"], counts["jobs"]["running"]) == (1, [])


@pytest.mark.parametrize("name", ["curl", "Python", "JSON"])
def test_what_the_page_copies_runs_and_draws_the_same_picture(page, worker, tmp_path, name):
    prompt = 'it\'s a "red" circle \\ $HOME `id` !\n<b>é☃</b> on a blue background'
    draw(page, prompt)
    first = infotext_of(download(page, tmp_path))
    tiles(page).first.locator("button.tile").click()
    page.get_by_role("button", name=f"Copy {name}").click()
    page.get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    if name == "JSON":
        answer = requests.post(f"{worker}/runsync", data=text.encode(), timeout=120, headers=JSON)
    elif name == "curl":
        done = subprocess.run(["bash", "-c", text], capture_output=True, check=True, timeout=120)
        answer = requests.models.Response()
        answer._content = done.stdout
    if name == "Python":
        (tmp_path / "again.py").write_text(text)
        subprocess.run([sys.executable, "again.py"], cwd=tmp_path, check=True, timeout=120)
        assert infotext_of(tmp_path / "picture-0.png") == first
    else:
        assert f"Seed: {seed_of(first)}," in answer.json()["output"]["info"]
        assert answer.json()["output"]["parameters"]["prompt"] == prompt


JSON = {"Content-Type": "application/json"}


def seed_of(infotext):
    return infotext.partition("Seed: ")[2].partition(",")[0]


def test_the_workers_sentence_is_shown_and_stands_beside_its_fields(page):
    open_all(page)
    page.fill("#steps", "900")
    page.click("#add-lora")
    page.fill("#lora-1", "nothing")
    page.fill("#weight-1", "99")
    draw(page, PROMPT)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.text_content().startswith("INVALID_INPUT: steps = 900: must be at most 150")
    described = page.locator("#steps").get_attribute("aria-describedby")
    assert page.text_content(f"#{described}") == "steps = 900: must be at most 150"
    assert page.locator("#weight-1").get_attribute("aria-invalid") == "true"
    page.fill("#steps", "4")
    assert page.locator("#steps").get_attribute("aria-invalid") is None


def test_health_names_the_device_and_the_stored_models(page):
    page.click("#health summary")
    facts = page.locator("#facts")
    facts.get_by_text("checkpoints: 1").wait_for()
    assert "the engine uses the CPU" in facts.text_content()
    page.keyboard.press("Escape")
    assert not facts.is_visible()
