"""VAE files: their list, and the exchange of a checkpoint's VAE for one of them.

A VAE file has the original names, with or without `first_stage_model.` before them, and exactly the
layers of the checkpoint's own VAE. The factor of the latents stays the checkpoint's, as in A1111.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import Unsupported
from engine.models import files, ldm
from engine.models.checkpoints import HASH_DIGITS, NOT_LISTED, SUFFIX, file_sha256
from engine.models.files import Identity, Unreadable
from engine.models.requirements import Incomplete, first_ones, without_ones

AUTOMATIC = ("Automatic", "auto")
NO_OTHER = "None"
PICKLES = (".pt", ".ckpt")
# what A1111 does not read either: values from the training
IGNORED_START, IGNORED = "loss", ("model_ema.decay", "model_ema.num_updates")


@dataclass(frozen=True)
class Vae:
    """A file below models/VAE, or `*.vae.safetensors` below models/Stable-diffusion."""

    path: Path

    @property
    def name(self) -> str:
        """The value of the option `sd_vae`."""
        return self.path.name

    def describe(self) -> dict[str, str]:
        """The entry of GET /sd-vae."""
        return {"model_name": self.name, "filename": str(self.path)}


class Vaes:
    """The list at the last `refresh`; of two files with one name the last one counts."""

    def __init__(self, folder: Path, checkpoints: Path) -> None:
        """`folder` is models/VAE, `checkpoints` models/Stable-diffusion."""
        self.folder = folder
        self.checkpoints = checkpoints
        self.all: list[Vae] = []
        self._pickles: set[str] = set()
        self._hashes: dict[Identity, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the folders and their subfolders again."""
        beside = [p for p in files.find(self.checkpoints) if p.name.lower().endswith(NOT_LISTED)]
        found = files.find(self.folder)
        own = [path for path in found if files.has_suffix(path, SUFFIX)]
        self._pickles = {path.name for path in found if path.suffix.lower() in PICKLES}
        named = {path.name: Vae(path) for path in (*beside, *own)}
        self.all = sorted(named.values(), key=lambda vae: files.order(Path(vae.name)))

    def hash(self, vae: Vae) -> str:
        """The first 10 digits of the file's SHA-256, computed once per file. Raises OSError."""
        now = files.identity([vae.path])
        if now not in self._hashes:
            self._hashes[now] = file_sha256(vae.path)[:HASH_DIGITS]
        return self._hashes[now]

    def resolve(self, option: str | None, checkpoint: Path) -> Vae | None:
        """The VAE that this value of `sd_vae` means for a checkpoint; None for its own.

        `Automatic` is the first file whose name begins with the checkpoint's. A name that is not in
        the list means the checkpoint's own VAE, without a word, as in A1111. Raises Unsupported for
        a file that A1111 would read: .pt and .ckpt, whose loading may run code.
        """
        if option in self._pickles:
            raise Unsupported(f"the VAE {option!r}: only {SUFFIX} files are read")
        if option in AUTOMATIC:
            stem = checkpoint.name.rsplit(".", 1)[0]
            return next((vae for vae in self.all if vae.name.startswith(stem)), None)
        return next((vae for vae in self.all if vae.name == option and option != NO_OTHER), None)


def exchange(vae: Any, path: Path, dtype: torch.dtype) -> ExitStack:  # noqa: ANN401 - diffusers
    """Give an AutoencoderKL the weights of a file, in this precision, until the stack is closed.

    The module stays the same object, with its place, its tiling and its hooks. Then it has its own
    tensors again, bit for bit, in the precision that they had. Raises Incomplete, Unreadable,
    OSError; nothing has changed then.
    """
    state = _read(path, vae, dtype)
    until = ExitStack()
    for name, parameter in vae.named_parameters():
        until.callback(_put_back, parameter, parameter.data)
        given = state[name]
        # in the same memory format: another one would change the last bits of a picture
        parameter.data = torch.empty_like(parameter.data, dtype=given.dtype).copy_(given)
    return until


def _put_back(parameter: torch.nn.Parameter, own: torch.Tensor) -> None:
    """The former numbers, where the present ones are: an offloaded model moves meanwhile."""
    parameter.data = own.to(parameter.device)


def _read(path: Path, vae: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The file's tensors under diffusers' names, which are in the order of the original ones."""
    own = vae.state_dict()
    exported = ldm.export_vae(own, len(vae.config.block_out_channels))
    originals = [key.removeprefix(ldm.VAE) for key in exported]
    with files.open_tensors(path) as file:
        keys = {key.removeprefix(ldm.VAE): key for key in file.keys()}  # noqa: SIM118
        keys = {name: key for name, key in keys.items() if not _is_ignored(name)}
        shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in keys.items()}
        _check(dict(zip(originals, exported.values(), strict=True)), shapes)
        # copies: another file may be written over this one
        state = {
            name: file.get_tensor(keys[original]).to(dtype, copy=True).reshape(tensor.shape)
            for original, (name, tensor) in zip(originals, own.items(), strict=True)
        }
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise Unreadable(f"it has a number that {dtype} cannot hold ({bad[0]})")
    return state


def _is_ignored(name: str) -> bool:
    return name.startswith(IGNORED_START) or name in IGNORED


def _check(expected: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise Incomplete unless the file has exactly the tensors of the checkpoint's VAE."""
    if missing := [name for name in expected if name not in shapes]:
        raise Incomplete(f"it lacks tensors of the checkpoint's VAE: {first_ones(missing)}")
    if further := [name for name in shapes if name not in expected]:
        raise Incomplete(f"it has tensors that no VAE has: {first_ones(further)}")
    for name, tensor in expected.items():
        if without_ones(shapes[name]) != without_ones(tuple(tensor.shape)):
            raise Incomplete(
                f"{name!r} has the shape {[*shapes[name]]}, the checkpoint's VAE {[*tensor.shape]}"
            )
