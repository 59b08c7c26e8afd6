"""The model files the fake A1111 knows: checkpoints, LoRAs, VAEs, embeddings and their hashes."""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diskcache
from safetensors import SafetensorError, safe_open

EXTENSIONS = {".safetensors", ".ckpt", ".pt"}
LORA_TAG = re.compile(r"<(\w+):([^>]+)>")
# Possible exceptions of the Lora extension; A1111 catches them all and drops the LoRAs.
LORA_FAILURES = (OSError, ValueError, IndexError, SafetensorError, sqlite3.Error)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]


def model_files(folder: Path) -> Iterator[Path]:
    """Model files below a folder in A1111's natural order; links to nowhere are skipped."""
    for root, _, names in sorted(
        os.walk(folder, followlinks=True), key=lambda row: _natural(row[0])
    ):
        for name in sorted(names, key=_natural):
            path = Path(root) / name
            if path.suffix.lower() in EXTENSIONS and path.exists():
                yield path


def check_readable(path: Path) -> None:
    """Raise the exception that loading the weights raises for an incomplete file."""
    if path.suffix.lower() == ".safetensors":
        with safe_open(path, framework="np"):
            pass


def read_metadata(path: Path) -> dict[str, Any]:
    """The `__metadata__` of a safetensors file; empty for a file that has none or is damaged."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return dict(header.get("__metadata__", {}))
    except (OSError, ValueError, AttributeError, OverflowError, MemoryError):
        return {}


def _sha256(path: Path, *, skip_header: bool) -> str:
    with path.open("rb") as file:
        if skip_header:  # kohya's hash covers the tensors only
            file.seek(int.from_bytes(file.read(8), "little") + 8)
        return hashlib.sha256(file.read()).hexdigest()


class HashCache:
    """One of A1111's caches, by its own library; opened for each use, so damage is found."""

    def __init__(self, path: Path, *, enabled: bool, skip_header: bool = False) -> None:
        self.path = path
        self.enabled = enabled
        self.skip_header = skip_header

    def create(self) -> None:
        """Make the file at start; sqlite3.DatabaseError if an existing file is not a database."""
        self.known("", self.path)

    def _open(self) -> diskcache.Cache:
        return diskcache.Cache(str(self.path.parent), size_limit=2**32, disk_min_file_size=2**18)

    def known(self, title: str, path: Path) -> str | None:
        """The hash from before, unless the file is newer."""
        with self._open() as cache:
            entry = cache.get(title)
        return entry["sha256"] if entry and path.stat().st_mtime <= entry["mtime"] else None

    def sha256(self, title: str, path: Path) -> str | None:
        """The file's hash, computed once; None with --no-hashing."""
        found = self.known(title, path)
        if found or not self.enabled:
            return found
        computed = _sha256(path, skip_header=self.skip_header)
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
    def stem(self) -> str:
        return self.path.stem

    @property
    def model_name(self) -> str:
        return str(Path(self.name.replace("/", "_")).with_suffix(""))

    @property
    def shorthash(self) -> str | None:
        return self.sha256[:10] if self.sha256 else None

    @property
    def title(self) -> str:
        return f"{self.name} [{self.shorthash}]" if self.shorthash else self.name

    def aliases(self) -> set[str]:
        """The exact texts that select it: names always, hash forms once it is hashed."""
        old = self._old_hash()
        names = {old, self.model_name, self.title, self.name, self.stem, f"{self.name} [{old}]"}
        if self.sha256:
            short = self.sha256[:10]
            names |= {short, self.sha256, f"{self.name} [{short}]", f"{self.stem} [{short}]"}
        return names

    def _old_hash(self) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(0x100000)
                return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
        except FileNotFoundError:
            return "NOFILE"

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
        self.listed: list[Checkpoint] = []
        self.aliases: dict[str, Checkpoint] = {}

    def refresh(self) -> None:
        """List again; with a damaged hash cache this fails and leaves an empty list."""
        self.listed, self.aliases = [], {}
        for folder in self.folders:
            for path in model_files(folder):
                if path.suffix.lower() != ".pt" and ".vae." not in path.name:
                    name = path.relative_to(folder).as_posix()
                    known = self.hashes.known(f"checkpoint/{name}", path)
                    self._register(Checkpoint(path, name, known))

    def _register(self, checkpoint: Checkpoint) -> None:
        if checkpoint not in self.listed:
            self.listed.append(checkpoint)
        self.aliases.update(dict.fromkeys(checkpoint.aliases(), checkpoint))

    def find(self, alias: Any) -> Checkpoint | None:
        """The checkpoint with exactly this alias."""
        return self.aliases.get(alias) if isinstance(alias, str) else None

    def read(self, checkpoint: Checkpoint) -> None:
        """Hash and read a checkpoint's file; raises A1111's exceptions for a bad one."""
        checkpoint.sha256 = self.hashes.sha256(f"checkpoint/{checkpoint.name}", checkpoint.path)
        self._register(checkpoint)
        check_readable(checkpoint.path)


@dataclass
class Lora:
    """One listed LoRA file."""

    path: Path
    metadata: dict[str, Any]
    hash: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def alias(self) -> str:
        return str(self.metadata.get("ss_output_name", self.name))

    def item(self) -> dict[str, Any]:
        """Its row in /loras."""
        return {
            "name": self.name,
            "alias": self.alias,
            "path": str(self.path),
            "metadata": self.metadata,
        }


@dataclass
class AppliedLora:
    """A LoRA that takes part in a picture, with its name in the prompt."""

    mention: str
    te: float
    unet: float
    lora: Lora


@dataclass
class LoraTag:
    """The arguments of one `<lora:…>` tag; `name=value` items are named, all others positional."""

    positional: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "LoraTag":
        tag = cls()
        for item in text.split(":"):
            parts = item.split("=")
            if len(parts) == 2:
                tag.named[parts[0]] = parts[1]
            else:
                tag.positional.append(item)
        return tag

    def weights(self) -> tuple[float, float]:
        """Text encoder and UNet weight; ValueError for a value that is not a number."""
        te, unet, dyn = (self.positional + [None] * 4)[1:4] if self.positional else [None] * 3
        te_weight = float(self.named.get("te", 1.0 if te is None else te))
        unet_weight = float(self.named.get("unet", te_weight if unet is None else unet))
        dim = self.named.get("dyn", dyn)
        if dim is not None:
            int(dim)
        return te_weight, unet_weight


class Loras:
    """The listed LoRAs and the ones applied by the last request."""

    def __init__(self, folder: Path, hashes: HashCache) -> None:
        self.folder = folder
        self.hashes = hashes
        self.by_stem: dict[str, Lora] = {}
        self.by_alias: dict[str, Lora] = {}
        self.ambiguous: set[str] = set()
        self.loaded: set[str] = set()

    def refresh(self) -> None:
        """List the folder again."""
        self.by_stem, self.by_alias, self.ambiguous = {}, {}, {"none"}
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in model_files(self.folder):
            metadata = read_metadata(path) if path.suffix.lower() == ".safetensors" else {}
            known = metadata.get("sshs_model_hash") or self.hashes.known(f"lora/{path.stem}", path)
            lora = Lora(path, metadata, known or "")
            if lora.alias in self.by_alias:
                self.ambiguous.add(lora.alias.lower())
            self.by_stem[lora.name] = lora
            self.by_alias |= {lora.name: lora, lora.alias: lora}

    def find(self, name: str) -> Lora | None:
        """The LoRA of a tag; an alias of two files finds none."""
        known = self.by_stem if name.lower() in self.ambiguous else self.by_alias
        return known.get(name)

    def apply(self, tags: list[LoraTag]) -> list[AppliedLora]:
        """The LoRAs that take part; none after one bad weight or missing file."""
        try:
            wanted = [(tag.positional[0], *tag.weights()) for tag in tags]
            if any(self.find(name) is None for name, _, _ in wanted):
                self.refresh()
            found = [
                AppliedLora(n, te, unet, lora) for n, te, unet in wanted if (lora := self.find(n))
            ]
            applied = [item for item in found if self._load(item)]
        except LORA_FAILURES:
            applied = []
        self.loaded = {item.mention for item in applied}
        return applied

    def _load(self, item: AppliedLora) -> bool:
        path = item.lora.path
        if item.mention in self.loaded:
            path.stat()  # fails for the whole request when the file is gone
        try:
            check_readable(path)
        except (OSError, SafetensorError):
            return False
        item.lora.hash = item.lora.hash or self.hashes.sha256(f"lora/{path.stem}", path) or ""
        return True


def lora_hashes(applied: list[AppliedLora]) -> str:
    """The text of `Lora hashes` in the picture's parameters."""
    names = (
        (item.mention.replace(":", "").replace(",", ""), item.lora.hash[:12]) for item in applied
    )
    return ", ".join(f"{name}: {short}" for name, short in names if name and short)


def split_tags(prompt: str) -> tuple[str, list[LoraTag]]:
    """The prompt without any `<kind:…>` tag, and the tags that mean LoRAs."""
    tags = [
        LoraTag.parse(text) for kind, text in LORA_TAG.findall(prompt) if kind in {"lora", "lyco"}
    ]
    return LORA_TAG.sub("", prompt), tags


def read_embeddings(folder: Path, hashes: HashCache) -> dict[str, str]:
    """Name to short hash of the readable embeddings in a folder."""
    found = {}
    for path in model_files(folder):
        try:
            check_readable(path)
        except (OSError, SafetensorError):
            continue
        found[path.stem] = (hashes.sha256(f"textual_inversion/{path.stem}", path) or "")[:12]
    return found
