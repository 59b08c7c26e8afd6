"""Takes the pictures of the page for docs/page.md, with Chromium, from a running `make serve`.

    python -m docs.figures.page http://localhost:8000

Each picture is a click on the real page with the demo model, so run it when the page changes.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

GAP = 16  # pixels between two screenshots
PATIENCE = 600_000  # ms; a busy machine draws slowly
IMAGES = Path(__file__).parents[1] / "images"
PROMPTS = (
    *("a red circle on a blue background", "a green star on a yellow background"),
    *("a white square on a black background", "a yellow triangle on a green background"),
    *("a blue star on a white background", "a red square on a yellow background"),
)


def main(url: str) -> None:
    """Take all pictures."""
    with sync_playwright() as driver:
        path = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        desktop(browser, url)
        phone(browser, url)
        error(browser, url)
        browser.close()


def desktop(browser: Browser, url: str) -> None:
    """Six pictures and a job that is drawn, in light."""
    page = opened(browser, url, 1280, 800)
    for number, prompt in enumerate(PROMPTS):
        page.fill("#seed", str(40 + number))
        draw(page, prompt)
    page.locator("#gallery li").nth(len(PROMPTS) - 1).wait_for()
    page.fill("#seed", "")
    page.fill("#n_iter", "4")
    draw(page, "a green circle on a white background")
    page.get_by_text("Drawing: ").wait_for()
    page.wait_for_timeout(1500)
    save("page-desktop.png", page.screenshot())
    page.get_by_role("button", name="Cancel").click()
    page.locator("button.tile").nth(1).click()
    save("page-viewer.png", page.screenshot())


def phone(browser: Browser, url: str) -> None:
    """A phone in dark: the form, and beside it a job and pictures."""
    page = opened(browser, url, 390, 760, dark=True)
    for prompt in PROMPTS[:4]:
        draw(page, prompt)
    page.locator("#gallery li").nth(3).wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)
    form = page.screenshot()
    draw(page, PROMPTS[4])
    page.get_by_text("Drawing: ").wait_for()
    page.evaluate("document.getElementById('jobs').scrollIntoView()")
    page.wait_for_timeout(300)
    save("page-phone.png", form, page.screenshot())


def error(browser: Browser, url: str) -> None:
    """A job that the worker refuses."""
    page = opened(browser, url, 1280, 800)
    page.fill("#width", "5000")
    page.click("#add-lora")
    page.fill("#lora-1", "striped")
    page.fill("#weight-1", "80")
    draw(page, PROMPTS[0])
    page.get_by_role("alert").wait_for()
    page.evaluate("document.activeElement.blur()")
    save("page-error.png", page.screenshot())


def opened(browser: Browser, url: str, width: int, height: int, *, dark: bool = False) -> Page:
    """The page in a window of this size, when the worker is ready."""
    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.locator("#form.known").wait_for()
    return page


def draw(page: Page, prompt: str) -> None:
    """Send a job."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")


def save(name: str, *shots: bytes) -> None:
    """Save screenshots side by side, with few colours: a document's picture should be small."""
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    width = sum(image.width + GAP for image in images) - GAP
    joined = Image.new("RGB", (width, images[0].height), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + GAP
    joined.quantize(256).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
