"""Headers of safetensors files, starts of pickles, and what lies on a volume beside the models."""

import json
import os
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

import safetensors
from fakes import model_files as fakes
from fakes.hub_cache import COMMIT, add_cached

from tests.fuzz.target import target
from worker.errors import JobError, ModelUnsafe, WorkerError
from worker.files import note_file
from worker.formats import (
    architecture,
    json_metadata,
    lora_names,
    lora_use,
    requirements,
    safetensors_header,
)
from worker.formats.names import SAFETENSORS
from worker.hosts.civitai_api import CivitAIModel, CivitAIVersion
from worker.images.signatures import what_it_is
from worker.job.reference import parse_reference
from worker.models.download.partial_file import PartialFile
from worker.models.store import references
from worker.models.store.blobs import Blobs
from worker.models.store.hub_cache import HubCache
from worker.models.store.references import References

KINDS = ("checkpoint", "lora", "vae", "embedding", "controlnet")
SHAPES = [fakes.SD1, fakes.SDXL, fakes.LORA, fakes.EMBEDDING, fakes.FLUX, fakes.UNKNOWN]
METADATA = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "x/lora"}
METADATA |= {"ss_tag_frequency": '{"a": {"b": 1}}', "lora_adapter_metadata": '{"x": [1]}'}
HEADERS = [fakes.entries(shapes) | {"__metadata__": METADATA} for shapes in SHAPES]
TENSORS = [
    *(name for shapes in SHAPES for name in shapes),
    *("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "alpha", ".dora_scale"),
    *("lora_unet_x.hada_w1_a", "lokr_w1", "oft_diag", "unet.down_blocks.0.to_k.lora.up.weight"),
    *("bundle_emb.x.string_to_param.*", "__metadata__", "dtype", "shape", "data_offsets"),
    "F8_E5M2",
    *("first_stage_model.", "control_model.", "diffusion_model.", "transformer."),
    "base_model.model.",
]
STARTS = [
    *(fakes.PICKLE, fakes.GGUF, fakes.HTML, b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl"),
    b"\x80\x04",
    *(b'{"error":"Unauthorized"}', b"version https://git-lfs.github.com/spec/v1\n", b""),
    b"\x89PNG",
    *(fakes.safetensors(), fakes.framed(b"[" * 2_000), "<html><title>ä&amp;</title>".encode()),
    *(b"<title" * 300, b"\0\0\0\x20ftypavif", b"RIFF0000WEBP", b" \n<!DOCTYPE html><title>x"),
]


def header_of(draw):
    """The first bytes of a safetensors file, most with a right length."""
    text = _many_names(draw) if not draw.randrange(12) else draw.json(HEADERS, TENSORS)
    if not draw.randrange(6):
        return struct.pack("<Q", draw.choice((0, 1, len(text) + 1, 2**24, 2**63))) + text
    return fakes.framed(text + b" " * draw.randrange(9))


def _many_names(draw):
    """A header of many tensors whose long names repeat a few pieces of real ones."""
    pieces = [draw.choice(TENSORS) for _ in range(1 + draw.randrange(3))]
    length, count = draw.choice((100, 300, 990)), draw.choice((3, 60, 300))
    start = ("".join(pieces) * length)[:length]
    end = draw.choice((".weight", ".alpha", "_", ""))
    return draw.counted(
        json.dumps(fakes.entries({f"{start}{n}{end}": (1, 768) for n in range(count)})).encode()
    )


@target(JobError, seconds=1.0, per_mb=3.0, share=1.5)
def safetensors_header_of_a_file(draw):
    """A header, and what the worker concludes from it; the library must accept what we accept."""
    start = header_of(draw)
    header = safetensors_header.parse_header(start)
    if header.size - header.data_start < 100_000:
        try:
            safetensors.deserialize(start[: header.data_start].ljust(header.size, b"\0"))
        except safetensors.SafetensorError as error:
            raise AssertionError("the safetensors library rejects it") from error
    found = architecture.detect(header)
    shapes = lora_use.shapes_of(header)
    fits = lora_use.family_fits(shapes)
    lora_use.families_of(fits)
    lora_use.is_read(shapes, fits)
    lora_use.fault(header)
    lora_use.family_when_renamed(header)
    lora_names.find_renaming("x", header, found.family)
    for kind in KINDS:
        try:
            requirements.check("x", kind, requirements.File(header, found))
        except JobError as error:
            assert len(str(error)) < 3_000


@target(JobError)
def start_of_a_file(draw):
    """The first bytes of anything: formats that must not be loaded are told apart."""
    start = draw.blob(STARTS)
    what_it_is(start)
    is_pickle = start[:4] == b"PK\x03\x04"
    try:
        safetensors_header.header_length(start)
    except ModelUnsafe:
        is_pickle = False
    assert not is_pickle
    safetensors_header.check_pickle(start)


@target()
def metadata_of_a_header(draw):
    """The free texts in a header that are JSON themselves."""
    text = draw.json([{"a": {"b": 1}}, ["x"], "x"]).decode("utf-8", "replace")
    json_metadata.metadata_fault({draw.choice(("ss_output_name", "x")): text})


# What lies on a volume ------------------------------------------------------------

SHA256 = fakes.sha256(fakes.safetensors())
ABOUT = {
    "kind": "lora",
    "stem": "x",
    "suffix": SAFETENSORS,
    "size": len(fakes.safetensors()),
    "mtime": -1,
    "source": "civitai:1@2+3",
    "ref": "https://civitai.com/api/download/models/2",
    "title": "Foxes",
    "family": "SD 1.5",
    "trained_words": ["fox"],
    "name": "x",
}
REMOTE = {"url": "https://x.y/z", "filename": "z", "source": "s", "size": 5, "sha256": "ab" * 32}
ENTRY = {
    "shown": "x",
    "at": 1e9,
    "sha256": "ab" * 32,
    "fetched_at": 1e9,
    "remote": REMOTE | {"trained_words": ["a"], "role": "lora"},
    "error": ["MODEL_NOT_FOUND", "gone", "hint"],
    "etag": '"x"',
}
NOTE = {"size": 10, "etag": "x", "modified": None, "done": [[0, 5]]}
REFS = (CivitAIVersion(2), CivitAIModel(1), parse_reference("https://x.y/z"))


@cache
def volume():
    """A folder as a volume."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@target(WorkerError, seconds=2.0)
def metadata_on_the_volume(draw):
    """The JSON files beside fetched models, which other workers have written."""
    root = volume() / "store"
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"{SHA256}{SAFETENSORS}").write_bytes(fakes.safetensors())
    (root / "blobs" / f"{SHA256}.json").write_bytes(draw.json([ABOUT], ("../x", ".ckpt", "lora")))
    blobs = Blobs(root)
    for blob in [*blobs.all(), *filter(None, [blobs.find(SHA256)]), *blobs.starting("ab")]:
        file = blob.as_file()
        json.dumps([file.stem, file.source, file.trained_words])
        assert "/" not in file.stem
        file.check()
    blobs.leftovers()
    blobs.add_links(lambda *_: False)


@target(WorkerError, seconds=2.0)
def references_on_the_volume(draw):
    """What each reference meant, as another worker has written it."""
    root, ref = volume() / "references", draw.choice(REFS)
    root.mkdir(exist_ok=True)
    document = draw.json([ENTRY])
    (root / references.file_name(ref)).write_bytes(document)
    known = References(root, clock=lambda: 1e9 + 1)
    known.sha256(ref, stale=True)
    known.sha256(ref)
    known.etag(ref)
    known.exported(ref)
    references.is_news(ref, document, draw.json([ENTRY]))
    known.remote(ref)


@target(WorkerError, seconds=2.0)
def partial_download(draw):
    """The note beside a download that another run has left."""
    path = volume() / "x.part"
    path.write_bytes(bytes(draw.choice((0, 5, 10))))
    note_file(path).write_bytes(draw.json([NOTE]))
    partial = PartialFile(path)
    assert partial.resumed >= 0
    assert partial.resumed <= (partial.parts.size or 0)


NAMES = ("models--a--b", "snapshots", "refs", "blobs", COMMIT, "main", "x.safetensors", "..", "é")


@target(WorkerError, seconds=3.0, per_mb=60.0)
def hub_cache(draw):
    """A Hugging Face cache of any layout."""
    root = volume() / "hub"
    shutil.rmtree(root, ignore_errors=True)
    add_cached(root, "a/b", {"x.safetensors": fakes.safetensors(), "y.ckpt": fakes.PICKLE})
    for _ in range(draw.randrange(5)):
        _disturb(draw, root)
    cached = HubCache(root, volume() / "notes", pickles=bool(draw.randrange(2)))
    json.dumps(cached.health())
    for kind in KINDS:
        list(cached.index(kind).files)
    list(cached.starting("ab"))
    for revision in ("main", COMMIT, draw.choice(NAMES)):
        text = f"hf://a/b@{revision}/x.safetensors"
        file = cached.find(parse_reference(text))
        assert file is None or cached.has(file)


def _disturb(draw, root):
    """Write a file, a link or a folder somewhere in the cache."""
    parts = [draw.choice(NAMES[:-2]) for _ in range(1 + draw.randrange(4))]
    place = root.joinpath("models--a--b", *parts) if draw.randrange(2) else root.joinpath(*parts)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        kind = draw.randrange(4)
        if kind == 0:
            place.unlink(missing_ok=True)
            targets = ("..", ".", "x", "/etc/passwd", "../../blobs/x", str(root))
            place.symlink_to(draw.choice(targets))
        elif kind == 1:
            place.write_bytes(draw.blob([COMMIT.encode(), fakes.safetensors(), b""]))
        elif kind == 2:
            place.unlink(missing_ok=True)
            os.mkfifo(place)
        else:
            place.mkdir(exist_ok=True)
    except OSError:  # it is a file, or a folder that is not empty
        return
