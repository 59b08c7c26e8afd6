"""The units of a job's `alwayson_scripts`: read, checked, and as A1111 gets them. Pure.

Disabled units are left out: the others then have the numbers under which A1111 reports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from worker.errors import InvalidInput
from worker.extensions.units import NONE, ADetailerUnit, ControlNetUnit, check_detector
from worker.formats.model_file import ModelFile
from worker.job import prompt_checks
from worker.job.problems import joined, problems_of
from worker.job.prompt import tags_in
from worker.job.reference import Wanted, local_path, parse_reference
from worker.shown import shown

CONTROLNET: Final = "controlnet"
ADETAILER: Final = "adetailer"
BUILD_ARGUMENTS = {CONTROLNET: "WITH_CONTROLNET=1", ADETAILER: "WITH_ADETAILER=1"}
# As in `worker.config.webui_config`. A1111 cuts longer lists off.
MOST_UNITS = {CONTROLNET: 3, ADETAILER: 4}

_SPELLED = {CONTROLNET: "ControlNet", ADETAILER: "ADetailer"}
_FLAGS = 2  # ADetailer's own: enabled, skip img2img
_HASH = re.compile(r"(.+) \[([0-9a-f]{8})\]")

Place = tuple[int | str, ...]  # of a value below `alwayson_scripts`


class Script(Protocol):
    """The arguments of one always-on script."""

    @property
    def args(self) -> Sequence[Any]:
        """As the job has them."""


Scripts = Mapping[str, Script]


@dataclass(frozen=True)
class Units:
    """The enabled units of one job.

    Attributes:
        controlnet, adetailer: by their places in the job.
        flags: what stands before ADetailer's units.
    """

    controlnet: Mapping[Place, ControlNetUnit] = field(default_factory=dict)
    adetailer: Mapping[Place, ADetailerUnit] = field(default_factory=dict)
    flags: tuple[bool, ...] = ()

    def pictures(self) -> dict[str, str]:
        """The pictures that the units bring: field -> base64, data URI or URL."""
        return {
            _dotted((*place, name)): text
            for place, unit in self.controlnet.items()
            for name in ("image", "mask")
            if (text := getattr(unit, name))
        }

    def wanted(self) -> dict[tuple[str, int], Wanted]:
        """The ControlNet models, by kind and number of the unit."""
        return {
            (CONTROLNET, number): wanted_model(unit.model)
            for number, unit in enumerate(self.controlnet.values())
            if unit.has_model
        }


def wanted_model(name: str) -> Wanted:
    """The model that a unit names; A1111's own name for it ends with ` [hash]`."""
    found = _HASH.fullmatch(name)
    name = found[1] if found else name
    return Wanted(parse_reference(name), CONTROLNET, local=local_path(name))


# Reading --------------------------------------------------------------------------------------

Unit = TypeVar("Unit", ControlNetUnit, ADetailerUnit)


def is_extension(name: str) -> bool:
    """Whether the script of that name is one of ours."""
    return name.casefold() in MOST_UNITS


def read(scripts: Scripts) -> Units:
    """The enabled units of a job.

    Raises:
        InvalidInput: names each wrong field with its value and the remedy.
    """
    names = [name for name in scripts if is_extension(name)]
    if len({name.casefold() for name in names}) < len(names):
        raise InvalidInput(
            f"alwayson_scripts has one extension twice: {', '.join(map(repr, names))}.",
            hint="Put all units into the args of one.",
        )
    found: dict[str, Any] = {}
    for name in names:
        place, args = ("alwayson_scripts", name, "args"), list(scripts[name].args)
        kind = name.casefold()
        if kind == ADETAILER:
            flags = _flags(args)
            found["flags"] = flags
            units: Mapping[Place, Any] = _units(place, args, ADetailerUnit, len(flags))
            found[kind] = units if all(flags[:1]) else {}
        else:
            found[kind] = _units(place, args, ControlNetUnit)
        if len(found[kind]) > MOST_UNITS[kind]:
            raise InvalidInput(
                f"{_dotted(place)} has {len(found[kind])} enabled units; at most"
                f" {MOST_UNITS[kind]} are used.",
                field=_dotted(place),
            )
    return Units(**found)


def _flags(args: Sequence[Any]) -> tuple[bool, ...]:
    """ADetailer's first arguments: whether it is enabled, and whether it skips img2img."""
    is_flag = [isinstance(arg, bool) for arg in args[:_FLAGS]]
    return tuple(args[: is_flag.index(False) if False in is_flag else len(is_flag)])


def _units(
    place: Place, args: Sequence[Any], model: type[Unit], first: int = 0
) -> dict[Place, Unit]:
    units, problems = {}, []
    for number, arg in enumerate(args[first:], first):
        here = (*place, number)
        try:
            unit = model.model_validate(arg)
        except ValidationError as error:
            problems += problems_of(error, model, _below(here))
            continue
        if unit.enabled:
            units[here] = unit
    if problems:
        raise InvalidInput(joined(problems), problems=problems, field=_dotted(place))
    return units


def _below(place: Place) -> Callable[[Place], str]:
    return lambda inner: _dotted((*place, *inner))


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


# Checks ---------------------------------------------------------------------------------------


class Names(Protocol):
    """The names that the engine knows; `worker.generation.catalog.Catalog` has them."""

    @property
    def scripts(self) -> Mapping[str, Collection[str]]:
        """The engine's scripts by task, in any case."""

    @property
    def detectors(self) -> frozenset[str]:
        """ADetailer's detectors."""

    def sampler(self, name: str, scheduler: str | None, prefix: str = "") -> tuple[str, str | None]:
        """The engine's own names of both; raises InvalidInput for an unknown one."""


def check(
    scripts: Scripts,
    names: Names,
    task: str,
    *,
    has_picture: bool = False,
    script_name: str | None = None,
) -> None:
    """Check that this engine would draw all units of a job.

    Args:
        scripts: the job's `alwayson_scripts`.
        names: of the engine.
        task: of the job.
        has_picture: the job has a picture of its own, as img2img has.
        script_name: of the job.

    Raises:
        InvalidInput: the extension is not installed, or a unit would have no effect.
    """
    installed = {name.casefold() for name in names.scripts.get(task, ())}
    for name in scripts:
        if is_extension(name) and name.casefold() not in installed:
            raise _not_installed(name)
    units = read(scripts)
    if units.controlnet and script_name:
        raise InvalidInput(
            f"ControlNet beside script_name {shown(script_name)}: nothing in A1111's answer proves"
            " that it was applied.",
            hint="Leave out one of them.",
            field="script_name",
        )
    problems = [
        f"{_dotted((*place, problem[0]))} {problem[1]}"
        for place, unit in units.controlnet.items()
        if (problem := unit.problem(has_picture=has_picture))
    ]
    for place, detailer in units.adetailer.items():
        problems += _detailer(place, detailer, names)
    if problems:
        raise InvalidInput(joined(problems), problems=problems, field="alwayson_scripts")


def _not_installed(name: str) -> InvalidInput:
    kind = name.casefold()
    return InvalidInput(
        f"this engine does not have the extension {_SPELLED[kind]}.",
        hint=f"Build A1111's image with --build-arg {BUILD_ARGUMENTS[kind]}; docs/extensions.md.",
        field="alwayson_scripts",
    )


def _detailer(place: Place, unit: ADetailerUnit, names: Names) -> Iterator[str]:
    """What is wrong with a unit of ADetailer."""
    if problem := check_detector(unit.ad_model, names.detectors):
        yield f"{_dotted((*place, 'ad_model'))} {problem}"
    if unit.ad_use_sampler and unit.ad_sampler != "Use same sampler":
        given = None if unit.ad_scheduler == "Use same scheduler" else unit.ad_scheduler
        name, scheduler = names.sampler(unit.ad_sampler, given)
        if (name, scheduler) != (unit.ad_sampler, given):
            yield (
                f"{_dotted((*place, 'ad_sampler'))} is {shown(unit.ad_sampler)}: write"
                f" {name!r}, and ad_scheduler {scheduler or 'Use same scheduler'!r}"
            )
    for field_name in ("ad_prompt", "ad_negative_prompt"):
        where, text = _dotted((*place, field_name)), getattr(unit, field_name)
        if tags := tags_in(text):
            yield (
                f"{where} has the tag {shown(str(tags[0]))}: LoRAs belong into `prompt`, which is"
                " used where this field is empty or has [PROMPT]"
            )
        prompt_checks.check_structure(text, where)
        prompt_checks.check_weights(text, where)


# For the engine -------------------------------------------------------------------------------


def model_names(units: Units, files: Mapping[int, ModelFile]) -> dict[int, str]:
    """Number of a unit -> name of its model on the engine.

    Raises:
        InvalidInput: the job names another hash than the file has.
        ModelFileInvalid: a file cannot be read.
    """
    names = {number: file.listed_name() for number, file in files.items()}
    for number, (place, unit) in enumerate(units.controlnet.items()):
        found = _HASH.fullmatch(unit.model)
        if found and number in names and not names[number].endswith(f"[{found[2]}]"):
            raise InvalidInput(
                f"{_dotted((*place, 'model'))} = {shown(unit.model)}, but the store has"
                f" {names[number]!r}.",
                hint="Leave out the hash, or name the other file.",
                field="alwayson_scripts",
            )
    return names


def body(
    units: Units, models: Mapping[int, str], pictures: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The units as `alwayson_scripts` of A1111's API.

    Args:
        units: of the job.
        models: see `model_names`.
        pictures: field, as in `Units.pictures` -> base64.
    """
    scripts: dict[str, dict[str, Any]] = {}
    if units.controlnet:
        items = enumerate(units.controlnet.items())
        args = [_control(models.get(number), *item, pictures) for number, item in items]
        scripts[_SPELLED[CONTROLNET]] = {"args": args}
    if units.adetailer:
        flags = (True, len(units.flags) == _FLAGS and units.flags[-1])
        detailers = [unit.body() for unit in units.adetailer.values()]
        # A shorter list leaves the defaults in the other places, and the first one is a detector.
        unused = [{"ad_model": NONE}] * (MOST_UNITS[ADETAILER] - len(detailers))
        scripts[_SPELLED[ADETAILER]] = {"args": [*flags, *detailers, *unused]}
    return scripts


def _control(
    model: str | None, place: Place, unit: ControlNetUnit, pictures: Mapping[str, str]
) -> dict[str, Any]:
    """One unit; with its map, which proves that it was applied."""
    sent = unit.model_dump(exclude_unset=True, exclude={"image", "mask"})
    sent |= {"enabled": True, "save_detected_map": True, "model": model or NONE}
    named = {name: pictures.get(_dotted((*place, name))) for name in ("image", "mask")}
    return sent | {name: text for name, text in named.items() if text}
