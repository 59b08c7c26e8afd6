"""The names that this engine knows: samplers, schedulers, upscalers, scripts, styles.

They are read once, when the engine becomes ready, so that a job's names are checked without a
call. A1111 v1.9 accepts only a sampler's exact name, and ignores an unknown scheduler without an
error; callers send `DPM++ 2M Karras`, `euler_a`, `k_dpmpp_2m` and `sgm_uniform`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.errors import InvalidInput
from worker.generation.answers import an_object, number, objects, text, texts
from worker.shown import shown
from worker.spelling import near_matches

_DRAWING = ("txt2img", "img2img")  # the tasks that have scripts
_CLOSE = 0.8  # how similar a name must be to be suggested; another one makes another picture
# Upscalers without a model, which A1111 cannot fail to load; None does not enlarge.
WITHOUT_MODEL = frozenset({"None", "Lanczos", "Nearest"})
_USUAL_SCALE = 4.0  # of an upscaler's model, where the engine does not say it

# Always-on scripts of A1111 v1.9.3 that its API does not run (`setup_for_ui_only` in
# modules/scripts.py), and the fields that have their effect.
_PAGE_ONLY = {
    "refiner": "refiner_checkpoint and refiner_switch_at",
    "sampler": "steps, sampler_name and scheduler",
    "seed": "seed, subseed and subseed_strength",
}

Json = Any  # an answer of the engine; only `Catalog.from_answers` reads its fields


def canonical(name: str) -> str:
    """The same text for all spellings of one sampler.

    >>> canonical("DPM++ 2M SDE"), canonical("k_dpmpp_2m_sde"), canonical("Euler a")
    ('dpmpp2msde', 'dpmpp2msde', 'eulera')
    """
    name = name.casefold().replace("++", "pp")
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^k[_-]", "", name.strip()))


@dataclass(frozen=True)
class Style:
    """What a style adds to the prompt and to the negative prompt."""

    prompt: str = ""
    negative_prompt: str = ""

    @classmethod
    def from_answer(cls, item: Mapping[str, Any]) -> Style:
        """From an item of GET /prompt-styles; A1111's dividers have null for both texts."""
        return cls(*(str(item.get(name) or "") for name in ("prompt", "negative_prompt")))


def styled(prompt: str, texts: Iterable[str]) -> str:
    """The prompt with the styles' texts, as A1111 adds them: around `{prompt}`, or at the end."""
    for addition in texts:
        if "{prompt}" in addition:
            prompt = addition.replace("{prompt}", prompt)
        else:
            prompt = ", ".join(part for part in (prompt.strip(), addition.strip()) if part)
    return prompt


@dataclass(frozen=True)
class Catalog:
    """The engine's exact names, found by any common spelling.

    Attributes:
        samplers: canonical spelling -> exact name.
        schedulers: canonical spelling -> label, e.g. `sgmuniform` -> `SGM Uniform`.
        upscalers: the values of `hr_upscaler`.
        enlargers: the values of `upscaler_1` -> by how much their models enlarge a picture.
        scripts: by task, the values of `script_name` and `alwayson_scripts`, in lower case, as
            A1111 compares them.
        script_args: (task, script in lower case) -> how many arguments it takes, where the engine
            says so.
        styles: the values of `styles`, each with its texts.
        detectors: ADetailer's, the values of `ad_model`.
    """

    samplers: Mapping[str, str]
    schedulers: Mapping[str, str]
    upscalers: frozenset[str] = field(default_factory=frozenset)
    scripts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    script_args: Mapping[tuple[str, str], int] = field(default_factory=dict)
    styles: Mapping[str, Style] = field(default_factory=dict)
    detectors: frozenset[str] = field(default_factory=frozenset)
    enlargers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_answers(
        cls,
        *,
        samplers: Json,
        schedulers: Json,
        upscalers: Json = (),
        latent_modes: Json = (),
        scripts: Json = None,
        script_info: Json = (),
        styles: Json = (),
        detectors: Json = None,
    ) -> Catalog:
        """Build it from the answers of the routes with these names.

        Raises:
            LookupError, TypeError: an answer does not have A1111's fields.
        """
        upscaling = (*objects(list(upscalers)), *objects(list(latent_modes)))
        by_task = an_object(scripts or {})
        return cls(
            samplers=_spellings((text(s, "name"), _names(s, "name")) for s in objects(samplers)),
            schedulers=_spellings(
                (text(s, "label"), _names(s, "label", "name")) for s in objects(schedulers)
            ),
            upscalers=frozenset(text(u, "name") for u in upscaling),
            scripts={task: frozenset(texts(by_task.get(task), task)) for task in _DRAWING},
            script_args={
                (_DRAWING[bool(s.get("is_img2img"))], text(s, "name").casefold()): len(
                    objects(s.get("args") or [])
                )
                for s in objects(list(script_info))
            },
            styles={text(s, "name"): Style.from_answer(s) for s in objects(list(styles))},
            detectors=frozenset(texts(an_object(detectors or {}).get("ad_model"), "ad_model")),
            enlargers={
                text(u, "name"): number({"scale": u.get("scale") or _USUAL_SCALE}, "scale")
                for u in objects(list(upscalers))
            },
        )

    def sampler(self, name: str, scheduler: str | None, prefix: str = "") -> tuple[str, str | None]:
        """Exact sampler name and scheduler label for a caller's spelling.

        A scheduler at the end of the sampler's name is split off, the longest first:
        `DPM++ 2M SDE SGM Uniform` is SGM Uniform, not Uniform. `prefix` is `hr_` for the names of
        the second pass.

        Raises:
            InvalidInput: an unknown sampler or scheduler, or two different schedulers.
        """
        label = self.scheduler(scheduler, prefix) if scheduler else None
        exact = self.samplers.get(canonical(name))
        if exact:
            return exact, label
        for suffix in sorted(self.schedulers, key=len, reverse=True):
            exact = self.samplers.get(canonical(name).removesuffix(suffix))
            if exact and canonical(name).endswith(suffix):
                return exact, self._one_scheduler(name, self.schedulers[suffix], label, prefix)
        known = self.samplers.values()
        labels = set(self.schedulers.values()) - {"Automatic"}
        combined = (f"{n} {s}" for n in known for s in labels)
        own = self.schedulers.get(canonical(name))
        instead = f'It is a scheduler: send "{prefix}scheduler": "{own}".' if own else ""
        raise _unknown(f"{prefix}sampler_name", name, known, combined, instead=instead)

    def scheduler(self, name: str, prefix: str = "") -> str:
        """The scheduler's label; raises `InvalidInput` for an unknown one."""
        label = self.schedulers.get(canonical(name))
        if label is None:
            known = self.schedulers.values()
            raise _unknown(
                f"{prefix}scheduler", name, known, instead=self._as_sampler(name, prefix)
            )
        return label

    def _as_sampler(self, name: str, prefix: str) -> str:
        """What to do with a scheduler that is a sampler, as in other programs; or nothing."""
        try:
            sampler, label = self.sampler(name, None, prefix)
        except InvalidInput:
            return ""
        sent = {f"{prefix}sampler_name": sampler} | ({f"{prefix}scheduler": label} if label else {})
        return f"It is a sampler: send {json.dumps(sent)[1:-1]}."

    def check_script(
        self, task: str, field_name: str, value: str, args: Collection[object]
    ) -> None:
        """Check that the task has a script of this name, in any case, and the number of its `args`.

        With another number A1111 v1.9.3 answers 500, gives the values to other arguments, or drops
        the last ones. Always-on scripts have defaults for those that are not given.

        Raises:
            InvalidInput: names the script, or both numbers.
        """
        name, scripts = value.casefold(), self.scripts.get(task, frozenset())
        if field_name == "alwayson_scripts" and name in _PAGE_ONLY:
            raise InvalidInput(
                f"{field_name} {shown(value)} has an effect only on A1111's own page.",
                hint=f"Send {_PAGE_ONLY[name]} instead.",
                field=field_name,
            )
        if name not in {script.casefold() for script in scripts}:
            near = near_matches(value, scripts, cutoff=_CLOSE)
            known = f"Known: {', '.join(map(repr, sorted(scripts))) or 'none'}."
            raise InvalidInput(
                f"this engine does not know {field_name} {shown(value)}: it has no such script,"
                " and a job cannot install extensions.",
                hint=f"Did you mean {' or '.join(map(repr, near))}?" if near else known,
                field=field_name,
                near=near,
            )
        count, given = self.script_args.get((task, name)), len(args)
        if count is None or given == count or (field_name == "alwayson_scripts" and given < count):
            return
        raise InvalidInput(
            f"script {shown(value)} takes {count} arguments, but the job has {given}.",
            hint="Send one value for each; the task `scripts` lists them in `args`.",
            field="script_args" if field_name == "script_name" else field_name,
        )

    @property
    def with_models(self) -> set[str]:
        """The upscalers that need a model; A1111 reports them also where it has none."""
        return set(self.enlargers) - WITHOUT_MODEL

    def check(self, field_name: str, value: str, known: Collection[str]) -> None:
        """Raise `InvalidInput` with near matches if the value is unknown."""
        if value not in known:
            raise _unknown(field_name, value, known)

    def _one_scheduler(self, name: str, in_name: str, given: str | None, prefix: str) -> str:
        if given and given not in (in_name, "Automatic"):
            raise InvalidInput(
                f"{prefix}sampler_name {shown(name)} names scheduler {in_name!r}, but"
                f" {prefix}scheduler is {given!r}.",
                hint="Leave out one of them.",
                field=f"{prefix}scheduler",
            )
        return in_name


def _names(entry: Mapping[str, Any], *keys: str) -> list[str]:
    """All names of a sampler or scheduler; `aliases` may be null."""
    return [*(text(entry, key) for key in keys), *texts(entry["aliases"], "aliases")]


def _spellings(entries: Iterable[tuple[str, list[str]]]) -> dict[str, str]:
    return {canonical(spelling): name for name, spellings in entries for spelling in spellings}


def _unknown(
    field_name: str,
    value: str,
    known: Iterable[str],
    further_spellings: Iterable[str] = (),
    instead: str = "",
) -> InvalidInput:
    known = sorted(set(known))
    near = [] if instead else near_matches(value, {*known, *further_spellings}, cutoff=_CLOSE)
    if instead:
        hint = instead
    elif near:
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    else:
        hint = f"Known: {', '.join(map(repr, known)) or 'none on this engine'}."
    return InvalidInput(
        f"this engine does not know {field_name} {shown(value)}.",
        hint=hint,
        field=field_name,
        near=near,
    )
