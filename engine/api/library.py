"""The files that a prompt or an option of a job can name, apart from checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path

from engine.images.upscalers import Upscalers
from engine.models.embeddings import Embeddings
from engine.models.loras import Loras
from engine.models.vaes import Vaes

CHECKPOINTS, LORAS, VAES, EMBEDDINGS = (
    *("models/Stable-diffusion", "models/Lora", "models/VAE"),
    "embeddings",
)


@dataclass(frozen=True)
class Library:
    """The lists of files, each as it was at its last refresh."""

    loras: Loras
    embeddings: Embeddings
    vaes: Vaes
    upscalers: Upscalers = field(default_factory=Upscalers)

    @classmethod
    def of(cls, folder: Path) -> "Library":
        """The files below a folder in A1111's layout."""
        return cls(
            Loras(folder / LORAS),
            Embeddings(folder / EMBEDDINGS),
            Vaes(folder / VAES, folder / CHECKPOINTS),
            Upscalers(folder / "models"),
        )
