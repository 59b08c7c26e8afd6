"""ControlNet and ADetailer in the fake A1111, if FAKE_A1111_EXTENSIONS is set.

As the real ones (v1.1.455 and v25.3.0): units stand in the infotext before anything is done with
them, and an error of theirs gives a picture without them, which the worker's own extension notes.
"""

import base64
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from fakes.a1111.request import Params, engine_error

MODULES = {"none", "canny", "invert", "reference_only"}  # enough for the tests
DETECTORS = [f"mediapipe_face_{name}" for name in ("full", "short", "mesh", "mesh_eyes_only")]
SLOTS = {"controlnet": 3, "adetailer": 6}  # arguments behind them are dropped
NO_DETECTOR = {"ad_model": "None"}
DEFAULTS = [False, False, {"ad_model": DETECTORS[0]}, *[NO_DETECTOR] * 3]


def installed() -> list[str]:
    """The names of the scripts."""
    return sorted(SLOTS) if os.environ.get("FAKE_A1111_EXTENSIONS") else []


def detectors() -> dict[str, list[str]]:
    """GET /adetailer/v1/ad_model."""
    return {"ad_model": DETECTORS}


class Extensions:
    """The units of one txt2img, and ControlNet's models."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.models: dict[str, Path] = {}  # as listed: `name [hash]`

    def model_list(self) -> dict[str, list[str]]:
        """GET /controlnet/model_list, which reads the folder."""
        files = self._folder.glob("*.safetensors")
        self.models = {f"{file.stem} [{_short(file)}]": file for file in files}
        return {"model_list": list(self.models)}

    def apply(self, params: Params) -> tuple[dict[str, Any], int]:
        """What the infotext gets, and the number of maps behind the pictures."""
        if not installed():
            return {}, 0
        given = {name.lower(): it for name, it in params["alwayson_scripts"].items()}
        args = {name: given.get(name, {}).get("args", [])[:slots] for name, slots in SLOTS.items()}
        found, maps = self._control(args["controlnet"], passes=2 if params["enable_hr"] else 1)
        return found | self._detail(args["adetailer"]), maps

    def _control(self, args: list[Any], passes: int) -> tuple[dict[str, Any], int]:
        units = [unit for unit in args if isinstance(unit, dict) and unit.get("enabled")]
        for unit in args:
            module = unit.get("module", "none") if isinstance(unit, dict) else "none"
            if module not in MODULES:
                text = f"module({module}) not found in supported modules."
                raise engine_error("ValidationError", text)
        extra = {
            f"ControlNet {number}": f"Module: {unit.get('module', 'none')}, Model:"
            f" {unit.get('model', 'None')}, Weight: {float(unit.get('weight', 1.0))}"
            for number, unit in enumerate(units)
        }
        for unit in units:
            if error := self._fault(unit):
                return extra | {"ControlNet error": error}, 0
        return extra, len(units) * passes

    def _fault(self, unit: dict[str, Any]) -> str | None:
        if unit.get("module") != "reference_only" and unit.get("model") not in self.models:
            return "RuntimeError: model not found: None"
        if not unit.get("image"):
            return "ValueError: controlnet is enabled but no input image is given"
        base64.b64decode(unit["image"])
        return None

    def _detail(self, args: list[Any]) -> dict[str, Any]:
        if not args:
            return {}
        args = [*args, *DEFAULTS[len(args) :]]
        units = [unit for unit in args if isinstance(unit, dict) and unit != NO_DETECTOR]
        if args[0] is False:
            return {}
        marks = ("", " 2nd", " 3rd", " 4th")
        extra = {
            f"ADetailer model{m}": unit["ad_model"] for m, unit in zip(marks, units, strict=False)
        }
        if not {unit["ad_model"] for unit in units} <= {*DETECTORS}:
            extra["ADetailer error"] = "ValueError"
        return extra


def _short(file: Path) -> str:
    return sha256(file.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
