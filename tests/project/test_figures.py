"""The figures in docs/images: readable for a person, a screen reader and a browser."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from docs.figures import container
from docs.figures.all import FIGURES
from worker.webui.engine_state import Process

SVG = "{http://www.w3.org/2000/svg}"
STILL = "--force-prefers-reduced-motion"  # of the animation the last screen
every_figure = pytest.mark.parametrize("name", FIGURES)

# In a browser, of each text that leaves the drawing, runs into another text, or crosses the edge of
# a box: the text. The page shows them as JSON.
OVERLAPS = """
<body><div id="svg">%s</div><pre id="found"></pre><script>
const rect = element => element.getBoundingClientRect();
const texts = [...document.querySelectorAll("#svg text")].filter(
  text => getComputedStyle(text).visibility === "visible");
const page = rect(document.querySelector("svg"));
const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 2
  || b.bottom <= a.top + 2;
const inside = (a, b) => a.left >= b.left && a.right <= b.right && a.top >= b.top - 1
  && a.bottom <= b.bottom + 1;
const wrong = texts.filter((text, number) => {
  const mine = rect(text);
  return !inside(mine, page) || texts.slice(number + 1).some(other => !apart(mine, rect(other)))
    || [...document.querySelectorAll("#svg .shape")].some(
      box => !apart(mine, rect(box)) && !inside(mine, rect(box)));
});
document.querySelector("#found").textContent =
  JSON.stringify({texts: texts.length, wrong: wrong.map(text => text.textContent)});
</script></body>
"""


@every_figure
def test_a_figure_is_an_image_with_a_name_a_description_and_nothing_from_elsewhere(name):
    root = ET.fromstring(FIGURES[name]())
    assert root.get("role") == "img"
    named = {
        root.find(f"{SVG}{part}").get("id"): root.find(f"{SVG}{part}").text
        for part in ("title", "desc")
    }
    assert [*named] == root.get("aria-labelledby").split()
    assert all(len(text) > 10 for text in named.values())
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text
    links = [value for part in root.iter() for key, value in part.items() if "href" in key]
    assert links == []


@every_figure
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_no_text_of_a_figure_meets_another_text_or_the_edge_of_a_box(name, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(OVERLAPS % FIGURES[name]())
    command = ["chromium", "--headless=new", "--no-sandbox", STILL, "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(
        dom.partition('<pre id="found">')[2].partition("</pre>")[0].replace("&amp;", "&")
    )
    assert found["texts"] > 10
    assert found["wrong"] == []


def test_the_states_of_a_container_have_every_status_of_start_sh_and_every_state_of_the_engine():
    assert {status for mine in container.ENDS.values() for status in mine} == {
        *container.statuses()
    }
    assert {*container.STATE_OF} == {*Process}
    assert ("ready", "restarting") in container.arrows()
