"""Prompts (tags, wildcards, styles, infotexts) and the texts that name a model."""

from functools import cache

from tests.fuzz.jobs import catalog
from tests.fuzz.target import target
from worker.errors import InvalidInput, ModelUrlRefused
from worker.formats.names import clean_stem, marked_stem, stem_of
from worker.generation.catalog import styled
from worker.http import urls
from worker.images import parameters
from worker.job import prompt, prompt_checks, wildcards
from worker.job.image_fields import check_form
from worker.job.model_fields import LoraReference, ModelReference
from worker.job.reference import local_path, parse_reference
from worker.shown import in_plain_words, shown, shown_name, without_secrets
from worker.spelling import near_matches

PROMPT = [
    *("a fox, ", "<lora:x:0.5>", "<lora:", "<lyco:a:te=1:unet=2>", "<hypernet:x:1>", "<x:y>", ">"),
    *("(a:1.2)", "((", "))", "[a:b:0.5]", "[a|b]", "[:a:3]", ":1.2)", "\\(", "\\", "#", "# x\n"),
    *("BREAK", " BREAK ", "AND", " AND ", ":0.5", "&lt;lora:x:1&gt;", "＜lora:x:1＞", "\u200b"),
    *("embedding:x", "{a|b}", "{2$$", "$$", "::", "3::", "|", "{", "}", "__c__", "__*__", "__@c__"),
    *("${x}", "%{", "{%", "\n", ", ", "{1-3$$ and $$a|b}", "__a/b*(x)__", "\\{", "\\__c__"),
]
INFO = [
    *("a fox\n", "Negative prompt: b\n", "Steps: 20, ", "Sampler: Euler a, ", "Size: 512x768, "),
    *('Lora hashes: "x: 0123", ', 'x: "\\"', '"', ", ", ": ", "Model: x, ", "Version: v1.9.3"),
    *("Version: 1.5.99999-", "Hires prompt: x, ", "Hypernet: x, ", "VAE: y", "\\\\", " / - "),
]
NAMES = [
    *("civitai.com/models/", "https://civitai.com/api/download/models/1?type=Model"),
    "civitai:1@2+3",
    *("urn:air:sd1:lora:", "hf://", "https://huggingface.co/a/b/resolve/"),
    "org/repo/x.safetensors",
    *("sha256:", "ab" * 32, "x.safetensors", " [0123456789]", "@main", "SDXL/"),
    "https://[::1]:80/",
    *("https://a\\@b/", "http://127.0.0.1", "https://x.y/z?sig=secret", "user:pw@", "%2e%2e/"),
    "&amp;",
    *(
        "modelVersionId=",
        "?fileId=1",
        "#",
        "１２３",
        "file:///etc/passwd",
        "ftp://x/y",
        "localhost.",
    ),
]
FIELDS = ("name", "url", "version_id", "air", "sha256", "filename")
SCALE = "scale"


@target(share=2.0)
def reference(draw):
    """A text that names a model: what is read from it is read again from its canonical form."""
    text = draw.text(NAMES)
    try:
        found = parse_reference(text)
        assert parse_reference(str(found)) == found
        str(found).encode()
        assert len(found.key) == 64
    except InvalidInput as error:
        str(error).encode()
        assert len(str(error)) < 2_000
    local_path(text)


@target(InvalidInput)
def model_fields(draw):
    """The object form of a model's name."""
    kind = draw.choice((ModelReference, LoraReference))
    fields = {
        draw.choice(FIELDS): draw.choice((draw.text(NAMES), draw.randrange(10**6)))
        for _ in range(draw.randrange(4))
    }
    fields |= {SCALE: draw.random()} if draw.randrange(2) else {}
    try:
        found = kind.model_validate(fields)
    except ValueError as error:
        str(error)
        return
    found.wanted("lora")
    assert found.label.encode() is not None
    list(found.stems)
    found.is_named(draw.text(NAMES))


@target(ModelUrlRefused, share=2.0)
def url(draw):
    """URLs: what is shown of one has none of its secrets."""
    text = f"https://u:pass@{draw.text(NAMES)}?token=verysecret" if draw.randrange(2) else ""
    text = text or draw.text(NAMES)
    urls.is_public_host(text)
    urls.joined("https://x.y/z", text)
    assert "verysecret" not in urls.shown(text)
    assert "verysecret" not in urls.origin(text)


@target(share=2.0)
def prompt_tags(draw):
    """A prompt's tags, comments and brackets."""
    text, words = draw.text(PROMPT), [draw.text(PROMPT) for _ in range(draw.randrange(3))]
    for read in (
        lambda: prompt_checks.check(text, "prompt"),
        lambda: prompt_checks.check_structure(text, "prompt"),
        lambda: prompt_checks.check_weights(text, "prompt"),
        lambda: prompt.lora_tags(text),
        lambda: prompt.hypernetworks(text),
        lambda: prompt.add_lora_tags(text, [prompt.LoraTag("x", 0.5)]),
    ):
        try:
            read()
        except InvalidInput as error:
            assert len(str(error)) < 1_000
    assert len(prompt_checks.warnings(text, "prompt")) < 20
    assert len(prompt_checks.negative_warnings(text, "prompt")) < 20
    prompt.add_words(text, words)
    prompt.rewritten(text)


LINES = {
    "c": "red\n2::blue\n# no\n__c__",
    "a/b": "{x|__c__} fox\n0::y\n",
    "deep": "{" * 39 + "x" + "}" * 39,
    "wide": "\n".join(f"w{n}" for n in range(300)),
}


@cache
def lines_of(name):
    """The lines of the wildcards that a name means."""
    found = [one for one in LINES if name.strip("*") in one]
    if not found:
        raise InvalidInput("there is no such wildcard.")
    return [line for one in found for line in wildcards.lines_of(LINES[one], one)]


@target(InvalidInput, seconds=3.0)
def wildcard(draw):
    """Wildcards and dynamic prompts: the same seed gives the same words."""
    texts = {"prompt": draw.text(PROMPT), "negative_prompt": draw.text(PROMPT)}
    seed = draw.randrange(1000)
    found = wildcards.resolve(texts, seed, lines_of)
    assert found == wildcards.resolve(texts, seed, lines_of)
    wildcards.lines_of(draw.text(PROMPT), "x")


@target()
def styles(draw):
    """Styles of any text around a prompt."""
    texts = [draw.text([*PROMPT, "{prompt}"]) for _ in range(draw.randrange(4))]
    # Styles are the operator's; each place for the prompt repeats it.
    if sum(text.count("{prompt}") for text in texts) < 4:
        styled(draw.text(PROMPT), texts)


@target()
def infotext(draw):
    """A1111's generation parameters, as they stand in any picture."""
    text = draw.text(INFO)
    parameters.parameters_of(text)
    parameters.entries(text)


@target()
def names(draw):
    """Names of files, samplers, scripts and fields, known and misspelt."""
    text = draw.text([*NAMES, "DPM++ 2M Karras", "k_euler_a", "SGM Uniform"])
    stem = clean_stem(text)
    assert clean_stem(stem) == stem == stem_of(f"{stem}.safetensors")
    assert len(marked_stem(text, "0123456789").encode()) <= 180
    near_matches(text, ["DPM++ 2M", *LINES])
    for read in (
        lambda: catalog().sampler(text, None),
        lambda: catalog().scheduler(text),
        lambda: catalog().check_script("txt2img", "script_name", text, []),
    ):
        try:
            read()
        except InvalidInput as error:
            str(error).encode()


@target()
def messages(draw):
    """What messages show of a caller's values: short, on one line."""
    text = draw.text(NAMES)
    for found in (shown(text), shown({text: [text]}), shown_name(text)):
        assert len(found) < 1_200
        assert "\n" not in found
    in_plain_words(text)
    without_secrets({"a": [text]})
    try:
        check_form(text)
    except ValueError as error:
        assert len(str(error)) < 500
