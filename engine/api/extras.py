"""POST /extra-single-image, /extra-batch-images, /png-info and /interrogate."""

import html
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, Field

from engine.api import options as option
from engine.api.infotext import encode_png, quote
from engine.errors import Refused, Unsupported
from engine.images import decode, generation_text, png_info
from engine.images.tiles import Tiling
from engine.images.upscalers import NONE, Stop, Upscalers
from engine.prompt.styles import Styles
from engine.sampling import samplers

MOST_PICTURES = 1000
TO_SIZE = 1  # resize_mode; 0 is by a factor
SAMPLER_NAMES = {name: one.name for one in samplers.SAMPLERS for name in (one.name, *one.aliases)}


class Upscaling(BaseModel):
    """The fields of both upscaling requests, with A1111's bounds."""

    resize_mode: Literal[0, 1] = 0
    show_extras_results: bool = True
    gfpgan_visibility: float = Field(0, ge=0, le=1, allow_inf_nan=False)
    codeformer_visibility: float = Field(0, ge=0, le=1, allow_inf_nan=False)
    codeformer_weight: float = Field(0, ge=0, le=1, allow_inf_nan=False)
    upscaling_resize: float = Field(2, gt=0, allow_inf_nan=False)
    upscaling_resize_w: int = Field(512, ge=1)
    upscaling_resize_h: int = Field(512, ge=1)
    upscaling_crop: bool = True
    upscaler_1: str = NONE
    upscaler_2: str = NONE
    extras_upscaler_2_visibility: float = Field(0, ge=0, le=1, allow_inf_nan=False)
    upscale_first: bool = False  # before the faces are restored, which the engine cannot

    def check(self) -> None:
        """Raise Unsupported for the restoring of faces, ValueError for an impossible size."""
        for name in ("gfpgan_visibility", "codeformer_visibility"):
            if getattr(self, name):
                raise Unsupported(
                    f"{name} with the value {getattr(self, name):g}: it has no models that restore "
                    "faces"
                )
        sides = (self.upscaling_resize_w, self.upscaling_resize_h)
        if self.resize_mode == TO_SIZE and max(sides) > decode.LONGEST_SIDE:
            raise ValueError(
                f"upscaling_resize_w and upscaling_resize_h must be at most {decode.LONGEST_SIDE}, "
                f"not {sides[0]} and {sides[1]}"
            )


class UpscaleOne(Upscaling):
    """POST /extra-single-image."""

    image: str = ""


class FileData(BaseModel):
    """A picture of the batch; its name has no effect."""

    data: str
    name: str


class UpscaleMany(Upscaling):
    """POST /extra-batch-images."""

    imageList: list[FileData] = Field(max_length=MOST_PICTURES)  # noqa: N815 - A1111's name


class PngInfo(BaseModel):
    """POST /png-info."""

    image: str


class Interrogation(BaseModel):
    """POST /interrogate."""

    image: str = ""
    model: str = "clip"


def tiling(settings: Mapping[str, Any]) -> Tiling:
    """The tiles for upscalers with a model. Raises ValueError."""
    return Tiling(settings[option.TILE], settings[option.TILE_OVERLAP])


def upscale(
    request: Upscaling, picture: Image.Image, upscalers: Upscalers, tiles: Tiling, stop: Stop
) -> tuple[str, str]:
    """The upscaled picture as base64 PNG with its texts, and what was done as text."""
    found, items = png_info.texts_of(picture, SAMPLER_NAMES)
    texts = items | ({"parameters": found} if found else {})
    if picture.mode not in ("RGB", "RGBA"):
        picture = picture.convert("RGB")
    entries: dict[str, Any] = {}
    if request.upscaler_1 != NONE:
        first, *second = _upscalers(request)
        steps = _Steps(request, upscalers, tiles, stop, entries)
        upscaled = steps.run(picture, first)
        entries["Postprocess upscaler"] = first
        for name in second:
            other = steps.run(picture, name).convert(upscaled.mode)
            upscaled = Image.blend(upscaled, other, request.extras_upscaler_2_visibility)
            entries["Postprocess upscaler 2"] = name
        picture = upscaled
    text = ", ".join(
        key if key == value else f"{key}: {quote(value)}" for key, value in entries.items()
    )
    return encode_png(picture, texts | {"postprocessing": text}), text


def _upscalers(request: Upscaling) -> list[str]:
    is_mixed = request.upscaler_2 != NONE and request.extras_upscaler_2_visibility > 0
    return [request.upscaler_1, *([request.upscaler_2] if is_mixed else [])]


class _Steps:
    """One picture with one upscaler after the other."""

    def __init__(
        self,
        request: Upscaling,
        upscalers: Upscalers,
        tiles: Tiling,
        stop: Stop,
        entries: dict[str, Any],
    ) -> None:
        self.request, self.upscalers, self.entries = request, upscalers, entries
        self.tiles, self.stop = tiles, stop

    def run(self, picture: Image.Image, name: str) -> Image.Image:
        """The picture by this upscaler, in the size that was asked for."""
        request, entries = self.request, self.entries
        scale = request.upscaling_resize
        size = (request.upscaling_resize_w, request.upscaling_resize_h)
        if request.resize_mode == TO_SIZE:
            scale = max(size[0] / picture.width, size[1] / picture.height)
            entries["Postprocess upscale to"] = f"{size[0]}x{size[1]}"
        else:
            entries["Postprocess upscale by"] = scale
        picture = self.upscalers.upscale(picture, scale, name, self.tiles, self.stop)
        if request.resize_mode == TO_SIZE and request.upscaling_crop:
            whole = Image.new("RGB", size)
            at = (size[0] // 2 - picture.width // 2, size[1] // 2 - picture.height // 2)
            whole.paste(picture, at)
            picture = whole
            entries["Postprocess crop to"] = f"{size[0]}x{size[1]}"
        return picture


def to_html(text: str) -> str:
    """A1111's `html_info`."""
    lines = "<br>\n".join(html.escape(line) for line in text.split("\n"))
    return f"<p>{lines}</p>"


def read_png_info(request: PngInfo, styles: Styles) -> dict[str, Any]:
    """The answer of POST /png-info."""
    picture = decode.read(request.image.strip())
    info, items = png_info.texts_of(picture, SAMPLER_NAMES)
    info = png_info.writable(info)
    return {
        "info": info,
        "items": {png_info.writable(name): png_info.writable(v) for name, v in items.items()},
        "parameters": generation_text.read(info, styles),
    }


def refuse_interrogation(request: Interrogation) -> None:
    """Raise Refused: the models that describe a picture are gigabytes that A1111 downloads."""
    decode.read(request.image)
    if request.model not in ("clip", "deepdanbooru"):
        raise ModelNotFound
    raise Unsupported(
        f"interrogate with the model {request.model!r}: A1111 downloads gigabytes for it, and the "
        "embedded engine downloads nothing"
    )


class ModelNotFound(Refused):
    """Interrogate knows two models; A1111's status and words."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Model not found")
