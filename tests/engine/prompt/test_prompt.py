import pytest
import torch

from engine.errors import Refused, Unsupported
from engine.prompt import encoding, syntax, tokenizer
from engine.prompt.syntax import LoraTag

PLAIN = encoding.TextOptions()
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
    *(("a:1:0.5:4", "a", 1, 0.5, 4), ("a:1:0.5:4:dyn=8", "a", 1, 0.5, 8)),
]


def test_lora_tags_are_read_and_other_ones_removed():
    for tag, *expected in TAGS:
        assert syntax.extract_loras(f"a <lora:{tag}> cat") == ("a  cat", [LoraTag(*expected)])
    for tag in ("<LORA:style:1>", "<hypernet:x:1>"):
        assert syntax.extract_loras(f"a {tag}cat") == ("a cat", [])
    for text in ("<lora:", "<lora:a", "<lora:>", "< lora:a>"):
        assert syntax.extract_loras(text) == (text, [])
    for tag in ("a:abc", "a:1:x", "a:te=", "a:x:te=1", "a:1:1:4.5", "a:dyn=x", "a:lbw=x", "te=1"):
        with pytest.raises(Refused, match=tag):
            syntax.extract_loras(f"<lora:{tag}>")


def test_tags_are_in_a1111s_order_by_kind():
    _, tags = syntax.extract_loras("<lyco:a> <lora:b> <lyco:c>")
    assert [tag.name for tag in tags] == ["a", "c", "b"]


PARTS = [
    *(
        ("a cat", [("a cat", 1)]),
        ("SAND and AN", [("SAND and AN", 1)]),
        ("a cat:1.5 ", [("a cat", 1.5)]),
    ),
    ("a AND b :-.5 AND c: 2.", [("a", 1), (" b", -0.5), (" c", 2)]),
    *(("16:9", [("16", 9)]), ("[a:b:0.5]", [("[a:b:0.5]", 1)]), ("", [("", 1)])),
]


@pytest.mark.parametrize(("text", "parts"), PARTS)
def test_parts_joined_by_and_have_weights(text, parts):
    assert syntax.split_parts(text) == parts


@pytest.mark.parametrize("text", ["(a:1.2.3)", "(a:.)", "((a) b: -. )"])
def test_a_weight_that_is_not_a_number_is_an_error_as_in_a1111(text):
    with pytest.raises(ValueError, match="could not convert string to float"):
        syntax.parse(text)


def test_what_takes_too_long_is_refused_at_once(clip):
    with pytest.raises(Unsupported, match="100 open brackets"):
        syntax.parse("(a" * 5000)
    with pytest.raises(Unsupported, match="256 chunks"):
        encoding.chunk(clip, "BREAK " * 5000, PLAIN)
    with pytest.raises(Unsupported, match="101 parts joined by AND"):
        syntax.split_parts("AND " * 100)


# text and the ids of A1111's own tokenizer (transformers 4.30.2 with ftfy 6.3.1)
CLEANED = [
    ("\u201ca fox\u201d", [257, 320, 3240, 257]),
    ("it\u2019s", [585, 568]),
    ("fox\uff0c \uff26\uff4f\uff58", [3240, 267, 3240]),
    ("cats &amp; dogs", [3989, 261, 3255]),
    ("\ufb01ne", [3797]),
    ("\ufefffox\x07", [3240]),
    ("caf\xc3\xa9", [15304]),
]


@pytest.mark.parametrize(("text", "ids"), CLEANED)
def test_text_is_cleaned_as_a1111_cleans_it(clip, text, ids):
    assert [
        one for one in encoding.chunk(clip, text, PLAIN)[0].ids if one != clip.eos_token_id
    ] == ids


@pytest.fixture(scope="module")
def clip():
    return tokenizer.build()


def test_tokens_are_those_of_clip(clip):
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_chunks_have_75_tokens_and_end_at_a_near_comma_and_at_break(clip):
    for words, chunks in {0: 1, 75: 1, 76: 2, 150: 2, 151: 3}.items():
        found = encoding.chunk(clip, "cat " * words, PLAIN)
        assert len(found) == chunks
        assert {len(c.ids) for c in found} == {len(c.weights) for c in found} == {75}
    first, second = encoding.chunk(clip, "cat " * 70 + ", " + "dog " * 10, PLAIN)
    assert (first.ids.count(2368), second.ids.count(1929)) == (70, 10)
    first, _ = encoding.chunk(clip, "cat " * 10 + ", " + "dog " * 80, PLAIN)
    assert first.ids.count(1929) == 64
    first, second = encoding.chunk(clip, "cat BREAK (dog:1.5)", PLAIN)
    assert (first.ids[:2], second.ids[:2]) == ([2368, 49407], [1929, 49407])
    assert second.weights == [1.5] + [1.0] * 74


def test_brackets_are_words_without_emphasis_and_commas_are_ignored_without_backtracking(clip):
    none = encoding.TextOptions(emphasis="None")
    (plain,) = encoding.chunk(clip, "(cat:1.5) BREAK dog", none)
    assert set(plain.weights) == {1.0}
    assert clip.decode(plain.ids[:8]) == "( cat : 1 . 5 ) break"
    text = "cat " * 70 + ", " + "dog " * 10
    first, _ = encoding.chunk(clip, text, encoding.TextOptions(comma_padding_backtrack=0))
    assert first.ids.count(1929) == 4


def emphasized(encoded, weights, emphasis="Original", counts=(1.0,)):
    return encoding._emphasize(encoded, weights, torch.tensor(counts), emphasis)


def test_emphasis_keeps_the_mean_of_all_texts_of_a_schedule():
    encoded = torch.rand(2, 77, 8, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.ones(2, 77)
    weights[0, 1] = 2
    counts = (3.0, 1.0)
    weighted = emphasized(encoded, weights, counts=counts)

    def mean(z):
        return (z.mean((1, 2)) * torch.tensor(counts) / 4).sum()

    assert torch.isclose(mean(weighted), mean(encoded))
    ratio = weighted[0, 1] / encoded[0, 1] / (weighted[1, 0] / encoded[1, 0])
    assert torch.allclose(ratio, torch.full((8,), 2.0))
    assert torch.equal(emphasized(encoded, weights, "Ignore", counts), encoded)
    assert torch.equal(
        emphasized(encoded, weights, "No norm", counts), encoded * weights[..., None]
    )
    zero = emphasized(torch.zeros(1, 77, 8), weights[:1])  # the mean is 0
    assert torch.equal(zero, torch.zeros(1, 77, 8))
