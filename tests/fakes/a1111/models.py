"""The model files the fake A1111 knows: checkpoints, LoRAs, embeddings and their hashes."""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from safetensors import SafetensorError, safe_open

TAG = re.compile(r"<(\w+):([^>]+)>")
CHUNK = 75  # tokens; here, characters
# Possible exceptions of the Lora extension; A1111 catches them all and drops the LoRAs.
LORA_FAILURES = (OSError, ValueError, IndexError, SafetensorError, sqlite3.Error)


def model_files(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Model files below a folder; links to nowhere are skipped."""
    for root, _, names in sorted(os.walk(folder, followlinks=True)):
        for path in (Path(root) / name for name in sorted(names)):
            if path.suffix.lower() in {".safetensors", ".ckpt", *suffixes} and path.exists():
                yield path


def check_readable(path: Path) -> None:
    """Raise the exception that loading the weights raises for an incomplete file."""
    if path.suffix.lower() == ".safetensors":
        with safe_open(path, framework="np"):
            pass


def _read_metadata(path: Path) -> dict[str, Any]:
    """The `__metadata__` of a safetensors file; empty for a file that has none or is damaged."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return dict(header.get("__metadata__", {}))
    except (OSError, ValueError, AttributeError, OverflowError, MemoryError):
        return {}


class HashCache:
    """One of A1111's caches, by its own library; opened for each use, so damage is found."""

    def __init__(self, path: Path, *, skip_header: bool = False) -> None:
        """Make the file; sqlite3.DatabaseError if an existing file is not a database."""
        self.path = path
        self.skip_header = skip_header  # kohya's hash covers the tensors only
        self.known("", path)

    def _open(self) -> diskcache.Cache:
        return diskcache.Cache(str(self.path.parent), size_limit=2**32, disk_min_file_size=2**18)

    def known(self, title: str, path: Path) -> str | None:
        """The hash from before, unless the file is newer."""
        return self.all_known([(title, path)])[0]

    def all_known(self, files: Sequence[tuple[str, Path]]) -> list[str | None]:
        """The same for many titles and files: A1111 does not open its cache for each one."""
        with self._open() as cache:
            entries = [cache.get(title) for title, _ in files]
        return [
            entry["sha256"] if entry and path.stat().st_mtime <= entry["mtime"] else None
            for entry, (_, path) in zip(entries, files, strict=True)
        ]

    def sha256(self, title: str, path: Path) -> str:
        """The file's hash, computed once."""
        if found := self.known(title, path):
            return found
        with path.open("rb") as file:
            if self.skip_header:
                file.seek(int.from_bytes(file.read(8), "little") + 8)
            computed = hashlib.sha256(file.read()).hexdigest()
        with self._open() as cache:
            cache[title] = {"mtime": path.stat().st_mtime, "sha256": computed}
        return computed


@dataclass(eq=False)
class Checkpoint:
    """One listed checkpoint. It has no sha256 until it was loaded once."""

    path: Path
    name: str
    sha256: str | None = None

    @property
    def model_name(self) -> str:
        return str(Path(self.name.replace("/", "_")).with_suffix(""))

    @property
    def shorthash(self) -> str | None:
        return self.sha256[:10] if self.sha256 else None

    @property
    def title(self) -> str:
        return f"{self.name} [{self.shorthash}]" if self.shorthash else self.name

    def aliases(self) -> set[str | None]:
        """The exact texts that select it: names always, hash forms once it is hashed."""
        names = {self.model_name, self.title, self.name, self.path.stem}
        return names | {self.shorthash, self.sha256, f"{self.path.stem} [{self.shorthash}]"}

    def item(self) -> dict[str, Any]:
        """Its row in /sd-models."""
        return {
            "title": self.title,
            "model_name": self.model_name,
            "hash": self.shorthash,
            "sha256": self.sha256,
            "filename": str(self.path),
            "config": None,
        }


class Checkpoints:
    """The checkpoints that the last refresh found."""

    def __init__(self, folders: list[Path], hashes: HashCache) -> None:
        self.folders = folders
        self.hashes = hashes
        self.refresh()

    def refresh(self) -> None:
        """List again; with a damaged hash cache this fails and leaves an empty list."""
        self.listed: list[Checkpoint] = []
        found = [
            (path.relative_to(folder).as_posix(), path)
            for folder in self.folders
            for path in model_files(folder)
        ]
        hashes = self.hashes.all_known([(f"checkpoint/{name}", path) for name, path in found])
        self.listed = [
            Checkpoint(path, name, known) for (name, path), known in zip(found, hashes, strict=True)
        ]

    def find(self, alias: Any) -> Checkpoint | None:
        """The checkpoint with exactly this alias."""
        found = [one for one in self.listed if alias and alias in one.aliases()]
        return found[-1] if found else None

    def read(self, checkpoint: Checkpoint) -> None:
        """Hash and read a checkpoint's file; raises A1111's exceptions for a bad one."""
        checkpoint.sha256 = self.hashes.sha256(f"checkpoint/{checkpoint.name}", checkpoint.path)
        check_readable(checkpoint.path)


@dataclass
class Lora:
    """One listed LoRA file."""

    path: Path
    metadata: dict[str, Any]
    hash: str

    @property
    def bundle(self) -> dict[str, "Embedding"]:
        """The embeddings in its file, by their names."""
        with safe_open(self.path, framework="np") as file:
            found = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        parts = {name.split(".")[1]: it for name, it in found.items() if name[:11] == "bundle_emb."}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
        return {name: Embedding(digest[:12], digest) for name, digest in digests.items()}

    @property
    def alias(self) -> str:
        return str(self.metadata.get("ss_output_name", self.path.stem))

    def item(self) -> dict[str, Any]:
        """Its row in /loras."""
        row = {"name": self.path.stem, "alias": self.alias}
        return row | {"path": str(self.path), "metadata": self.metadata}


class AppliedLora(NamedTuple):
    """A LoRA that takes part in a picture, with its name in the prompt."""

    mention: str
    te: float
    unet: float
    lora: Lora


def read_tag(text: str) -> tuple[str, float, float]:
    """Name and weights of a tag, positional or `te=…`; ValueError for what is not a number."""
    items = [item.split("=") for item in text.split(":")]
    positional = [":".join(item) for item in items if len(item) != 2]
    named = dict(item for item in items if len(item) == 2)
    name, te, unet = (positional + [None] * 2)[:3]
    te_weight = float(named.get("te", 1.0 if te is None else te))
    return name, te_weight, float(named.get("unet", te_weight if unet is None else unet))


def lora_tags(prompt: str) -> list[str]:
    """The arguments of the tags that the Lora extension gets, by their kind."""
    found = TAG.findall(prompt)
    kinds = dict.fromkeys(kind for kind, _ in found if kind in {"lora", "lyco"})
    return [arguments for one in kinds for kind, arguments in found if kind == one]


class Loras:
    """The listed LoRAs."""

    def __init__(self, folder: Path, hashes: HashCache) -> None:
        self.folder = folder
        self.hashes = hashes
        self.refresh()

    def refresh(self) -> None:
        """List the folder again."""
        paths = list(model_files(self.folder, ".pt"))
        hashes = self.hashes.all_known([(f"lora/{path.stem}", path) for path in paths])
        self.listed: list[Lora] = []
        for path, known in zip(paths, hashes, strict=True):
            metadata = _read_metadata(path)
            sha256 = metadata.get("sshs_model_hash") or known
            self.listed.append(Lora(path, metadata, sha256 or ""))

    def _find(self, name: str) -> Lora | None:
        """The last one of that stem; an alias means a LoRA only if nothing else has that name."""
        stems = [it for it in self.listed if it.path.stem == name]
        aliases = [it for it in self.listed if it.alias == name]
        return (stems or (aliases if len(aliases) == 1 else []) or [None])[-1]

    def apply(self, tags: list[str]) -> list[AppliedLora]:
        """The LoRAs that take part; none after one bad weight."""
        try:
            wanted = [read_tag(tag) for tag in tags]
            if any(self._find(name) is None for name, _, _ in wanted):
                self.refresh()
            weights = {name: (te, unet) for name, te, unet in wanted}  # the last ones count
            found = [
                AppliedLora(name, *weights[name], lora)
                for name, _, _ in wanted
                if (lora := self._find(name))
            ]
            return [item for item in found if self._load(item.lora)]
        except LORA_FAILURES:
            return []

    def _load(self, lora: Lora) -> bool:
        try:
            check_readable(lora.path)
        except (OSError, SafetensorError):
            return False
        lora.hash = lora.hash or self.hashes.sha256(f"lora/{lora.path.stem}", lora.path)
        return True


class Embedding(NamedTuple):
    """A readable embedding: the hash that is reported, and what it really contains."""

    short: str
    content: str


def read_embeddings(folder: Path, hashes: HashCache) -> dict[str, Embedding]:
    """Name to embedding of the readable files in a folder."""
    found = {}
    for path in model_files(folder, ".pt"):
        try:
            check_readable(path)
        except (OSError, SafetensorError):
            continue
        short = hashes.sha256(f"textual_inversion/{path.stem}", path)[:12]
        found[path.stem] = Embedding(short, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


class Conditioning:
    """What the last prompt was turned into: the same prompt again is not read again."""

    def __init__(self) -> None:
        self.key: Any = None
        self.padding: Any = None
        self.embeddings: dict[str, Embedding] = {}

    def read(
        self, text: str, key: Any, known: dict[str, Embedding], padding: Any
    ) -> tuple[dict[str, str], list[str]]:
        """Hashes of the embeddings in the text, and what they and the padding of commas contain.

        No hashes if it is reused; the padding does not prevent that.
        """
        if self.key == (text, key):
            return {}, self._contents()
        self.key = (text, key)
        self.padding = padding if len(text) > CHUNK else None
        self.embeddings = {
            name: one
            for name, one in known.items()
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
        }
        hashes = {name: one.short for name, one in self.embeddings.items()}
        return hashes, self._contents()

    def _contents(self) -> list[str]:
        return [*sorted(one.content for one in self.embeddings.values()), str(self.padding)]
