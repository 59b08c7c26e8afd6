"""Enlarging and describing pictures as A1111 v1.9.3 does it, recorded from a real one.

What it does wrong: without its model an upscaler enlarges with Lanczos and says its own name, face
restoration changes nothing, and a described picture is `<error>` with status 200. A model is there
if its file is below the models folder: an empty file is enough.
"""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter, PngImagePlugin
from PIL.Image import Resampling

from fakes.a1111.faults import Faults
from fakes.a1111.request import ApiError, Params, engine_error, refusal
from fakes.a1111.state import Options
from fakes.recorded import recorded

SCHEMA = recorded("openapi")["components"]["schemas"]["ExtrasSingleImageRequest"]["properties"]
UPSCALERS = {item["name"]: item for item in recorded("get_upscalers")}
FILTERS = {"Lanczos": Resampling.LANCZOS, "Nearest": Resampling.NEAREST}
TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool}
# File below models/ -> what it is for.
MODELS = {
    "clip": "BLIP/model_base_caption_capfilt_large.pth",
    "deepdanbooru": "torch_deepdanbooru/model-resnet_custom_v3.pt",
}
_BOUNDS = {
    "minimum": lambda value, bound: value < bound,
    "maximum": lambda value, bound: value > bound,
    "exclusiveMinimum": lambda value, bound: value <= bound,
}


def _refused(name: str, msg: str) -> ApiError:
    return ApiError(422, {"detail": [{"loc": ["body", name], "msg": msg, "type": "value_error"}]})


def read_extras(body: Any) -> Params:
    """The fields of extra-single-image; a 422 for a wrong type, null or range."""
    params = {name: schema.get("default") for name, schema in SCHEMA.items()}
    for name in params.keys() & dict(body).keys():
        value, schema = body[name], SCHEMA[name]
        if not isinstance(value, TYPES.get(schema.get("type", "integer"), object)):
            raise _refused(name, f"{value!r} is not of the type")
        if "enum" in schema and value not in schema["enum"]:
            raise _refused(name, "unexpected value")
        if any(key in schema and wrong(value, schema[key]) for key, wrong in _BOUNDS.items()):
            raise _refused(name, "out of range")
        params[name] = value
    return params


def _decoded(text: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
    except (OSError, ValueError):
        raise refusal(500, "Invalid encoded image") from None
    image.load()
    return image


class Extras:
    """The routes extra-single-image and interrogate."""

    def __init__(self, data_dir: Path, options: Options, faults: Faults) -> None:
        self._models = data_dir / "models"
        self._options = options
        self._faults = faults
        self._cache: dict[Any, Image.Image] = {}

    def enlarge(self, params: Params) -> dict[str, Any]:
        """POST /extra-single-image."""
        image = _decoded(params["image"])
        texts = {k: v for k, v in image.info.items() if k == "parameters"}
        if error := self._faults.error():
            raise error
        image = image if image.mode in {"RGB", "RGBA"} else image.convert("RGB")
        info = {}
        if params["upscaler_1"] != "None":
            image = self._by_both(image, params, info)
        for label in ("GFPGAN", "CodeFormer"):
            if visibility := params[f"{label.lower()}_visibility"]:  # it changes nothing
                info[f"{label} visibility"] = float(visibility)
        infotext = ", ".join(f"{key}: {value}" for key, value in info.items())
        png = _png(image, texts | {"postprocessing": infotext})
        return {"html_info": f"<p>{infotext}</p>", "image": png}

    def _by_both(self, image: Image.Image, params: Params, info: dict[str, Any]) -> Image.Image:
        factor = params["upscaling_resize"]
        info["Postprocess upscale by"] = float(factor)
        names = [params["upscaler_1"], params["upscaler_2"]]
        for name in names:
            if name not in UPSCALERS:
                raise engine_error("AssertionError", f"could not find upscaler named {name}")
        made = self._by(names[0], image, factor)
        info["Postprocess upscaler"] = names[0]
        if names[1] != "None" and params["extras_upscaler_2_visibility"]:
            second = self._by(names[1], image, factor)
            made = Image.blend(made, second, params["extras_upscaler_2_visibility"])
            info["Postprocess upscaler 2"] = names[1]
        return made

    def _by(self, name: str, image: Image.Image, factor: float) -> Image.Image:
        """Enlarged; A1111's cache takes a picture of another width for the same one."""
        key = (image.tobytes(), name, factor)
        made = self._cache.pop(key, None) or self._enlarged(name, image, factor)
        self._cache[key] = made
        if len(self._cache) > self._options.get("upscaling_max_images_in_cache"):
            self._cache.pop(next(iter(self._cache)))
        return made

    def _enlarged(self, name: str, image: Image.Image, factor: float) -> Image.Image:
        width, height = (int(side * factor // 8 * 8) for side in image.size)
        if min(width, height) < 8:
            raise engine_error("ValueError", "height and width must be > 0")
        made = image.resize((width, height), FILTERS.get(name, Resampling.LANCZOS))
        if name in FILTERS or not self._has_model(name):
            return made
        return made.filter(ImageFilter.SHARPEN)

    def _has_model(self, name: str) -> bool:
        file = Path(str(UPSCALERS[name]["model_path"])).name
        return any(self._models.glob(f"*/{file}"))

    def describe(self, body: Any) -> dict[str, Any]:
        """POST /interrogate."""
        image, model = _decoded(body["image"]), body.get("model", "clip")
        if model not in MODELS:
            raise refusal(404, "Model not found")
        if error := self._faults.error():
            raise error
        if (self._models / MODELS[model]).exists():
            return {"caption": f"a picture of {image.width} x {image.height} pixels"}
        if model == "clip":
            return dict(recorded("post_interrogate_offline"))
        raise engine_error("IndexError", "list index out of range")


def _png(image: Image.Image, texts: dict[str, str]) -> str:
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, value in texts.items():
        chunks.add_text(name, value)
    image.save(file, "PNG", pnginfo=chunks)
    return base64.b64encode(file.getvalue()).decode()
