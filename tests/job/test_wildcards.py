"""`{red|blue}` and `__colors__`: the syntax of dynamic prompts, chosen by the seed."""

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.job import wildcards
from worker.job.wildcards import LONGEST, MOST_CHOICES, MOST_READ, lines_of, resolve

FILES = {
    "colors": "# warm\nred\n\nblue # nice\n2::green\nred\n",
    "mixed": "{dark|light} __colors__",
    "loras": "my__lora__v2",
    "circle": "a __circle/b__",
    "circle/b": "b __circle__",
    "zero": "0::a",
    "variable": "a ${x}",
    "long": "a" * 30_000,
    **{f"deep{n}": f"__deep{n + 1}__" for n in range(60)},
    **{f"twice{n}": f"__twice{n + 1}____twice{n + 1}__" for n in range(30)},
    "twice30": "{0::x|}",
    "many": "\n".join(map(str, range(200_000))),
}


def lines(name):
    if name in FILES:
        return lines_of(FILES[name], name)
    raise InvalidInput(f"{name} is not known.")


def chosen(text, seed=0):
    return resolve({"prompt": text}, seed, lines)["prompt"]


def outcomes(text, seeds=80):
    return {chosen(text, seed) for seed in range(seeds)}


def orders(words, *counts, separator=", "):
    return {separator.join(some) for count in counts for some in permutations(words, count)}


COLORS = {"red", "blue", "green"}
RESOLVED = {
    # One option
    "a {red|blue} fox": {"a red fox", "a blue fox"},
    "{ a | b }c": {" a c", " b c"},
    "fox{| in snow}": {"fox", "fox in snow"},
    "{a}{}": {"a"},
    "{{a|b} c|d}": {"a c", "b c", "d"},
    "{~a|b}": {"a", "b"},
    "a # {b|c\n{d|e}": {"a # {b|c\nd", "a # {b|c\ne"},
    "{a # or\n|b}": {"a \n", "b"},
    # Weights
    "{0::a|b}": {"b"},
    "{1.5::a|.5 :: b}": {"a", " b"},
    "{a [b::5]|c}": {"a [b::5]", "c"},
    # Several options
    "{2$$a|b|c}": orders("abc", 2),
    "{2$$ and $$ a | b|c}": orders("abc", 2, separator=" and "),
    "{1-2$$a|b|c}": orders("abc", 1, 2),
    "{2-1$$a|b|c}": orders("abc", 1, 2),
    "{-2$$a|b|c}": orders("abc", 1, 2),
    "{ 2 - $$a|b|c}": orders("abc", 2, 3),
    "{0-1$$a|b}": {"", "a", "b"},
    "{9$$a|b}": orders("ab", 2),
    "{2$$a||0::b}": {"a"},
    "[{2$$|$$a|b}]": {"[a|b]", "[b|a]"},
    # Wildcards
    "a __colors__ fox": {f"a {color} fox" for color in COLORS},
    "__~colors__s": {f"{color}s" for color in COLORS},
    "{2$$__colors__}": orders(sorted(COLORS), 2),
    "{2$$ __colors__ |x}": orders(["red", "x"], 2)
    | orders(["blue", "x"], 2)
    | orders(["green", "x"], 2),
    "__mixed__": {f"{shade} {color}" for shade in ("dark", "light") for color in COLORS},
    # Tags
    "<lora:{a|b}:{0.5|1}>": {f"<lora:{name}:{weight}>" for name in "ab" for weight in ("0.5", "1")},
    "<lora:__loras__:1>": {"<lora:my__lora__v2:1>"},
    "<lora:my__colors__v2:1>, __colors__": {f"<lora:my__colors__v2:1>, {one}" for one in COLORS},
    # What A1111 reads itself
    "({red|blue}:1.2)": {"(red:1.2)", "(blue:1.2)"},
    "{[a|b]|c}": {"[a|b]", "c"},
    "{[a|b}": {"[a", "b"},
}
UNCHANGED = [
    *("[a|b]", "[a:b:0.5]", "(x:1.2)", r"a \(b\) \[c\]", "a AND b:1.1", "a, BREAK b", "x|y"),
    *("<lora:detail:0.8>", "<lora:a__b__c:1>", r"\{a|b\}", r"\__colors__", "a::b"),
    *("# {a|b}\nfox", "^__^ smile ^__^", "$5, ca$$h", "a__ b", "1::a", "", "\ud83d", "a\\"),
]
RECORDED = ["red, blue fox light red", "green, red fox light red", "green, blue fox dark blue"]
NOT_SUPPORTED = "which this worker does not support"
REFUSED = {
    "${x=!{a|b}}": f"a variable, {NOT_SUPPORTED}",
    "__variable__": f"wildcard 'variable' has a variable, {NOT_SUPPORTED}",
    "%{a $$ b}": f"a wrapper, {NOT_SUPPORTED}",
    "{% for x in y %}": f"Jinja, {NOT_SUPPORTED}",
    "{{ choice('a') }}": f"Jinja or NovelAI, {NOT_SUPPORTED}",
    "{{masterpiece}}": f"Jinja or NovelAI, {NOT_SUPPORTED}",
    "{@a|b}": f"the cyclical sampler, {NOT_SUPPORTED}",
    "__!colors__": f"the combinatorial sampler, {NOT_SUPPORTED}",
    "__colors(x=1)__": f"values for a wildcard, {NOT_SUPPORTED}",
    "{a|b": "a { without }: '{a|b'",
    "{a # |b}": "a { without }",
    "a|b}": "a } without {: '}'",
    "{a$$b|c}": "$$ without a number before it",
    "{2$$__colors__$$a|b}": "a wildcard as the separator",
    "{-1::a|b}": "a weight that is no number: '-1::a|b}'",
    "{1234567::a|b}": "a weight that is no number",
    "{0::a|0::b}": "options all have the weight 0",
    "__zero__": "options all have the weight 0",
    "__colrs__": "colrs is not known",
    "__../secret__": "../secret is not known",
    "__col{ors|x}__": "the chosen words form",
    "__circle__": "form a circle: circle -> circle/b -> circle",
    "{a|" * 41 + "}" * 41: "more than 40 groups inside one another",
    "__deep0__": "nested more than 40 levels deep",
    "__long__ __long__": f"becomes longer than {LONGEST:,} characters",
    "{101$$__many__}": "has a group with 101 options to choose, above 100",
    "{1-$$__many__}": "has a group with 200000 options to choose, above 100",
    "__twice0__": f"need more than {MOST_CHOICES:,} choices",
    "{20$$__many__}": f"more than {MOST_READ:,} characters and lines",
}


@pytest.mark.parametrize("text", RESOLVED)
def test_over_many_seeds_a_text_becomes_exactly_these(text):
    assert outcomes(text) == RESOLVED[text]


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_is_no_syntax_of_ours_passes_unchanged(text):
    assert outcomes(text, 3) == {text}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_resolved_is_refused_and_named(text):
    with pytest.raises(InvalidInput) as raised:
        chosen(text)
    assert REFUSED[text] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_same_seed_and_text_give_the_same_words_on_each_machine_and_python():
    """These were recorded once: another result would change every caller's pictures."""
    text = "{2$$red|blue|green} {3::fox|owl} __mixed__"
    assert [chosen(text, seed) for seed in (0, 1, 2**32 - 3)] == RECORDED
    texts = {"prompt": text, "hr_prompt": text, "negative_prompt": f"{text}!"}
    resolved = resolve(texts, 7, lines)
    assert resolved["prompt"] == resolved["hr_prompt"]


SHARES = {
    "{3::a|b}": {"a": 0.75, "b": 0.25},
    "{0.2::a|0.3::b|0.5::c}": {"a": 0.2, "b": 0.3, "c": 0.5},
    "{1-2$$a|b}": {"a": 0.25, "b": 0.25, "a, b": 0.25, "b, a": 0.25},
    "__colors__": {"red": 0.4, "blue": 0.2, "green": 0.4},  # `red` is written twice
}


@pytest.mark.parametrize("text", SHARES)
def test_choices_are_as_frequent_as_their_weights(text):
    counted = Counter(chosen(text, seed) for seed in range(2000))
    found = {words: count / 2000 for words, count in counted.items()}
    assert found == pytest.approx(SHARES[text], abs=0.03)


PIECES = [*"{}|[]<>:#\\_$%@!~- \n", "$$", "::", "__", "__colors__", "{a|b}", "2$$", "${", "<lora:"]
PIECES += ["a", "9", "__twice29__", "__circle__", "\ud83d", "é", "\x00"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60))
def test_any_text_is_refused_or_becomes_one_in_which_nothing_is_left_to_choose(text):
    try:
        result = chosen(text)
    except InvalidInput:
        return
    assert chosen(result, seed=1) == result
    if not any(sign in text for sign in ("{", "}", "__")):
        assert result == text


def test_what_one_job_reads_and_chooses_is_counted_over_all_of_its_prompts():
    texts = {"prompt": "{a|b}" * 3000, "negative_prompt": "{a|b}" * 1999}
    resolve(texts, 0, lines)
    with pytest.raises(InvalidInput, match="choices"):
        resolve(texts | {"hr_prompt": "{a|b}{a|b}"}, 0, lines)


def test_the_lines_of_a_file_are_its_options():
    read = lines_of("# a\r\n red \r\n2.5:: blue\r\n\r\n#c\rgreen # d\n3::\n", "f")
    assert [(line.text, line.weight / wildcards._UNIT) for line in read] == [
        ("red", 1),
        ("blue", 2.5),
        ("green", 1),
        ("", 3),
    ]
