"""Every regular expression that meets a prompt takes steps in proportion to the text's length.

The argument, checked for each unbounded repetition of a set of characters in a pattern:

- Nothing in the set can follow it, so giving characters back fails at once; and
- a match cannot begin inside it, so no character is read from two beginnings; or it cannot fail,
  because any character outside the set, and the end of the text, can follow.
"""

import re
from contextlib import suppress

import pytest

from engine.prompt import schedule, syntax
from worker.errors import InvalidInput
from worker.job import prompt, prompt_checks, wildcards

try:
    from re import _compiler, _constants, _parser
except ImportError:  # Python 3.10
    import sre_compile as _compiler
    import sre_constants as _constants
    import sre_parse as _parser

LONGEST = 32_768  # characters of a prompt, see `worker.job.request.Text`
FEW = 100  # so many repetitions count as a constant
EVERY = frozenset(map(chr, range(256)))  # sample of all characters
END, EMPTY = "end", ""
REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT}
PATTERNS = {
    f"{module.__name__}.{name}": value
    for module in (prompt, prompt_checks, wildcards, syntax, schedule)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}


def characters(node, state):
    """The sample characters that one node for a single character matches; None for others."""
    if node[0] not in {_constants.LITERAL, _constants.NOT_LITERAL, _constants.IN, _constants.ANY}:
        return None
    one = _compiler.compile(_parser.SubPattern(state, [node]), state.flags)
    return {character for character in EVERY if one.fullmatch(character)}


def beginnings(nodes, state, rest):
    """What a sequence can begin with: characters, END, or `rest` if it can be empty."""
    found = set()
    for node in nodes:
        own = beginnings_of(node, state)
        found |= own - {EMPTY}
        if EMPTY not in own:
            return found
    return found | rest


def beginnings_of(node, state):
    """What one node can begin with; EMPTY among it if it can be left out."""
    kind, value = node
    if (own := characters(node, state)) is not None:
        return own
    if kind in REPEATS:
        return beginnings(value[2], state, {EMPTY}) | (set() if value[0] else {EMPTY})
    if kind is _constants.SUBPATTERN:
        return beginnings(value[-1], state, {EMPTY})
    if kind is _constants.BRANCH:
        return set().union(*(beginnings(one, state, {EMPTY}) for one in value[1]))
    return {END} if value is _constants.AT_END_STRING else {EMPTY}


def repetitions(nodes, state, rest):
    """Each unbounded repetition: its characters, None for a longer part, and what can follow it."""
    for number, (kind, value) in enumerate(nodes):
        follows = beginnings(nodes[number + 1 :], state, rest)
        if kind in REPEATS and value[1] > FEW:
            repeated = value[2]
            yield characters(repeated[0], state) if len(repeated) == 1 else None, follows
        elif kind in REPEATS:
            yield from repetitions(value[2], state, follows)
        elif kind is _constants.SUBPATTERN:
            yield from repetitions(value[-1], state, follows)
        elif kind is _constants.BRANCH:
            for one in value[1]:
                yield from repetitions(one, state, follows)
        elif kind in {_constants.ASSERT, _constants.ASSERT_NOT}:
            yield from repetitions(value[1], state, set(EVERY))


def is_linear(pattern):
    """Whether the argument above holds."""
    tree = _parser.parse(pattern.pattern, pattern.flags)
    state = tree.state
    is_anchored = tree[0] == (_constants.AT, _constants.AT_BEGINNING_STRING)
    first = set() if is_anchored else beginnings(tree, state, set())
    for inside, follows in repetitions(tree, state, {*EVERY, END}):
        if inside is None or (follows & inside and not {*EVERY, END} <= follows):
            return False
        cannot_fail = {*EVERY, END} - inside <= follows
        if first & inside and not cannot_fail:
            return False
    return True


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear(name):
    assert is_linear(PATTERNS[name])


@pytest.mark.parametrize(
    "pattern",
    [r"<(\w+):([^>]+)>", r"<[^>]*>", r"\s*\bBREAK\b", r"\{[^{}]*\|[^{}]*\}", r"a[^b]*c", r"(a+)+b"],
)
def test_a_quadratic_pattern_is_found(pattern):
    assert not is_linear(re.compile(pattern))


WORST = ["<", "<a:", "<lora:", "<lora:x:1>", "#", "# <lora:x:1>\n", "(", "[", "(a:1.", "[a:", "{|"]
WORST += [*["__a", "embedding:", "\\", "&lt;", "&amp;", "ﷺ", "lora:", ":", "<<a:b>"], "BREAK ", " "]


@pytest.mark.parametrize("part", WORST)
def test_the_longest_prompt_of_any_part_is_read_or_refused(part):
    text = (part * LONGEST)[:LONGEST]
    with suppress(InvalidInput):
        prompt_checks.check(text, "prompt")
    with suppress(InvalidInput):
        prompt.lora_tags(text)
    assert len(prompt_checks.warnings(text, "prompt")) <= 13 + 4
    assert prompt.add_words(text, [text, "fox"])
