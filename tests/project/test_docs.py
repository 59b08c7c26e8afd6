"""What the documents say is what the code does."""

import json
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from tests.test_errors import CODED
from worker.config.credentials import SECRET_NAME
from worker.config.settings import PROJECT, Settings
from worker.job import template
from worker.job.request import Txt2ImgRequest, parse
from worker.webui.payload import OURS

TURKISH = PROJECT / "README.tr.md"
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]


def table(page: str) -> list[str]:
    return [line for line in (PROJECT / "docs" / page).read_text().splitlines() if "| `" in line]


def setting_row(name: str) -> str:
    field = Settings.model_fields[name]
    has_none = field.default in {PydanticUndefined, None, "", ()}
    default = "" if has_none else f"`{str(field.default).replace(f'{PROJECT}/', './')}`"
    return f"| `{name.upper()}` | {default} | {field.description} |"


def test_the_table_of_settings_is_that_of_the_code():
    assert table("configuration.md") == [setting_row(name) for name in Settings.model_fields]


def test_the_words_of_secrets_are_those_of_the_code():
    text = (PROJECT / "docs/configuration.md").read_text()

    assert all(f"`{word}`" in text for word in SECRET_NAME.pattern.split("|"))


def test_the_table_of_errors_is_that_of_the_code():
    depends = "The hint depends on the case; the message has it."

    assert table("errors.md") == [
        f"| `{kind.code}` | {kind.__doc__.splitlines()[0]} | {kind.default_hint or depends} |"
        for kind in CODED
    ]


def test_the_exit_statuses_are_those_of_start_sh():
    script = (PROJECT / "start.sh").read_text()
    page = (PROJECT / "docs/modules/startup-script.md").read_text()

    assert set(re.findall(r"^\| (\d+) \|", page, re.MULTILINE)) == set(
        re.findall(r"^#   (\d+)  ", script, re.MULTILINE)
    )


def test_the_life_of_a_container_names_every_exit_status():
    script = (PROJECT / "start.sh").read_text()
    page = (PROJECT / "docs/workflows/container-lifecycle.md").read_text()
    named = {
        number
        for row in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
        for number in row.split(", ")
    }

    assert named >= set(re.findall(r"^#   (\d+)  ", script, re.MULTILINE))


def test_the_job_fields_are_those_of_the_code():
    ours = re.findall(r"^\| `(\w+)` \|", (PROJECT / "docs/api.md").read_text(), re.MULTILINE)
    ours = ours[: ours.index("models")]  # the table of the output follows

    assert set(ours) <= set(Txt2ImgRequest.model_fields)
    assert set(ours) == OURS - {"sampler_index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_valid(page):
    for block in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL):
        example = json.loads(block)
        if "templates" in example:
            template.parse(block)
        elif "output" in example:
            assert set(example["output"]) == answer_keys()
        else:
            parse(example["input"])


def answer_keys() -> set[str]:
    """Of a result, as the contract lists them; test_docs_commands.py looks at a real one."""
    section = (PROJECT / "docs/api.md").read_text().partition("## Output")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    return {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())

    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    folders = "worker|tests|engine|docs|image|demo|training|benchmarks"
    named = re.findall(rf"`((?:{folders})/[\w/.-]+\.\w+)`", page.read_text())

    assert [name for name in named if not (PROJECT / name).exists()] == []


def outline(page: Path) -> list[tuple[int, list[str]]]:
    """The depth of each heading, and the code blocks below it without their comments."""
    parts = re.split(r"^(?=#+ )", page.read_text(), flags=re.MULTILINE)
    return [(len(part) - len(part.lstrip("#")), blocks(part)) for part in parts]


def blocks(text: str) -> list[str]:
    found = re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+# .*", "", block) for block in found]


def test_the_turkish_readme_keeps_step():
    english = PROJECT / "README.md"

    assert outline(TURKISH) == outline(english)
    for pattern in (r"\]\(([^)]+)\)", r"`([^`\n]+)`"):  # links; names and commands
        assert set(re.findall(pattern, TURKISH.read_text())) == set(
            re.findall(pattern, english.read_text())
        )


def test_the_commands_in_the_readme_exist():
    makefile = (PROJECT / "Makefile").read_text()
    commands = set(re.findall(r"make (\w+)", (PROJECT / "README.md").read_text()))

    assert commands >= {"run", "test", "serve"}
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


def test_pages_are_short():
    assert all(len(Path(page).read_text().splitlines()) < 150 for page in PAGES)
