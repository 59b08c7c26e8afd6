"""The documents agree with the code."""

import ast
import json
import re
from pathlib import Path

import pytest

from docs import generate
from docs.generate import PAGES
from worker.config.credentials import SECRET_ENDS, SECRET_WORDS
from worker.config.settings import PROJECT
from worker.job import template
from worker.job.request import check
from worker.tasks.table import TASKS
from worker.translation.other_workers import understood

TEXTS = {page: page.read_text() for page in PAGES}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(name):
    return (PROJECT / name).read_text()


def found_in(name, pattern):
    return re.findall(pattern, read(name), re.MULTILINE)


def test_generated_parts_are_up_to_date_and_each_has_a_place():
    stale = [
        path.name
        for path, text in generate.files().items()
        if not path.exists() or path.read_text() != text
    ]
    assert stale == [], "run `make docs`"
    used = {found[2] for text in TEXTS.values() for found in generate.PART.finditer(text)}
    assert used == set(generate.PARTS)


def test_words_of_secrets_and_exit_statuses_are_those_of_the_code():
    configuration = read("docs/configuration.md")
    assert all(f"`{word}`" in configuration for word in (*SECRET_WORDS, *SECRET_ENDS))
    rows = found_in("docs/container-lifecycle.md", r"^\| ([\d, ]+) \|")
    named = {number for row in rows for number in row.split(", ")}
    assert named >= set(found_in("start.sh", r"^#   (\d+)  "))


@every_page
def test_every_example_is_valid(page):
    for block in re.findall(r"```json\n(.*?)```", TEXTS[page], re.DOTALL):
        example = json.loads(block)
        if "templates" in example:
            template.parse(block)
        elif "output" in example:
            assert set(example["output"]) == answer_keys()
        else:
            job = understood(example["input"]).input
            check(job, TASKS.of(job).input)


def answer_keys() -> set[str]:
    """Of a result without options, by the contract; test_docs_commands.py looks at a real one."""
    section = read("docs/api.md").partition("## Output")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (.*?) \| .*? \| (?!Only with )", section, re.MULTILINE)
    return {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}


def anchors(page):
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_file_and_name_exists(page):
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    folders = "worker|tests|engine|docs|image|demo|training|benchmarks"
    files = re.findall(rf"`((?:{folders})/[\w/.-]+\.\w+)`", TEXTS[page])
    assert [name for name in files if not (PROJECT / name).exists()] == []
    for name, file in re.findall(r"`(\w+)` in\s+`([\w/]+\.py)`", TEXTS[page]):
        assert re.search(rf"\b{name}\b", read(file)), (name, file)


def outline(text):
    """The depth of each heading, and the code blocks below it without their comments."""
    parts = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
    blocks = [re.findall(r"^```.*?^```", part, re.DOTALL | re.MULTILINE) for part in parts]
    return [
        (len(part) - len(part.lstrip("#")), [re.sub(r"\s+# .*", "", block) for block in inner])
        for part, inner in zip(parts, blocks, strict=True)
    ]


def without_language(link):
    """A link, whichever language's page it is on and leads to: headings have other names there."""
    translated = r"^(#|docs/quickstart(?:\.tr)?\.md#).*"
    return re.sub(translated, r"\1", link).replace(".tr.md", ".md")


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/troubleshooting.md"])
def test_a_turkish_page_keeps_step(page):
    turkish, english = read(page.replace(".md", ".tr.md")), read(page)
    assert outline(turkish) == outline(english)
    for pattern in (r"\]\(([^)]+)\)", r"`([^`\n]+)`"):  # links; names and commands
        of_turkish, of_english = (
            {without_language(found) for found in re.findall(pattern, text)}
            for text in (turkish, english)
        )
        other = {page.rpartition("/")[2]}  # each links the other one
        assert of_turkish - other == of_english - other


def literals() -> str:
    """The fixed parts of every text in our programs, a line each."""
    patterns = ("*.py", "worker/**/*.py", "gateway/**/*.py", "engine/**/*.py")
    files = [file for pattern in patterns for file in PROJECT.glob(pattern)]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    scripts = [PROJECT / "start.sh", PROJECT / "Makefile", *PROJECT.glob("image/*.sh")]
    texts += [script.read_text().replace("\\\n", "") for script in scripts]
    return "\n".join(text for text in texts if isinstance(text, str))


def first_cells(name):
    """Of the tables of a page, without their heads: what a reader sees, with messages in quotes."""
    return [cell for cell in found_in(name, r"^\| (.*?) \| ") if "`" in cell]


def test_the_messages_that_the_page_about_troubleshooting_explains_exist():
    """In a quoted message `...` stands for each part that varies."""
    known = literals()
    quoted = [
        quote
        for cell in first_cells("docs/troubleshooting.md")
        for _, quote in re.findall(r"(`+)(.+?)\1", re.sub(r"for example .*|from `make.*", "", cell))
    ]
    parts = [part for quote in quoted for part in re.split(r"\.\.\.|^[A-Z_]+: ", quote)]
    assert len(quoted) > 60
    assert [part for part in parts if part.strip(" .:,()'") not in known] == []


def test_each_error_code_is_explained_where_people_look_for_it():
    page = read("docs/troubleshooting.md")
    codes = re.findall(r"^\| `([A-Z_]+)` \|", generate.errors(), re.MULTILINE)
    assert len(codes) > 40
    assert [code for code in codes if code not in page] == []


def test_the_commands_in_the_readme_exist():
    commands = set(found_in("README.md", r"make (\w+)"))
    assert {*found_in("Makefile", r"^(\w+):")} >= commands >= {"run", "test", "serve"}


def test_pages_are_short():
    written = {str(page): generate.PART.sub("", text) for page, text in TEXTS.items()}
    long = {Path(name).name for name, text in written.items() if len(text.splitlines()) >= 150}
    assert long <= {"benchmarks.md"}  # which `make bench` writes
