import pytest
import torch

from engine.errors import Refused, Unsupported
from engine.prompt import encoding, syntax, tokenizer
from engine.prompt.syntax import LoraTag

BREAK = ("BREAK", -1.0)
SPANS = [
    *(("", [("", 1.0)]), ("a cat", [("a cat", 1.0)]), ("BREAKFAST", [("BREAKFAST", 1.0)])),
    *(("((red))", [("red", 1.1 * 1.1)]), ("[red]", [("red", 1 / 1.1)]), (r"a\b", [("ab", 1.0)])),
    *((text, [("red", 1.5)]) for text in ("(red:1.5)", "(red: 1.5 )")),
    (r"\(red\)", [("(red)", 1.0)]),
    ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
    ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1.0)]),
    ("(red", [("red", 1.1)]),  # unclosed: up to the end
    *(("red)", [("red)", 1.0)]), ("red:1.5)", [("red:1.5)", 1.0)])),  # not opened: text
    ("(cat:1.) (dog:.5)", [("cat ", 1.0), ("dog", 0.5)]),
    *((text, [("a", 1.0), BREAK, ("b", 1.0)]) for text in ("a BREAK b", "a\nBREAK\nb")),
    ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.2), ("b", 1.2)]),  # A1111: now it is a word
    *((text, [("a", 1.0), BREAK, ("b", 1.0)]) for text in ("a  BREAK \n b", "a(BREAK:1)b")),
    # A1111's own examples
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            *(("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" a ", 1.1)),
            *(("hill", 0.5 * 1.1), (", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1)),
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), SPANS)
def test_parse(text, expected):
    spans = syntax.parse(text)
    assert [span.text for span in spans] == [text for text, _ in expected]
    for span, (_, weight) in zip(spans, expected, strict=True):
        assert span.weight == pytest.approx(weight)


TAGS = [
    *(("style", "style", 1, 1), ("style:0.8", "style", 0.8, 0.8), ("style:-1", "style", -1, -1)),
    *(("style:0.8:0.5", "style", 0.8, 0.5), ("style:unet=0.4", "style", 1, 0.4)),
    ("style:te=0.2:unet=0.4", "style", 0.2, 0.4),
    ("my style (v1.2):.5", "my style (v1.2)", 0.5, 0.5),
]


def test_lora_tags_are_read_and_other_ones_removed():
    for tag, *expected in TAGS:
        assert syntax.extract_loras(f"a <lora:{tag}> cat") == ("a  cat", [LoraTag(*expected)])
    for tag in ("<LORA:style:1>", "<hypernet:x:1>"):
        assert syntax.extract_loras(f"a {tag}cat") == ("a cat", [])
    for tag in ("<lora:a:abc>", "<lora:a:1:x>", "<lora:a:te=>", "<lora:a:1:1:4>"):
        with pytest.raises(Refused, match=tag):
            syntax.extract_loras(tag)


def test_only_and_is_refused():
    for text in ("[a:b:0.5]", "[cat|dog]", "SAND", "and"):
        syntax.refuse_unsupported(text)
    with pytest.raises(Unsupported, match="AND"):
        syntax.refuse_unsupported("a cat AND a dog")


def test_text_changes_one_call_later_than_written():
    """A1111 counts calls from 0, its schedule from 1."""
    first, second = {"prompt_embeds": torch.zeros(1)}, {"prompt_embeds": torch.ones(1)}
    conditioning = encoding.Conditioning([(2, first), (4, second)])
    assert [conditioning.at(call) is first for call in range(6)] == [True] * 3 + [False] * 3


@pytest.fixture(scope="module")
def clip():
    return tokenizer.build()


def test_tokens_are_those_of_clip(clip):
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_chunks_have_75_tokens_and_end_at_a_near_comma_and_at_break(clip):
    for words, chunks in {0: 1, 75: 1, 76: 2, 150: 2, 151: 3}.items():
        found = encoding.chunk(clip, "cat " * words)
        assert len(found) == chunks
        assert {len(c.ids) for c in found} == {len(c.weights) for c in found} == {75}
    first, second = encoding.chunk(clip, "cat " * 70 + ", " + "dog " * 10)
    assert (first.ids.count(2368), second.ids.count(1929)) == (70, 10)
    first, _ = encoding.chunk(clip, "cat " * 10 + ", " + "dog " * 80)
    assert first.ids.count(1929) == 64
    first, second = encoding.chunk(clip, "cat BREAK (dog:1.5)")
    assert (first.ids[:2], second.ids[:2]) == ([2368, 49407], [1929, 49407])
    assert second.weights == [1.5] + [1.0] * 74


def test_emphasis_keeps_the_mean():
    encoded = torch.rand(77, 8, generator=torch.Generator().manual_seed(0)) + 1
    weighted = encoding._emphasize(encoded, [2.0] + [1.0] * 74)
    assert torch.isclose(weighted.mean(), encoded.mean())
    ratio = weighted[1] / encoded[1] / (weighted[0] / encoded[0])
    assert torch.allclose(ratio, torch.full((8,), 2.0))
    weighted = encoding._emphasize(torch.zeros(77, 8), [2.0] + [1.0] * 74)  # the mean is 0
    assert torch.equal(weighted, torch.zeros(77, 8))
