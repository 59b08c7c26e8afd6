"""Prompts that A1111 v1.9.3 would read otherwise than they are meant."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.job.prompt import lora_tags, rewritten
from worker.job.prompt_checks import check, check_weights, negative_warnings, warnings

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
    "a &lt; b",
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
    ("a cat", []),
    ("(a:1.2) [b:c:5] <lora:x:1> <lyco:y:te=1>", ["'<lyco:y:te=1>' is read as"][:0]),
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


# An independent, tiny reading of A1111's rules: one line, one character at a time.
PIECES = ["<", ">", ":", "lora", "LoRA", "lyco", "hypernet", "x", "y", "te=", "0.5", "1", " ", "\n"]
PIECES += ["(", ")", "[", "]", "\\", ":1.2)", ":5]", "BREAK", "<lora:x:1>", "<lyco:y:0.5>", "<a:b>"]
PIECES += ["#", "<LORA:y:1>", "# <lora:x:1>", "é", "\uff1c", "&lt;", "{a|b}", "__a__"]
prompts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def tags_that_a1111_sees(text):
    """Word and arguments of each `<word:arguments>`, without a regular expression."""
    found, at = [], 0
    while (start := text.find("<", at)) >= 0:
        end = start + 1
        while end < len(text) and (text[end].isalnum() or text[end] == "_"):
            end += 1
        close = text.find(">", end)
        if end > start + 1 and text[end : end + 1] == ":" and close > end + 1:
            found.append((text[start + 1 : end], text[end + 1 : close].split(":")))
            at = close + 1
        else:
            at = start + 1
    return found


def visible(prompt):
    """The prompt without comments."""
    return "\n".join(line.partition("#")[0] for line in prompt.split("\n"))


@given(prompts)
def test_what_the_worker_says_is_what_a1111_applies(prompt):
    """Each tag is applied by A1111 as the worker reads it, named in a warning, or refused."""
    with suppress(InvalidInput):
        check(prompt, "prompt")
        said = lora_tags(prompt)
        seen = tags_that_a1111_sees(rewritten(prompt))
        applied = [arguments for word, arguments in seen if word in {"lora", "lyco"}]
        assert [tag.name for tag in said] == [
            next(item for item in arguments if item.count("=") != 1) for arguments in applied
        ]
        found = warnings(prompt, "prompt")
        dropped = [word for word, _ in seen if word not in {"lora", "lyco", "hypernet"}]
        assert sum(LEFT_OUT in text for text in found) == len(dropped)
        meant = tags_that_a1111_sees(visible(prompt))
        respelt = [word for word, _ in meant if word in {"LoRA", "LORA"}]
        assert sum("is read as" in text for text in found) >= len(respelt)
        assert len(meant) == len(seen)
