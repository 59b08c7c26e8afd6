"""Embeddings in prompts: found as A1111 finds them, and drawn as the words that they replace."""

from dataclasses import dataclass, field

import pytest
import torch
from fakes import tiny_models

from engine.errors import Unsupported
from engine.prompt import tokenizer, vectors
from engine.prompt.vectors import Words


@dataclass(frozen=True)
class Named:
    name: str
    count: int = 1
    vectors: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def clip():
    return tokenizer.build()


def ids(clip, text):
    return clip(text, add_special_tokens=False).input_ids


NAMES = ("cat", "cat dog", "bad-hands-5", "Schöne", "“quoted”", "easynegative", " ")
FOUND = {
    "a cat": ["a", "<cat>"],
    "a cat dog cat": ["a", "<cat dog>", "<cat>"],
    "cat dogs": ["<cat>", "dogs"],
    "cats, CAT": ["cats", ",", "<cat>"],
    "(bad-hands-5:1.2)": ["(", "<bad-hands-5>", ":", "1", ".", "2", ")"],
    "bad-hands-55": ["<bad-hands-5>", "5"],  # each digit is a token
    "bad-hands": ["bad", "-", "hands"],
    "schöne Frau": ["<Schöne>", "fra", "u"],
    'a "quoted" word': ["a", "<“quoted”>", "word"],
    "easynegative,easynegative": ["<easynegative>", ",", "<easynegative>"],
    "": [],
}


@pytest.mark.parametrize("text", FOUND)
def test_the_longest_name_at_each_token_counts(clip, text):
    words = Words(clip, map(Named, NAMES))
    shown = [
        f"<{one.name}>" if isinstance(one, Named) else clip.decode([one]).strip()
        for one in words.split(ids(clip, tokenizer.clean(text)))
    ]
    assert shown == FOUND[text]


def test_an_embedding_that_no_chunk_can_hold_is_refused_by_name(clip):
    words = Words(clip, [Named("long", count=76)])
    assert [*words.split(ids(clip, "a cat"))] == ids(clip, "a cat")
    with pytest.raises(Unsupported, match="embedding 'long' with 76 vectors"):
        [*words.split(ids(clip, "a long cat"))]


@pytest.mark.parametrize(("part", "network"), [("l", "text_encoder"), ("g", "second_text_encoder")])
def test_vectors_of_words_give_the_encoding_of_the_words(clip, part, network):
    torch.manual_seed(0)
    encoder = getattr(tiny_models, network)().eval()
    table = encoder.get_input_embeddings().weight
    spelled = torch.tensor([clip("a red dog runs", padding="max_length").input_ids] * 2)
    known = Named("red dog", 2, {part: table[spelled[0, 2:4]], "l" if part == "g" else "g": None})
    placeholders = spelled.clone()
    placeholders[0, 2:4] = 0
    plain = encoder(placeholders).last_hidden_state
    with vectors.in_place(encoder, [[(1, known)], []], part):
        found = encoder(placeholders).last_hidden_state
    assert torch.equal(found, encoder(spelled).last_hidden_state)
    assert not torch.equal(found[0], plain[0])
    assert torch.equal(encoder(placeholders).last_hidden_state, plain)


def test_vectors_beyond_the_end_of_a_chunk_are_cut_off():
    embedded, own = torch.zeros(77, 4), torch.ones(5, 4)
    for offset, rows in ((0, slice(1, 6)), (70, slice(71, 76)), (74, slice(75, 77))):
        found = vectors.insert(embedded, [(offset, Named("x", 5, {"l": own}))], "l")
        assert found.shape == (77, 4)
        assert found[rows].eq(1).all()
        assert found.sum() == 4 * len(found[rows])
