"""Writes the files of openai/clip-vit-large-patch14 that A1111 would download from Hugging Face.

When A1111 loads its first checkpoint, it builds SD1's and SDXL's text encoder from that
repository's configuration and tokenizer; the weights come from the checkpoint. Both files can be
made from what OpenAI published, so the build does not need Hugging Face and the engine can run
offline.

usage: clip_tokenizer.py HF_HOME
"""

import json
import sys
from pathlib import Path

from engine.prompt.tokenizer import END, START, read_vocabulary

REPOSITORY = "models--openai--clip-vit-large-patch14"
REVISION = "main"  # instead of a commit's id: without a network it is only a folder's name

CONFIG = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {  # the text half of ViT-L/14
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
}
TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "do_lower_case": True,
    "model_max_length": 77,
    "errors": "replace",
    "bos_token": START,
    "eos_token": END,
    "pad_token": END,
    "unk_token": END,
}


def write(hf_home: Path) -> None:
    """Write the files as Hugging Face's cache has them."""
    tokens, merges = read_vocabulary()
    root = hf_home / "hub" / REPOSITORY
    snapshot = root / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (hf_home / "hub/version.txt").write_text("1")  # otherwise transformers would migrate the cache
    (root / "refs").mkdir()
    (root / "refs/main").write_text(REVISION)
    files = {"config": CONFIG, "tokenizer_config": TOKENIZER, "vocab": tokens}
    for name, content in files.items():
        (snapshot / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False))
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (snapshot / "merges.txt").write_text("\n".join(lines))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
