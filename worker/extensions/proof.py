"""Proof that the engine applied each unit of ControlNet and ADetailer. Pure.

Both extensions write their units into the infotext before they do anything, and A1111 catches what
they raise: a missing model gives a picture without the unit, whose infotext names it. So the
infotext proves that a unit was understood, and more is needed to prove that it was applied:

- ControlNet appends each unit's map to the pictures, only after all units were applied.
- An error of ADetailer is written into the infotext by our own extension of A1111
  (image/a1111_extension).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import UnitNotApplied
from worker.extensions.scripts import Units

ERROR_KEYS = ("ControlNet error", "ADetailer error")
_ORDINALS = ("", " 2nd", " 3rd", " 4th")  # ADetailer's names of its units


@dataclass(frozen=True)
class ExpectedUnits:
    """What `info` must report.

    Attributes:
        fields: key of `extra_generation_params` -> facts that must stand there.
        maps: number of ControlNet's maps behind the pictures.
    """

    fields: Mapping[str, Mapping[str, str | float]]
    maps: int = 0


def expected(units: Units, models: Mapping[int, str], *, second_pass: bool) -> ExpectedUnits | None:
    """What proves the units; the arguments are those of `scripts.body`. None without units."""
    if not units.controlnet and not units.adetailer:
        return None
    controls: dict[str, Mapping[str, str | float]] = {
        f"ControlNet {number}": {
            "Module": unit.module,
            "Model": models.get(number, "None"),
            "Weight": unit.weight,
        }
        for number, unit in enumerate(units.controlnet.values())
    }
    detailers = {
        f"ADetailer model{ordinal}": {"": unit.ad_model}
        for ordinal, unit in zip(_ORDINALS, units.adetailer.values(), strict=False)
    }
    return ExpectedUnits(controls | detailers, len(controls) * (2 if second_pass else 1))


def check(
    info: Mapping[str, Any], returned: int, pictures: int | None, wanted: ExpectedUnits
) -> None:
    """Compare the engine's answer with the units.

    Args:
        info: of the answer.
        returned: number of pictures in the answer, without a grid.
        pictures: number of pictures that the job asks for; None if a script decides it.
        wanted: the job's units.

    Raises:
        UnitNotApplied: names the unit and what the engine reports.
    """
    reported = info.get("extra_generation_params") or {}
    for key in ERROR_KEYS:
        if error := reported.get(key):
            raise UnitNotApplied(f"{key}: {str(error)[:200]}.")
    for key, facts in wanted.fields.items():
        found = _facts(reported.get(key))
        for name, value in facts.items():
            if not _same(found.get(name), value):
                raise UnitNotApplied(
                    f"expected {key} with {name or 'the detector'} {value!r}, but the engine"
                    f" reports {found.get(name)!r}.",
                    unit=key,
                )
    if wanted.maps and returned == pictures:
        raise UnitNotApplied(
            f"the engine returned none of {wanted.maps} maps, so ControlNet failed before the"
            " first step."
        )


def _facts(text: object) -> dict[str, str]:
    """`Module: canny, Model: x [y], Weight: 1.0` as a dict; other texts under the key ""."""
    pairs = (part.partition(": ") for part in str(text).split(", "))
    return {"": str(text)} | {name: value for name, colon, value in pairs if colon}


def _same(found: str | None, value: str | float) -> bool:
    if found is None or isinstance(value, str):
        return found == value
    try:
        return float(found) == value
    except ValueError:
        return False
