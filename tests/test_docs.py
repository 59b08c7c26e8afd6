"""What the documents say is what the code does."""

import json
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from test_errors import CODED
from worker import template
from worker.credentials import SECRET_NAME
from worker.payload import OURS
from worker.request import Txt2ImgRequest, parse
from worker.settings import PROJECT, Settings

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


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


def test_the_job_fields_are_those_of_the_code():
    ours = re.findall(r"^\| `(\w+)` \|", (PROJECT / "docs/api.md").read_text(), re.MULTILINE)
    ours = ours[: ours.index("models")]  # the table of the output follows

    assert set(ours) <= set(Txt2ImgRequest.model_fields)
    assert set(ours) == OURS - {"sampler_index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_job_is_valid(page):
    for block in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL):
        if "templates" in json.loads(block):
            template.parse(block)
        else:
            parse(json.loads(block)["input"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_named_file_exists(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(r"`((?:worker|tests|engine|docs)/[\w/.-]+\.\w+)`", text)

    for path in [*(page.parent / link for link in links), *(PROJECT / name for name in named)]:
        assert path.exists(), path


def test_the_commands_in_the_readme_exist():
    makefile = (PROJECT / "Makefile").read_text()
    commands = set(re.findall(r"make (\w+)", (PROJECT / "README.md").read_text()))

    assert commands >= {"run", "test", "serve"}
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


def test_pages_are_short():
    assert all(len(Path(page).read_text().splitlines()) < 150 for page in PAGES)
