"""Prompts with embeddings, as A1111 puts them into chunks, and what is written about them."""

from types import SimpleNamespace

import pytest
import torch
from fakes import tiny_models

from engine.errors import Refused
from engine.prompt import encoding, tokenizer
from engine.prompt.encoding import TextEncoder, TextOptions
from engine.prompt.vectors import Words


def embedding(name, count, digits="0" * 64):
    rows = {part: torch.full((count, 64), 0.1) for part in "lg"}
    return SimpleNamespace(name=name, count=count, hash=digits, vectors=rows)


EMBEDDINGS = [embedding("cat", 3, "a" * 64), embedding("dog", 70, "b" * 64), embedding("x:y", 1)]
EMBEDDINGS.append(embedding("fish", 1, ""))  # bundled in a LoRA, without a hash
# {prompt: [(offset, name) in each chunk]}
CHUNKS = {
    "": [[]],
    "a cat": [[(1, "cat")]],
    "cat cat dog cat": [[(0, "cat"), (3, "cat")], [(0, "dog"), (70, "cat")]],
    "cat cat dog cat dog": [[(0, "cat"), (3, "cat")], [(0, "dog"), (70, "cat")], [(0, "dog")]],
    "word " * 72 + "cat": [[(72, "cat")]],
    "word " * 73 + "cat": [[], [(0, "cat")]],
    # the text after a comma moves on, as its embeddings do not
    "word " * 70 + ", cat two three": [[(71, "cat")], []],
    "word " * 70 + ", cat cat dog": [[(71, "cat")], [(0, "cat"), (3, "dog")]],
    # the comma is not in the chunk that the embedding does not fit into
    "word " * 74 + ", cat": [[], [(0, "cat")]],
    "word BREAK cat": [[], [(0, "cat")]],
}


@pytest.fixture(scope="module")
def clip():
    return tokenizer.build()


@pytest.mark.parametrize("text", CHUNKS, ids=lambda text: text[-30:])
def test_an_embedding_is_in_one_chunk(clip, text):
    chunks = encoding.chunk(clip, text, TextOptions(), Words(clip, EMBEDDINGS))
    assert [[(at, one.name) for at, one in own.fixes] for own in chunks] == CHUNKS[text]
    assert all(len(own.ids) == len(own.weights) == 75 for own in chunks)


@pytest.fixture(scope="module")
def pipes(clip):
    torch.manual_seed(0)
    second = {"tokenizer_2": clip, "text_encoder_2": tiny_models.second_text_encoder().eval()}
    sd1 = {"tokenizer": clip, "text_encoder": tiny_models.text_encoder().eval()}
    openclip = {"tokenizer": clip, "text_encoder": tiny_models.second_text_encoder().eval()}
    pipes = {"SD1": sd1, "SD2": openclip, "SDXL": sd1 | second}
    return {name: SimpleNamespace(**pipe) for name, pipe in pipes.items()}


A, B = "a" * 12, "b" * 12
NOTES = [
    ("SD1", "a cat", "", "Original", {"TI hashes": f"cat: {A}"}),
    ("SD1", "a cat", "dog cat", "Original", {"TI hashes": f"cat: {A}, dog: {B}, cat: {A}"}),
    ("SD1", "cat AND dog", "", "Original", {"TI hashes": f"dog: {B}, cat: {A}"}),
    ("SD1", "x:y, fish", "", "Original", {"TI hashes": f"xy: {'0' * 12}"}),
    ("SD1", "fish", "", "Original", {}),
    ("SDXL", "a cat", "", "Original", {"TI hashes": f"cat: {A}, cat: {A}"}),
    ("SD1", "cat", "(x:1.2)", "No norm", {"Emphasis": "No norm", "TI hashes": f"cat: {A}"}),
    ("SD1", "[cat:cat:0.5]", "", "No norm", {"TI hashes": f"cat: {A}"}),
]


@pytest.mark.parametrize(("kind", "prompt", "negative", "emphasis", "notes"), NOTES)
def test_what_a1111_writes_about_the_texts(pipes, kind, prompt, negative, emphasis, notes):
    encoder = TextEncoder(pipes[kind], TextOptions(emphasis=emphasis), EMBEDDINGS)
    encoder.conditioning(prompt, negative, 8)
    assert list(encoder.notes.items()) == list(notes.items())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["SD1", "SD2", "SDXL"])
def test_an_embedding_changes_the_encoding_of_all_networks(pipes, kind):
    plain, other = (
        TextEncoder(pipes[kind], TextOptions(), own).schedule("a cat", 1).at(0)
        for own in ((), EMBEDDINGS)
    )
    widths = [64] if kind != "SDXL" else [64, 64]
    for one, two in zip(plain.text.split(widths, -1), other.text.split(widths, -1), strict=True):
        assert torch.equal(one[:, :2], two[:, :2])  # before the embedding
        assert not torch.allclose(one[:, 2:], two[:, 2:])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "has_effect"), [("SD1", True), ("SD2", False), ("SDXL", False)])
def test_clip_skip_has_an_effect_only_on_sd1(pipes, kind, has_effect):
    one, two = (
        TextEncoder(pipes[kind], TextOptions(clip_skip=skip)).schedule("a cat", 1).at(0).text
        for skip in (1, 2)
    )
    assert torch.equal(one, two) is not has_effect


def test_a_clip_skip_without_a_layer_is_refused_with_the_largest_one(pipes):
    layers = pipes["SD1"].text_encoder.config.num_hidden_layers
    TextEncoder(pipes["SD1"], TextOptions(clip_skip=layers + 1)).conditioning("a cat", "", 1)
    too_many = TextEncoder(pipes["SD1"], TextOptions(clip_skip=layers + 2))
    with pytest.raises(Refused, match=f"at most {layers + 1} for this .*, not {layers + 2}"):
        too_many.conditioning("a cat", "", 1)
