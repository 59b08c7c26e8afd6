from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.formats.model_file import ModelFile
from worker.job.models import Models, name_embeddings, words
from worker.job.txt2img import parse


def test_models_get_the_names_that_the_engine_sees():
    base, fox = (ModelFile("lora", Path(name), name, 1) for name in ("base", "fox"))
    seen = replace(fox, stem="fox-0123456789")
    models = Models(checkpoint=base, loras=((fox, None),), written_loras={"Fox": fox})
    renamed = models.renamed({base: base, fox: seen})
    assert renamed == Models(checkpoint=base, loras=((seen, None),), written_loras={"Fox": seen})


SAME_WORDS = ["EasyNeg_v2", "easyneg_v2", "EASYNEG _ V2", "easyneg_ v 2"]


@pytest.mark.parametrize("text", SAME_WORDS)
def test_an_embedding_is_found_by_words_in_any_case(text):
    assert words(text) == ("easyneg", "_", "v", "2")


@pytest.mark.parametrize("text", ["easyneg v2", "easynegv2", "easyneg-v2", "easyneg_v3"])
def test_other_words_are_another_embedding(text):
    assert words(text) != words(SAME_WORDS[0])


@given(st.text(max_size=60), st.text(max_size=20).filter(words), st.text(max_size=60))
def test_the_name_in_the_prompt_is_the_one_that_acts(before, name, after):
    """Of a given name and the file's own, the first that the prompt has; else the given one."""
    file = ModelFile("embedding", Path("x"), "stored", 1, "0" * 64, "host", host_name="own")
    ref = {"sha256": "0" * 64, "name": "given"}
    prompt = f"{before} {name} {after}".replace("\0", "")
    (named,) = name_embeddings(parse({"prompt": prompt, "embeddings": [ref]}), [file])
    present = [one for one in ("given", "own") if f" {one} " in f" {' '.join(words(prompt))} "]
    assert named.stem == (present or ["given"])[0]
