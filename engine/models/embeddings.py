"""The list of embeddings (textual inversion): vectors that act where their name is in a prompt.

    .pt, .bin       A1111's {"string_to_param": {"*": vectors}, "step", "sd_checkpoint", ...}
    .safetensors    one tensor of any name (`emb_params`), or `clip_l` and `clip_g` for SDXL

Pickles are read only as torch's `weights_only` allows: no code in them runs. A LoRA may contain
embeddings, too (`bundle_emb.<name>.<part>`).
"""

import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from engine.models import files
from engine.models.checkpoints import SUFFIX, file_sha256
from engine.models.files import Identity, Unreadable
from engine.models.lora_factors import BUNDLED

log = logging.getLogger(__name__)

PICKLES = (".pt", ".bin")
MAX_BYTES = 2**26  # SDXL's 75 vectors, the most that fit into a prompt, have 0.6 MB
HASH_DIGITS = 12
OLD = "string_to_param"
LARGE, SMALL = "clip_g", "clip_l"
MATRIX = 2


@dataclass(frozen=True)
class Embedding:
    """An embedding; `vectors` has a matrix for each text encoder: `l` for the first, `g` for XL's.

    `hash` is the file's SHA-256, empty inside a LoRA; `shape` the width of both matrices together.
    """

    name: str
    path: Path
    vectors: Mapping[str, torch.Tensor | None]
    hash: str = ""
    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None

    @property
    def shape(self) -> int:
        """The width of the vectors; it must be that of the checkpoint's text encoders."""
        return sum(part.shape[1] for part in self.vectors.values() if part is not None)

    @property
    def count(self) -> int:
        """The number of vectors: of tokens in a prompt."""
        return next(len(part) for part in self.vectors.values() if part is not None)

    def describe(self) -> dict[str, Any]:
        """The entry of GET /embeddings."""
        names = ("step", "sd_checkpoint", "sd_checkpoint_name", "shape")
        return {name: getattr(self, name) for name in names} | {"vectors": self.count}


class Embeddings:
    """The list at the last `refresh`: those that fit the checkpoint, and others."""

    def __init__(self, folder: Path) -> None:
        """Until `fit` is called, all embeddings count as fitting."""
        self.folder = folder
        self.shape: int | None = None
        self._found: list[Embedding] = []
        self._read: dict[Identity, Embedding | None] = {}
        self._refreshed_at: int | None = None
        self.refresh()

    def refresh_if_changed(self) -> None:
        """Before each job, as in A1111: files that were added beside the others are seen."""
        if self._changed_at() != self._refreshed_at:
            self.refresh()

    def _changed_at(self) -> int | None:
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return None

    def refresh(self) -> None:
        """Read the folder and its subfolders again; only files that changed are opened."""
        self._refreshed_at = self._changed_at()
        paths = (p for p in files.find(self.folder) if p.suffix.lower() in (SUFFIX, *PICKLES))
        read = {}
        for path in paths:
            try:
                now = files.identity([path])
            except OSError:
                continue  # it was deleted meanwhile
            read[now] = self._read[now] if now in self._read else _read_or_none(path)
        self._read = read
        # of two with one name the last one counts
        named = {one.name: one for one in read.values() if one}
        self._found = sorted(named.values(), key=lambda one: one.name.lower())

    def fit(self, shape: int | None) -> None:
        """Only embeddings of this width fit: SD1 has 768, SD2 1024, SDXL 2048."""
        self.shape = shape

    @property
    def all(self) -> list[Embedding]:
        """Those that fit the checkpoint, by name."""
        return [one for one in self._found if self.shape in (None, one.shape)]

    @property
    def skipped(self) -> list[Embedding]:
        """Those of another width, which prompts cannot name."""
        return [one for one in self._found if self.shape not in (None, one.shape)]

    def find(self, name: str) -> Embedding | None:
        """The embedding with exactly this name, if it fits the checkpoint."""
        return next((one for one in self.all if one.name == name), None)

    def describe(self) -> dict[str, dict[str, Any]]:
        """The answer of GET /embeddings."""
        groups = {"loaded": self.all, "skipped": self.skipped}
        return {group: {one.name: one.describe() for one in own} for group, own in groups.items()}


def _read_or_none(path: Path) -> Embedding | None:
    """None, with a line in the log, for a file that cannot be used; A1111 ignores empty files."""
    try:
        return read(path) if path.stat().st_size else None
    except (Unreadable, OSError) as error:
        log.warning("left out embedding %r: %s", path.name, error)
        return None


def read(path: Path) -> Embedding:
    """Read a file. Raises Unreadable, OSError."""
    if path.stat().st_size > MAX_BYTES:
        raise Unreadable(f"it has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    data = _read_pickle(path) if path.suffix.lower() in PICKLES else _read_safetensors(path)
    found = from_data(path.stem, path, data)
    return replace(found, hash=file_sha256(path))


def _read_safetensors(path: Path) -> dict[str, Any]:
    with files.open_tensors(path) as file:
        try:
            return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, RuntimeError) as error:  # numbers of a kind that torch lacks
            raise Unreadable(f"it has tensors that cannot be read ({error})") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """Raises Unreadable also for a pickle that wants to run code."""
    if not path.is_file():
        raise Unreadable("it is not a regular file")
    if zipfile.is_zipfile(path):
        _check_unpacked(path)
    try:
        # an old A1111 saved its vectors in a ParameterDict, which only holds tensors
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged file, torch raises anything
        cause = " ".join(str(error).split())[:100]
        raise Unreadable(f"it is damaged, or holds more than tensors ({cause})") from error
    if not isinstance(data, dict):
        raise Unreadable(f"it holds a {type(data).__name__}, not an embedding")
    return data


def _check_unpacked(path: Path) -> None:
    """Raise Unreadable if what is packed in the file is too large."""
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(one.file_size for one in file.infolist())
    except zipfile.BadZipFile as error:
        raise Unreadable(f"it is damaged ({error})") from error
    if unpacked > MAX_BYTES:
        raise Unreadable(f"it has {unpacked} bytes unpacked; at most {MAX_BYTES} are read")


def from_data(name: str, path: Path, data: Mapping[str, Any]) -> Embedding:
    """The embedding in a file's data, by A1111's rules. Raises Unreadable."""
    if OLD in data:
        inner = data[OLD]
        single = _only(getattr(inner, "_parameters", inner))
        known = {key: data.get(key) for key in ("step", "sd_checkpoint", "sd_checkpoint_name")}
        step = known["step"] if isinstance(known["step"], int) else None
        texts = {k: v for k, v in known.items() if k != "step" and isinstance(v, str)}
        return Embedding(name, path, {"l": single, "g": None}, step=step, **texts)
    if {SMALL, LARGE} <= data.keys():
        small, large = _matrix(data[SMALL]), _matrix(data[LARGE])
        if len(small) != len(large):
            raise Unreadable(f"it has {len(small)} vectors in {SMALL} and {len(large)} in {LARGE}")
        return Embedding(name, path, {"l": small, "g": large})
    return Embedding(name, path, {"l": _only(data), "g": None})


def _only(data: Any) -> torch.Tensor:  # noqa: ANN401 - from a file
    """The only tensor of a dictionary. Raises Unreadable."""
    if not isinstance(data, Mapping) or len(data) != 1:
        raise Unreadable("it does not have exactly one tensor of vectors, nor clip_l and clip_g")
    return _matrix(next(iter(data.values())))


def _matrix(tensor: Any) -> torch.Tensor:  # noqa: ANN401 - from a file
    """Vectors in single precision; one vector may come without an axis of its own."""
    is_plain = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
    is_list = is_plain and not tensor.is_meta and tensor.ndim in (1, MATRIX) and tensor.numel()
    if not is_list or not tensor.is_floating_point():
        raise Unreadable("it has no list of vectors")
    if tensor.numel() > MAX_BYTES // 4:  # a pickle can repeat one number without end
        raise Unreadable(f"it has {tensor.numel()} numbers; at most {MAX_BYTES // 4} are read")
    matrix: torch.Tensor = tensor.detach().float().reshape(-1, tensor.shape[-1])
    if not matrix.isfinite().all():
        raise Unreadable("it holds NaN or infinity")
    return matrix


def take_bundled(
    state: Mapping[str, torch.Tensor], path: Path
) -> tuple[list[Embedding], dict[str, torch.Tensor]]:
    """The embeddings in the tensors of the LoRA `path`, and its other tensors. Raises Unreadable.

    A1111 lets prompts name them while the LoRA is used, unless the folder has one of that name.
    """
    others: dict[str, torch.Tensor] = {}
    bundled: dict[str, dict[str, Any]] = {}
    for key, tensor in state.items():
        if not key.startswith(BUNDLED):
            others[key] = tensor
            continue
        name, dot, part = key.removeprefix(BUNDLED).partition(".")
        if not dot:
            raise Unreadable(f"it contains an embedding without a name ({key[:100]!r})")
        first, _, rest = part.partition(".")
        bundled.setdefault(name, {}).update(
            {OLD: {rest: tensor}} if first == OLD else {part: tensor}
        )
    return [from_data(name, path, data) for name, data in bundled.items()], others


def merged(loaded: Iterable[Embedding], bundled: Iterable[Embedding]) -> list[Embedding]:
    """Those of the folder, and those of LoRAs whose names are still free, the first of each."""
    named: dict[str, Embedding] = {}
    for one in (*loaded, *bundled):
        named.setdefault(one.name, one)
    return list(named.values())
