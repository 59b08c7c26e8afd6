"""Prompts that A1111 v1.9.3 would read otherwise than they are meant."""

import pytest

from worker.errors import InvalidInput
from worker.job.prompt_checks import (
    check,
    check_structure,
    check_weights,
    negative_warnings,
    warnings,
)

NOT_READ = "does not read as a LoRA's tag"
REFUSED = [
    *((f"a <{inside}>", NOT_READ) for inside in ("lora :x:1", " lora:x:1", "lora:", "lycoris:x:1")),
    *((f"a <{inside}>", NOT_READ) for inside in ("LoRAs:x:1", "locon:x", "hypernetwork:x:1")),
    *((f"a {tag}", NOT_READ) for tag in ("<lora:x:1", "&lt;lora:x:1&gt;", "&amp;lt;LoRA:x:1>")),
    *((f"a {tag}", NOT_READ) for tag in ("\uff1clora\uff1ax\uff1a1\uff1e", "\u2039lora:x:1\u203a")),
    *(
        (f"a {tag}", NOT_READ)
        for tag in ("\u300alora:x:1\u300b", "<\u200blora:x:1>", "<lora\xa0:x>")
    ),
    ("a <lo<other:b>ra:x:1>", NOT_READ),
    ("a <lora:C#minor:1>", NOT_READ),
    ("a fox with #ff0000 fur, <lora:x:0.5>", "behind `#`"),
    ("a, red # <LoRA:x:1>\nb", "behind `#`"),
    ("a <lora:x:0.3> <lora:x:0.9>", "LoRA 'x' twice"),
    ("a <lora:x:1> <LyCO: x :1>", "LoRA 'x' twice"),
    ("a <hypernet:x:1> <hypernet:x:1>", "hypernetwork 'x' twice"),
]


@pytest.mark.parametrize(("prompt", "message"), REFUSED)
def test_a_prompt_that_a1111_would_misread_is_refused(prompt, message):
    with pytest.raises(InvalidInput, match=message) as raised:
        check(prompt, "prompt")
    assert raised.value.details == {"field": "prompt"}
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("weight", ["1.2.3", " 1..2 ", ".", "-.", "9" * 400])
def test_a_weight_for_which_a1111_answers_500_is_refused(weight):
    for text in (f"(a:{weight})", f"((a) [b:{weight})"):
        with pytest.raises(InvalidInput, match="which is not a number"):
            check_weights(text, "negative_prompt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((part * 401, "has 401 of the characters") for part in "()[]:|"),
        ("(a:1.2), " * 134, "has 402 of the characters"),
        *((f"[a:b: {step} ]", "is too large") for step in ("1e999", "-1.5E+400", "9" * 400)),
    ],
)
def test_brackets_that_keep_a1111_for_minutes_or_make_it_fail_are_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        check_structure(text, "hr_prompt")


@pytest.mark.parametrize("text", ["(a:1.2), " * 133, r"\(a\), " * 4000, "[a:b:1..2]", "[a:b:1e9]"])
def test_brackets_that_a1111_reads_in_time_pass(text):
    check_structure(text, "prompt")


GOOD = [
    *(
        "a cat",
        "<lora:x:1>",
        "<LoRA:x:1> <lora:y:1>",
        "# <lora:x:1>\na",
        "a <3 b",
        ">_<",
        "a < b: c",
    ),
    *("(a:1.2)", "a:1.2.3)", "(a:1.2.3", r"\(a:1.2.3)", "[a:1.2.3]", "(a:1.)", "(lora:1.2)"),
    *("a &lt; b", "a < b: c"),
]


@pytest.mark.parametrize("prompt", GOOD)
def test_what_a1111_reads_as_it_is_meant_passes(prompt):
    check(prompt, "prompt")
    check_weights(prompt, "prompt")


LEFT_OUT, COMMENT = "is no tag that A1111 knows, so it is left out", "in a comment"
WARNED = [
    ("<LoRA:x:1>", ["'<LoRA:x:1>' is read as '<lora:x:1>'"]),
    ("<lora: x :1>", ["is read as '<lora:x:1>'"]),
    ("<wildcard:animal> <a:b>", [LEFT_OUT, LEFT_OUT]),
    ("# <lora:x:1>\n #  <a:b>", [COMMENT, COMMENT]),
    ("fur #ff0000, tail", ["'#ff0000, tail' is left out"]),
    ("#1girl", ["'#1girl' is left out"]),
    ("a # note", []),
    ("[<lora:x:1>:10]", ["'<lora:x:1>' is applied in every step"]),
    (r"\[<lora:x:1>:10] [ <lora:y:1>", []),
    ("lora:x:0.8, a", ["'lora:x:0.8' is plain text"]),
    ("a __animals/red__ fox", ["'__animals/red__' is plain text"]),
    ("a {red|2$$blue} fox", ["'{red|2$$blue}' is plain text"]),
    ("a {red} __ fox __", []),
    ("a (embedding:easy:1.2)", ["'embedding:easy' is ComfyUI's form"]),
    *((text, ["BREAK inside brackets"]) for text in ("(a BREAK b)", "(a BREAK b:1.2)", "[BREAK]")),
    *((text, ["BREAK inside brackets"]) for text in ("(a BREAK", "([a|b] BREAK)")),
    *((text, []) for text in ("a BREAK b", "(a) BREAK (b)", "[a BREAK b:c:5]", "[a|b BREAK]")),
    *((f"a cat{end}", ["the whole prompt's weight"]) for end in (":9", " 16:9 ", ": -.5")),
    *((f"a cat{end}", []) for end in (":1", " 16:9, red", ":0.5 AND a dog:2", " <lora:x:2>")),
    ("a cat", []),
    ("(a:1.2) [b:c:5] <lora:x:1> <lyco:y:te=1>", []),
]


@pytest.mark.parametrize(("prompt", "expected"), WARNED)
def test_what_has_no_effect_or_is_plain_text_gets_a_warning(prompt, expected):
    found = warnings(prompt, "prompt")
    assert len(found) == len(expected), found
    assert all(part in text for part, text in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<LoRA:x:1> <a:b>", ["negative_prompt has a LoRA tag"]),
        ("<a:b>", ["has a 'a' tag, which A1111 reads as plain text"]),
        ("a # <lora:x:1>", [COMMENT]),
        ("{a|b}", ["plain text"]),
        ("bad, (ugly:1.2)", []),
    ],
)
def test_tags_in_a_negative_prompt_are_plain_text(prompt, expected):
    found = negative_warnings(prompt, "negative_prompt")
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


def test_many_problems_give_a_short_list():
    found = warnings("<a:b>" * 1000, "prompt")
    assert (len(found), found[-1]) == (13, "prompt: 988 more warnings.")
