"""The `.yaml` files of ours that A1111 v1.9.3 needs beside some checkpoints.

A1111 builds a model from the `.yaml` beside its file; without one it guesses by a few tensors
(modules/sd_models_config.py), and the guess is wrong for these:

    sd1_v.yaml      SD1 with v-prediction, which would be drawn as noise prediction
    sdxl_v.yaml     SDXL with v-prediction, likewise
    sdxl.yaml       SSD-1B and Vega: A1111 removes blocks from the loaded SDXL model for them, and
                    would load the next checkpoint into the same model; with a `.yaml` of another
                    path it builds each anew. The layers of Vega that stay without weights are 0
                    then, and add nothing.

KOALA cannot be built: it has another number of blocks on each level, and A1111 takes it for SSD-1B.
"""

from __future__ import annotations

from pathlib import Path

from worker.formats.architecture import MORE_INPUTS, Architecture
from worker.formats.model_file import ModelFile
from worker.models.store.links import point, target_of

_FOLDER = Path(__file__).parent / "configs"


def find(checkpoint: Architecture) -> Path | None:
    """The file that A1111 needs beside the checkpoint; None if it needs none, or there is none."""
    details = set(checkpoint.details)
    if checkpoint.role != "checkpoint" or details & MORE_INPUTS:
        return None
    if "v-prediction" in details:
        name = {"SD1": "sd1_v.yaml", "SDXL": "sdxl_v.yaml"}.get(checkpoint.family or "")
        return _FOLDER / name if name else None
    return _FOLDER / "sdxl.yaml" if "SSD" in details else None


def is_ours(path: Path) -> bool:
    """Whether the path is one of these files."""
    return path.parent == _FOLDER


def link(file: ModelFile, shown: Path, *, has_ours: bool) -> None:
    """Link the checkpoint's `.yaml` beside the path that the engine knows; remove an old one.

    The operator's own has precedence, beside the file or beside the link.

    Args:
        file: the checkpoint.
        shown: its path in the engine's folder.
        has_ours: whether the engine may need one of ours; the embedded engine needs none.
    """
    place, own = shown.with_name(f"{shown.stem}.yaml"), file.path.with_suffix(".yaml")
    is_own = file.has_config and not is_ours(target_of(own))
    ours = find(file.architecture()) if has_ours and not is_own else None
    config = own if is_own else ours
    if config and config != place and (place.is_symlink() or not place.exists()):
        point(place, config)
    elif not config and place.is_symlink() and is_ours(target_of(place)):
        place.unlink(missing_ok=True)  # of an earlier file with this name
