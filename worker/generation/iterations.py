"""A job of several iterations as one request each, and their answers as one. Pure.

A1111 answers a request when all of its `n_iter` iterations are done. A job that streams sends each
iteration as a request of its own, so that its pictures can go out before the next one is drawn.
The pictures must be those of the whole request, bit for bit. In A1111 v1.9.3 (`processing.py`) an
iteration depends on its number only by its seeds: picture i has the seed plus i, or the seed alone
with a `subseed_strength`, and the subseed plus i. `why_whole` has the exceptions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from worker.generation.payload import Payload, has_script
from worker.generation.picture_answer import PictureAnswer

MOST_SEEDS = 2**32 - 2  # A1111 chooses a seed below this number for -1
_RANDOM = -1
_LATENT_NOISE = 2  # the `inpainting_fill` for which each iteration gets the first one's noise

# The scripts of A1111 v1.9.3, and the extensions whose units the worker knows. Every other script
# may act in each job, even if the job does not name it, and may look at all pictures of the job.
KNOWN_SCRIPTS = frozenset(
    {
        *("comments", "extra options", "hypertile", "refiner", "sampler", "seed"),
        *("soft inpainting", "controlnet", "adetailer"),
        # These run only for a job that names them.
        *("prompt matrix", "prompts from file or textbox", "x/y/z plot", "loopback", "sd upscale"),
        *("img2img alternative test", "outpainting mk2", "poor man's outpainting"),
    }
)

# What A1111's `info` has for each picture.
_OF_EACH = ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "infotexts")
# What the job sends otherwise when it is split.
_CHANGED: dict[str, int] = {"n_iter": 1, "seed": _RANDOM, "subseed": _RANDOM}


def why_whole(payload: Payload, scripts: Collection[str]) -> str | None:
    """Why the iterations of this request cannot be requests of their own; None if they can.

    Args:
        payload: the request.
        scripts: the engine's scripts for this task.
    """
    body = payload.body
    if has_script(body):
        return "script_name and alwayson_scripts may depend on the number of the picture"
    if body.get("save_images"):
        return "save_images adds a grid of all pictures"
    if body.get("mask") and body.get("inpainting_fill") == _LATENT_NOISE:
        return "with inpainting_fill = 2 all pictures begin with the first one's noise"
    if others := sorted({name.casefold() for name in scripts} - KNOWN_SCRIPTS):
        return f"the engine has the extension {others[0]!r}, which may change several pictures"
    return None


def split(payload: Payload, draw_seed: Callable[[], int]) -> list[Payload]:
    """One request for each iteration.

    Args:
        payload: the request; `why_whole` must have nothing against it.
        draw_seed: returns a random seed from 0 to `MOST_SEEDS` - 1.
    """
    body, expected = payload.body, payload.expected
    count, size = body.get("n_iter", 1), body.get("batch_size", 1)
    seed, subseed = (_fixed(body.get(name), draw_seed) for name in ("seed", "subseed"))
    step = 0 if body.get("subseed_strength") else size
    each = None if expected.images is None else expected.images // count
    return [
        replace(
            payload,
            body=body | {"n_iter": 1, "seed": seed + n * step, "subseed": subseed + n * size},
            expected=replace(expected, images=each),
        )
        for n in range(count)
    ]


def joined(payload: Payload, answers: Sequence[PictureAnswer]) -> PictureAnswer:
    """The answers to the requests of `split` as the answer to the whole request."""
    first = answers[0]
    if len(answers) == 1:
        return first
    facts = dict(first.facts)
    for name in _OF_EACH:
        if all(isinstance(one.facts.get(name), list) for one in answers):
            facts[name] = [item for one in answers for item in one.facts[name]]
    parts = [one.facts.get("extra_generation_params") or {} for one in answers]
    facts["extra_generation_params"] = {name: v for part in parts for name, v in part.items()}
    sent = {name: payload.body.get(name, usual) for name, usual in _CHANGED.items()}
    changed = {name: value for name, value in sent.items() if name in first.parameters}
    return PictureAnswer(
        images=[image for one in answers for image in one.images],
        parameters=first.parameters | changed,
        info=json.dumps(facts, ensure_ascii=False),
        facts=facts,
    )


def report_of_whole(
    report: Mapping[str, Any], number: int, count: int, elapsed: float
) -> dict[str, Any]:
    """A progress report of one iteration as a report of the whole job.

    Args:
        report: of iteration `number`, see `worker.service.report.Progress`.
        number: of the iteration, from 0.
        count: how many iterations the job has.
        elapsed: seconds since the first iteration began.
    """
    if count == 1 or (not number and "percent" not in report):
        return dict(report)
    done = (number + report.get("percent", 0.0) / 100) / count
    whole: dict[str, Any] = {**report, "phase": "generate", "percent": round(100 * done, 1)}
    if done:
        whole["eta_seconds"] = round(elapsed / done - elapsed, 1)  # as A1111 computes it
    step = f"step {report['step']} of {report['steps']}, " if "step" in report else ""
    return whole | {"message": f"{step}batch {number + 1} of {count}"}


def _fixed(seed: int | None, draw_seed: Callable[[], int]) -> int:
    return draw_seed() if seed in {None, _RANDOM} else int(seed or 0)
