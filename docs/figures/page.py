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
    save(page, "page-desktop.png")
    page.get_by_role("button", name="Cancel").click()
    page.locator("button.tile").nth(1).click()
    save(page, "page-viewer.png")


def phone(browser: Browser, url: str) -> None:
    """A phone in dark."""
    page = opened(browser, url, 390, 760, dark=True)
    for prompt in PROMPTS[:4]:
        draw(page, prompt)
    page.locator("#gallery li").nth(3).wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)
    save(page, "page-phone.png")


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
    save(page, "page-error.png")


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


def save(page: Page, name: str) -> None:
    """Save what the window shows, with few colours: a document's picture should be small."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        small = image.convert("RGB").quantize(256)
    small.save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
