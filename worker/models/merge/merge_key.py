"""What a merge depends on, and the key that stands for it.

Without numpy: the start of a worker looks merged checkpoints up, and makes none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ALGORITHM = 1  # part of the key: raise it when results change


@dataclass(frozen=True)
class LoraToMerge:
    """A LoRA to merge.

    Attributes:
        name: for messages.
        sha256: of the file, hex.
        te, unet: its weight in the text encoders and in the UNet.
    """

    path: Path
    name: str
    sha256: str
    te: float = 1.0
    unet: float = 1.0


def merge_key(base_sha256: str, loras: Sequence[LoraToMerge], algorithm: int = ALGORITHM) -> str:
    """64 hex digits that stand for everything the result depends on; LoRA order is not part."""
    inputs = [[lora.sha256, lora.te, lora.unet] for lora in each_once(loras)]
    document = json.dumps([algorithm, base_sha256.lower(), inputs])
    return sha256(document.encode()).hexdigest()


def each_once(loras: Iterable[LoraToMerge]) -> list[LoraToMerge]:
    """Each LoRA once, with the sum of its weights, sorted by the hash of its file."""
    by_hash: dict[str, list[LoraToMerge]] = {}
    for lora in loras:
        by_hash.setdefault(lora.sha256.lower(), []).append(lora)
    return [
        LoraToMerge(same[0].path, same[0].name, digest, *_weights(same))
        for digest, same in sorted(by_hash.items())
    ]


def _weights(same: Sequence[LoraToMerge]) -> tuple[float, float]:
    """The sums of the weights, the same in every order, and never -0.0."""
    return math.fsum(lora.te for lora in same) + 0.0, math.fsum(lora.unet for lora in same) + 0.0
