"""The documents agree with the code."""

import ast
import json
import re
from pathlib import Path

import pytest

from docs import generate
from docs.generate import PAGES
from worker.config.credentials import SECRET_NAME
from worker.config.settings import PROJECT
from worker.job import template
from worker.job.request import parse

TURKISH = PROJECT / "README.tr.md"


def test_generated_parts_are_up_to_date():
    stale = [path.name for path, text in generate.files().items() if path.read_text() != text]

    assert stale == [], "run `make docs`"


def test_every_generated_part_has_a_place():
    used = {found[2] for page in PAGES for found in generate.PART.finditer(page.read_text())}

    assert used == set(generate.PARTS)


def test_the_words_of_secrets_are_those_of_the_code():
    text = (PROJECT / "docs/configuration.md").read_text()

    assert all(f"`{word}`" in text for word in SECRET_NAME.pattern.split("|"))


def test_the_life_of_a_container_names_every_exit_status():
    script = (PROJECT / "start.sh").read_text()
    page = (PROJECT / "docs/workflows/container-lifecycle.md").read_text()
    named = {
        number
        for row in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
        for number in row.split(", ")
    }

    assert named >= set(re.findall(r"^#   (\d+)  ", script, re.MULTILINE))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_a_file_exists(page):
    named = re.findall(r"`(\w+)` in\s+`([\w/]+\.py)`", page.read_text())

    assert [
        (name, file)
        for name, file in named
        if not re.search(rf"\b{name}\b", (PROJECT / file).read_text())
    ] == []


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


def literals() -> str:
    """The fixed parts of every text in our programs, a line each."""
    files = [*PROJECT.glob("*.py"), *(PROJECT / "worker").rglob("*.py")]
    files += (PROJECT / "engine").rglob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    scripts = [PROJECT / "start.sh", PROJECT / "Makefile", *(PROJECT / "image").glob("*.sh")]
    texts += [script.read_text().replace("\\\n", "") for script in scripts]
    return "\n".join(text for text in texts if isinstance(text, str))


def test_the_messages_that_the_page_about_troubleshooting_explains_exist():
    """In a quoted message `...` stands for each part that varies."""
    page = (PROJECT / "docs/troubleshooting.md").read_text().replace("\n  ", " ")
    quoted = re.findall(r"^- (?:Status \d+ and )?(`+)(.+?)\1", page, re.MULTILINE)
    parts = [part for _, quote in quoted for part in re.split(r"\.\.\.|^[A-Z_]+: ", quote)]
    known = literals()

    assert len(quoted) > 40
    assert [part for part in parts if part.strip(" .:,()'") not in known] == []


def test_the_commands_in_the_readme_exist():
    makefile = (PROJECT / "Makefile").read_text()
    commands = set(re.findall(r"make (\w+)", (PROJECT / "README.md").read_text()))

    assert commands >= {"run", "test", "serve"}
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


def test_pages_are_short():
    written = {page.name: generate.PART.sub("", page.read_text()) for page in PAGES}

    assert [name for name, text in written.items() if len(text.splitlines()) >= 150] == []
