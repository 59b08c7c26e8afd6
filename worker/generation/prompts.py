"""The prompts of a job: what is sent, which LoRAs the answer must prove, and what is warned of.

A1111 adds the texts of styles to the prompts, then removes comments, then takes out the tags. It
does so for the second pass as well, whose prompt is `hr_prompt`, or `prompt` if that is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.generation.catalog import Style, styled
from worker.job import prompt_checks
from worker.job.model_fields import LoraReference
from worker.job.models import Models, lora_tag
from worker.job.prompt import (
    add_lora_tags,
    add_words,
    applied_loras,
    hypernetworks,
    lora_tags,
    rewritten,
    tags_in,
    without_comments,
    without_tags,
)
from worker.job.request import PictureRequest

Styles = Mapping[str, Style]
NO_STYLES: Styles = {}

POSITIVE = ("prompt", "hr_prompt")
NEGATIVE = ("negative_prompt", "hr_negative_prompt")


def check(request: PictureRequest, styles: Styles) -> None:
    """Refuse prompts that A1111 would read otherwise than they are meant; needs no files.

    Raises:
        InvalidInput: names the field and what stands there.
    """
    _check_references(request)
    if request.disable_extra_networks:
        _check_styles_without_tags(request, styles)
    else:
        for name, text in _positive(request).items():
            prompt_checks.check(text, name)
    settings = request.override_settings
    reads_weights = not (settings and settings.emphasis == "None")
    for name, text in encoded_texts(request, styles).items():
        prompt_checks.check_structure(text, name)
        if reads_weights:
            prompt_checks.check_weights(text, name)


def _check_styles_without_tags(request: PictureRequest, styles: Styles) -> None:
    for name in request.styles or []:
        if name in styles and tags_in(without_comments(styles[name].prompt)):
            raise InvalidInput(
                f"the style {name!r} has a tag, which disable_extra_networks cannot switch off.",
                hint="Leave out the style or disable_extra_networks.",
                field="styles",
            )


def _check_references(request: PictureRequest) -> None:
    references = [one.wanted("lora").ref for one in request.loras]
    for (first, one), (second, other) in combinations(enumerate(references), 2):
        if one == other:
            raise InvalidInput(
                f"loras.{second} is the same LoRA as loras.{first}: {other.shown}.",
                hint="Name each LoRA once, with the weight that you want.",
                field="loras",
            )


def check_files(models: Models) -> None:
    """Refuse one LoRA file that the job names in two ways, apart from a tag for one in `loras`.

    Raises:
        InvalidInput: names both.
    """
    listed = [(f"loras.{n}", file) for n, (file, _) in enumerate(models.loras)]
    written = [(f"the tag of {name!r}", file) for name, file in models.written_loras.items()]
    for group in (listed, written):
        for (one, file), (other, same) in combinations(group, 2):
            if _identity(file) == _identity(same):
                raise _named_twice(one, other, file)
    for (one, file), (other, same) in ((a, b) for a in listed for b in written):
        if file.stem != same.stem and _identity(file) == _identity(same):
            raise _named_twice(one, other, file)


def _identity(file: ModelFile) -> str:
    return file.verified_sha256 or file.stem


def _named_twice(one: str, other: str, file: ModelFile) -> InvalidInput:
    return InvalidInput(
        f"{one} and {other} are the same LoRA, {file.stem!r}.",
        hint="Name each LoRA once, with the weight that you want.",
        field="loras",
    )


def compose(request: PictureRequest, models: Models) -> dict[str, str]:
    """The body's prompts: without comments, with trained words and a tag for each LoRA."""
    # If hr_prompt is empty, A1111 uses `prompt` with its tags.
    written = _positive(request).items()
    body = {name: text for name, text in written if text or name == "prompt"}
    negative = {name: text for name, text in request.prompts.items() if name in NEGATIVE}
    # A style is appended, so it would become a part of a comment in the last line.
    comments = {name: without_comments(text) for name, text in negative.items() if "#" in text}
    if request.disable_extra_networks:
        # A1111's own field would leave the LoRAs of the last job applied.
        plain = {name: without_tags(without_comments(text)) for name, text in body.items()}
        return comments | plain
    stems = {written: file.stem for written, file in models.written_loras.items()}
    tags = [lora_tag(file, reference) for file, reference in models.tagged]
    trained = _trained_words(request, models)
    return comments | {
        name: add_lora_tags(rewritten(add_words(text, trained), stems), tags)
        for name, text in body.items()
    }


def _positive(request: PictureRequest) -> dict[str, str]:
    return {name: text for name, text in request.prompts.items() if name in POSITIVE}


def _trained_words(request: PictureRequest, models: Models) -> list[str]:
    """The trained words of the LoRAs for which the job asks for them."""
    wanting = (file for file, ref in models.loras if wants_words(request, ref))
    return [word for file in wanting for word in file.trained_words]


def wants_words(request: PictureRequest, reference: LoraReference) -> bool:
    """Whether the job wants the trained words of this LoRA in the prompt."""
    own = reference.trigger_words
    return request.trigger_words if own is None else own


def reported_loras(
    request: PictureRequest, body: Mapping[str, str], styles: Styles
) -> frozenset[str]:
    """The LoRAs that A1111 reports: those of the second pass, if its prompt has tags of its own.

    Raises:
        InvalidInput: a style adds a LoRA a second time, or a tag with a wrong weight.
    """
    if request.disable_extra_networks:
        return frozenset()
    first, second = _applied(request, body, styles)
    return second or first


def _applied(
    request: PictureRequest, body: Mapping[str, str], styles: Styles
) -> tuple[frozenset[str], frozenset[str]]:
    """The LoRAs of the first and of the second pass by the names in their tags."""
    names = []
    for field in POSITIVE:
        is_read = field == "prompt" or request.second_pass
        sent = body.get(field, "") if is_read else ""
        text = _with_styles(sent, request, styles, "prompt") if sent or field == "prompt" else ""
        prompt_checks.check_once(text, field)
        # Tags that a style's `#` would hide must be proven, too.
        tags = applied_loras(text) + applied_loras(sent)
        names.append(frozenset(_reported(tag.name) for tag in tags))
    return names[0], names[1]


def _reported(name: str) -> str:
    """The name as it stands in `Lora hashes`."""
    return name.replace(":", "").replace(",", "")


def _with_styles(text: str, request: PictureRequest, styles: Styles, part: str) -> str:
    """The text that A1111 makes of it with the job's styles, without comments."""
    chosen = (styles[name] for name in request.styles or [] if name in styles)
    return without_comments(styled(text, (getattr(style, part) for style in chosen)))


def has_styles_loras(request: PictureRequest, styles: Styles) -> bool:
    """Whether the job's styles name LoRAs."""
    texts = (styles[name].prompt for name in request.styles or [] if name in styles)
    return any(applied_loras(without_comments(text)) for text in texts)


def encoded_texts(
    request: PictureRequest, styles: Styles, body: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The texts that A1111 encodes, by field: with styles, without comments and tags.

    `body` has the prompts as they are sent, if they are composed already.
    """
    texts = {}
    first_pass = (POSITIVE[0], NEGATIVE[0])
    for name in (*POSITIVE, *NEGATIVE) if request.second_pass else first_pass:
        own = (body or {}).get(name) or request.prompts[name]
        if name in POSITIVE:
            text = _with_styles(rewritten(own), request, styles, "prompt")
            texts[name] = without_tags(text)
        else:
            texts[name] = _with_styles(own, request, styles, "negative_prompt")
    return texts


def warnings(request: PictureRequest, body: Mapping[str, str], styles: Styles) -> Iterator[str]:
    """What A1111 leaves out of the prompts, reads as plain text, or does not report."""
    if request.disable_extra_networks:
        for name, text in _positive(request).items():
            if tags_in(without_comments(text)):
                yield f"{name}: its tags have no effect, because of disable_extra_networks."
    else:
        for name, text in _positive(request).items():
            yield from prompt_checks.warnings(text, name)
        yield from _unproven(request, body, styles)
    for name in NEGATIVE:
        yield from prompt_checks.negative_warnings(request.prompts.get(name, ""), name)
    for name in request.styles or []:
        text = without_comments(styles[name].prompt if name in styles else "")
        for tag in (tag for tag in tags_in(text) if tag.kind is None):
            yield f"style {name!r}: {tag.shown} is no tag that A1111 knows, so it is left out."


def _unproven(request: PictureRequest, body: Mapping[str, str], styles: Styles) -> Iterator[str]:
    first, second = _applied(request, body, styles)
    if second and (unreported := first - second):
        yield f"LoRA {listed(unreported)}: not proven, A1111 reports only the second pass."
    texts = _positive(request).values()
    if unproven := {name for text in texts for name in hypernetworks(text)}:
        yield f"hypernetwork {listed(unproven)}: not proven, A1111 ignores an unknown one."


def written_loras(request: PictureRequest) -> frozenset[str]:
    """The names in the LoRA tags of the job's own prompt."""
    return frozenset(tag.name for tag in lora_tags(request.prompt))


def listed(names: Iterable[str]) -> str:
    """The names in quotes, sorted: `'a', 'b'`."""
    return ", ".join(map(repr, sorted(names)))
