"""Upscalers: A1111's None, Lanczos and Nearest, and models from the folders of `models/`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.Image import Resampling

from engine.errors import TooLarge
from engine.images import upscaler_models
from engine.images.decode import LONGEST_SIDE
from engine.images.resize import Size, lanczos
from engine.images.tiles import Tiling
from engine.models import files

log = logging.getLogger(__name__)

NONE = "None"
METHODS = {NONE: Resampling.LANCZOS, "Lanczos": Resampling.LANCZOS, "Nearest": Resampling.NEAREST}
ESRGAN, REAL_ESRGAN = "ESRGAN", "RealESRGAN"
ESRGAN_4X = "ESRGAN_4x"  # what A1111 shows as the model of all files in ESRGAN
FOLDERS = (ESRGAN, REAL_ESRGAN)
SUFFIXES = (".safetensors", ".pth", ".pt")
# A1111's names of the files that it would download; another file in this folder is not listed
REAL_ESRGAN_NAMES = {
    "realesr-general-x4v3": "R-ESRGAN General 4xV3",
    "realesr-general-wdn-x4v3": "R-ESRGAN General WDN 4xV3",
    "realesr-animevideov3": "R-ESRGAN AnimeVideo",
    "RealESRGAN_x4plus": "R-ESRGAN 4x+",
    "RealESRGAN_x4plus_anime_6B": "R-ESRGAN 4x+ Anime6B",
    "RealESRGAN_x2plus": "R-ESRGAN 2x+",
}
SCALE = 4  # that A1111 shows for all others; what a file is made for only loading it shows
MULTIPLE = 8  # of the sides of an upscaled picture
MOST_ROUNDS = 3
LONGEST_ENLARGED = 2 * LONGEST_SIDE  # while upscaling: models have fixed factors

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Upscaler:
    """An upscaler; `path` is the file of its model, None if it needs none."""

    name: str
    path: Path | None = None

    @property
    def scale(self) -> int:
        """The factor that A1111 lists."""
        return 2 if self.name == REAL_ESRGAN_NAMES["RealESRGAN_x2plus"] else SCALE

    def describe(self) -> dict[str, Any]:
        """An entry of GET /upscalers."""
        path = None if self.path is None else str(self.path)
        return {
            "name": self.name,
            "model_name": ESRGAN_4X if self.path and self.path.parent.name == ESRGAN else None,
            "model_path": path,
            "model_url": None,
            "scale": float(self.scale),
        }


BUILT_IN = tuple(map(Upscaler, METHODS))


class Upscalers:
    """The upscalers of a `models/` folder; without one, those that need no model.

    The model that was used last stays in memory. Only one thread may use it at a time.
    """

    def __init__(self, models: Path | None = None) -> None:
        """Create the missing folders."""
        self._models = models
        self._loaded: tuple[files.Identity, upscaler_models.Network] | None = None
        for name in FOLDERS if models else ():
            (models / name).mkdir(parents=True, exist_ok=True)  # type: ignore[operator]

    def all(self) -> list[Upscaler]:
        """The present ones in A1111's order: without a model first, then by name."""
        if self._models is None:
            return [*BUILT_IN]
        found = [Upscaler(path.stem, path) for path in self._files(ESRGAN)]
        return [*BUILT_IN, *sorted(found + self.real_esrgan(), key=lambda one: one.name.lower())]

    def real_esrgan(self) -> list[Upscaler]:
        """Those of Real-ESRGAN whose files are present, for GET /realesrgan-models."""
        if self._models is None:
            return []
        by_stem = {path.stem: path for path in self._files(REAL_ESRGAN)}
        return [
            Upscaler(name, by_stem[stem])
            for stem, name in REAL_ESRGAN_NAMES.items()
            if stem in by_stem
        ]

    def _files(self, folder: str) -> list[Path]:
        found = [] if self._models is None else files.find(self._models / folder)
        return [path for path in found if path.suffix.lower() in SUFFIXES]

    def find(self, name: str) -> Upscaler:
        """The upscaler with exactly this name. Raises LookupError with the known names."""
        known = self.all()
        for upscaler in known:
            if upscaler.name == name:
                return upscaler
        names = ", ".join(one.name for one in known)
        missing = {name: stem for stem, name in REAL_ESRGAN_NAMES.items()}.get(name)
        hint = f". It needs {missing}.pth in models/{REAL_ESRGAN}" if missing else ""
        raise LookupError(f"could not find upscaler named {name[:100]!r}. Known: {names}{hint}")

    def upscale(
        self, picture: Image.Image, scale: float, name: str, tiling: Tiling, stop: Stop
    ) -> Image.Image:
        """The picture, about `scale` times as large: the sides are cut to multiples of 8.

        If `stop` returns true meanwhile, only Lanczos enlarges. Raises LookupError for an unknown
        name, ValueError or TooLarge for an impossible size, RuntimeError for a model that cannot
        be used.
        """
        upscaler = self.find(name)
        size = wanted_size(picture.size, scale)
        for _ in range(MOST_ROUNDS):
            is_large = picture.width >= size[0] and picture.height >= size[1] and scale != 1
            if is_large or stop():
                break
            before = picture.size
            picture = self._once(picture, scale, upscaler, tiling, stop)
            if picture.size == before:
                break
        return picture if picture.size == size else lanczos(picture, size)

    def _once(
        self,
        picture: Image.Image,
        scale: float,
        upscaler: Upscaler,
        tiling: Tiling,
        stop: Stop,
    ) -> Image.Image:
        if upscaler.path is not None:
            network = self._network(upscaler, upscaler.path)
            _check(picture.size, network.scale, upscaler)
            return tiling.enlarge(picture, network, stop)
        if upscaler.name == NONE:
            return picture
        size = (int(picture.width * scale), int(picture.height * scale))
        return picture.resize(size, METHODS[upscaler.name])

    def _network(self, upscaler: Upscaler, path: Path) -> upscaler_models.Network:
        now = files.identity([path])
        if self._loaded is None or self._loaded[0] != now:
            self._loaded = None
            self._loaded = (now, upscaler_models.load(upscaler.name, path))
            log.info("loaded the upscaler %s", upscaler.name)
        return self._loaded[1]

    def fit(
        self, picture: Image.Image, size: Size, name: str, tiling: Tiling, stop: Stop
    ) -> Image.Image:
        """The picture in exactly this size: upscaled if it must grow, then resized by Lanczos."""
        scale = max(size[0] / picture.width, size[1] / picture.height)
        if name != NONE and scale > 1:
            picture = self.upscale(picture, scale, name, tiling, stop)
        return picture if picture.size == size else lanczos(picture, size)


def wanted_size(size: Size, scale: float) -> Size:
    """The size of an upscaled picture. Raises ValueError if it has no pixels, TooLarge."""
    width, height = (int(side * scale // MULTIPLE * MULTIPLE) for side in size)
    if not MULTIPLE <= min(width, height) <= max(width, height) <= LONGEST_SIDE:
        kind = TooLarge if min(width, height) >= MULTIPLE else ValueError
        raise kind(
            f"{size[0]}x{size[1]} pixels times {scale:g} gives {width}x{height}: each side must be "
            f"{MULTIPLE} to {LONGEST_SIDE}"
        )
    return width, height


def _check(size: Size, factor: int, upscaler: Upscaler) -> None:
    if max(size) * factor > LONGEST_ENLARGED:
        raise TooLarge(
            f"upscaler {upscaler.name!r} enlarges {factor} times: a picture of {size[0]}x{size[1]} "
            f"pixels would have more than {LONGEST_ENLARGED} a side on the way"
        )
