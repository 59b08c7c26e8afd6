"""What the worker says is applied is what the engines apply: for any prompt, without an engine.

Four readers: the worker's, the fake A1111's, the embedded engine's, and a tiny one of A1111's rules
that uses no regular expression.
"""

import re
from pathlib import Path

import pytest
from fakes.a1111.models import lora_tags, read_tag
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prompt import syntax
from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.generation import prompts
from worker.generation.catalog import Style
from worker.generation.payload import build
from worker.job import prompt
from worker.job.models import Models
from worker.job.txt2img import parse

PIECES = [*"<>:#()[]\\|xy1 \n\u00e9\uff1c", "lora", "LoRA", "lyco", "te=", "0.5", ":1.2)", ":5]"]
PIECES += ["BREAK", "AND", "<lora:x:1>", "<lyco:y:0.5>", "<a:b>", "<LORA:y:1>", "&lt;", "{a|b}"]
PIECES += ["<lora: x :te=0.2>", "# <lora:x:1>", "[<lora:y:2>:3]", "__a__", "\u201cq\u201d"]
PIECES += ["<hypernet:h:1>", "<lora:x:1:1:4>", "<lora:y:lbw=A>"]
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
STYLES = {
    "plain": Style("film"),
    "lora": Style("<lora:z:0.5> grain"),
    "around": Style("a {prompt} # note"),
    "comment": Style("# <lora:z:1>\n{prompt}"),
}


def reading(text):
    """Kind and arguments of each tag that A1111 finds, one line and one character at a time."""
    text = "\n".join(line.partition("#")[0] for line in text.split("\n"))
    found, at = [], 0
    while (start := text.find("<", at)) >= 0:
        end = start + 1
        while end < len(text) and (text[end].isalnum() or text[end] == "_"):
            end += 1
        close = text.find(">", end)
        is_tag = end > start + 1 and text[end : end + 1] == ":" and close > end + 1
        at = close + 1 if is_tag else start + 1
        found += [(text[start + 1 : end], text[end + 1 : close].split(":"))] if is_tag else []
    return found


def loras(text):
    """Name and weights of each LoRA that A1111 applies."""
    for kind, items in reading(text):
        if kind in {"lora", "lyco"}:
            named = dict(item.split("=") for item in items if item.count("=") == 1)
            places = [item for item in items if item.count("=") != 1]
            te = float(named.get("te", places[1] if places[1:] else 1))
            unet = float(named.get("unet", places[2] if places[2:] else te))
            yield places[0], te, unet


def with_style(text, style):
    added = STYLES[style].prompt
    joined = ", ".join(filter(None, [text.strip(), added.strip()]))
    return added.replace("{prompt}", text) if "{prompt}" in added else joined


def composed(job):
    """The payload of a job whose LoRAs all exist; None if it is refused."""
    request = parse(job)
    try:
        prompts.check(request, STYLES)
        names = {tag.name for tag in prompt.lora_tags(request.prompt)}
        files = {name: ModelFile("lora", Path(f"/{name}.safetensors"), name, 1) for name in names}
        return build(request, {}, Models(written_loras=files), STYLES)
    except InvalidInput:
        return None


@settings(max_examples=300)
@given(texts, st.none() | st.sampled_from(sorted(STYLES)))
def test_what_is_said_to_be_applied_is_what_the_engines_apply(text, style):
    job = {"prompt": text, "styles": [style] if style else []}
    payload = composed(job)
    if payload is None:
        return
    sent = payload.body["prompt"]
    seen = syntax.without_comments(with_style(sent, style) if style else sent)
    expected = sorted(loras(seen))
    assert payload.expected.loras == {name for name, _, _ in expected}
    assert sorted(read_tag(tag) for tag in lora_tags(seen)) == expected
    if "dyn" not in seen and not any(":4" in tag for tag in lora_tags(seen)):  # refused by this one
        _, embedded = syntax.extract_loras(seen)
        assert sorted((tag.name, tag.te, tag.unet) for tag in embedded) == expected
    # Nothing that the caller wrote is lost without a word.
    said = " ".join(payload.warnings)
    dropped = [kind for kind, _ in reading(text) if kind not in {"lora", "lyco", "hypernet"}]
    assert not dropped or re.search("is left out|is read as|more warnings", said)
    hidden = [line.partition("#")[2] for line in text.split("\n")]
    assert not any(map(prompt.tags_in, hidden)) or "in a comment" in said


@pytest.mark.parametrize("text", ["# <lora:x:1>\na", "[<lora:x:1>:3]", "<LoRA:x:1>", "a <b:c>"])
def test_such_a_prompt_is_made_and_gets_a_warning(text):
    """The property above is not empty: these pass."""
    assert composed({"prompt": text}).warnings
