"""Job inputs of other workers as ours, where they mean the same. Pure.

    {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": {"prompt": "a fox"}}
    {"prompt": "a fox", "num_inference_steps": 25, "guidance_scale": 7.5}
    {"workflow": {"3": {"class_type": "KSampler", "inputs": {...}}, ...}}

The first is the form of ashleykleynhans/runpod-worker-a1111, the second that of
runpod-workers/worker-sdxl, the third that of runpod-workers/worker-comfyui, which is refused with
the job to send instead. Anything else comes back as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from worker.clients.foreign_fields import task_instead
from worker.clients.nothing_asked import is_blank
from worker.errors import InvalidInput
from worker.job.problems import check_size
from worker.shown import shown, without_secrets
from worker.translation import comfy_workflow, diffusers_job
from worker.translation.a1111_body import capped, to_job

_LONGEST_ROUTE = 80
_LONGEST_JSON = 700  # characters of a job in a message
_DRAWING = ("txt2img", "img2img")

Titles = Mapping[str, str]
_NO_TITLES: Titles = {}


class Understood(NamedTuple):
    """A job's input in our own form.

    Attributes:
        notes: warnings about what was read as what, and what has no effect.
    """

    input: object
    notes: tuple[str, ...] = ()


def understood(job_input: object, titles: Titles = _NO_TITLES) -> Understood:
    """The input in our own form.

    Args:
        job_input: what the caller has sent, unchecked.
        titles: display name of a template -> its name.

    Raises:
        InvalidInput: it has no counterpart here; the hint names what to send instead.
    """
    task = job_input.get("task") if isinstance(job_input, Mapping) else None
    if not isinstance(job_input, Mapping) or not (is_blank(task) or task in _DRAWING):
        return Understood(job_input)
    check_size(job_input)
    if is_blank(task) and isinstance(job_input.get("api"), Mapping):
        return _of_route(job_input, titles)
    if isinstance(job_input.get("workflow"), Mapping):
        raise _workflow_refused(job_input["workflow"])
    job, notes = diffusers_job.as_a1111(job_input)
    return Understood(job, tuple(capped(notes)))


# {"api": ..., "payload": ...} ---------------------------------------------------------------------

# Routes whose answer is a list or a state; ours has another form.
_LISTS = {
    *("models", "loras", "vaes", "embeddings", "samplers", "schedulers", "upscalers", "scripts"),
    *("styles", "health"),
}
_WITH_PAYLOAD = {"txt2img", "img2img", "upscale", "png_info", "interrogate"}
_READ = {"options": "health", "progress": "health"}  # GET: the loaded checkpoint; the running jobs

# Folders of A1111 -> the field of `prefetch` for a file in it.
_FOLDERS = {
    "stable-diffusion": "checkpoint",
    "lora": "loras",
    "vae": "vae",
    "embeddings": "embeddings",
}


def _of_route(job_input: Mapping[str, Any], titles: Titles) -> Understood:
    api = job_input["api"]
    endpoint = api.get("endpoint")
    if not isinstance(endpoint, str):
        return Understood(job_input)  # refused by name
    word = endpoint[:_LONGEST_ROUTE]
    route = word.strip().casefold().strip("/").removeprefix("sdapi/v1/").partition("?")[0]
    is_get = str(api.get("method")).strip().upper() == "GET"
    task = (_READ.get(route) if is_get else None) or task_instead(word)
    found = _as_job(endpoint, route, task, job_input, titles)
    if found is None:
        return Understood(job_input)  # refused with a sentence
    job, notes, form = found
    beside = {name: one for name, one in job_input.items() if name not in {"api", "payload"}}
    what = f"api.endpoint {shown(endpoint)} was read as the task {task!r}{form}."
    return Understood(_joined(job, beside), (what, *notes))


def _as_job(
    endpoint: str, route: str, task: str, job_input: Mapping[str, Any], titles: Titles
) -> tuple[dict[str, Any], list[str], str] | None:
    """The job for this route, its notes, and what is different in the answer; None without one.

    Raises:
        InvalidInput: there is none, and the hint names what to send instead.
    """
    payload = _payload(job_input, is_needed=task in _WITH_PAYLOAD)
    if task in _WITH_PAYLOAD:
        job, notes = to_job(task, payload, {}, titles)
        return job, notes, ": the answer has `images`" if task == "upscale" else ""
    if task in _LISTS:
        return {"task": task}, [], ": the answer has the form of this worker"
    if route == "options":
        raise _options_refused(payload)
    if route == "v1/sync":
        raise _sync_refused(payload)
    if task == "prefetch":
        return _download(endpoint, payload), [], ": the file is put into the model store"
    return None


def _payload(job_input: Mapping[str, Any], *, is_needed: bool) -> Mapping[str, Any]:
    if is_needed and "payload" not in job_input:
        raise InvalidInput("payload is missing.", hint="Send the fields of A1111 in it.")
    payload = job_input.get("payload")
    if payload is None:
        return {}
    if not isinstance(payload, Mapping):
        raise InvalidInput(f"payload = {shown(payload)} is not an object.", field="payload")
    return payload


def _joined(job: dict[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The job with what stands beside `payload`, such as `output` and `timeout`."""
    for name, value in beside.items():
        if is_blank(value):
            continue
        if name in job and job[name] != value:
            raise InvalidInput(
                f"{name} = {shown(value)} stands beside payload, and {name} ="
                f" {shown(job[name])} in it.",
                hint="Send it once.",
                field=name,
            )
        job[name] = value
    return job


def _options_refused(payload: Mapping[str, Any]) -> InvalidInput:
    """A1111 keeps an option for all later jobs; here each job has its own."""
    job, _ = to_job("txt2img", {"override_settings": dict(payload)})
    del job["task"]
    instead = f"Send in each job that draws: {_as_text(job)}." if job else "Leave this job out."
    return InvalidInput(
        "api.endpoint '/sdapi/v1/options' sets options for all later jobs, and a job here has only"
        " its own.",
        hint=instead,
        field="api",
        instead=without_secrets(job),
    )


def _sync_refused(payload: Mapping[str, Any]) -> InvalidInput:
    repository = payload.get("repo_id")
    repo = repository.strip("/") if isinstance(repository, str) and repository else "org/repo"
    return InvalidInput(
        "api.endpoint '/v1/sync' fetches a whole repository, and a job here names models.",
        hint='Send {"task": "prefetch"} with a file of it, such as'
        f" {shown(f'{repo}/model.safetensors', 200)}, in `checkpoint`, `loras`, `vae` or"
        " `embeddings`. The endpoint's HF_TOKEN is its login.",
        field="api",
    )


def _download(endpoint: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The task `prefetch` for a file of a kind that jobs can name.

    Raises:
        InvalidInput: names the fields of `prefetch`.
    """
    url, path = payload.get("source_url"), payload.get("download_path")
    folders = PurePosixPath(path[:4096].replace("\\", "/")).parts if isinstance(path, str) else ()
    field = next(
        (_FOLDERS[one] for one in map(str.casefold, folders[:-1]) if one in _FOLDERS), None
    )
    if field is None or not isinstance(url, str):
        raise InvalidInput(
            f"api.endpoint = {shown(endpoint)} puts any file anywhere; a job here names models.",
            hint='Send {"task": "prefetch"} with the URL, or org/repo/file of Hugging Face, in'
            " `checkpoint`, `loras`, `vae` or `embeddings`; only the endpoint's operator can put"
            " other files there.",
            field="api",
        )
    model = {"url": url, "filename": folders[-1]}
    named = [model] if field in {"loras", "embeddings"} else model
    return {"task": "prefetch", "template": None, field: named}


# ComfyUI ------------------------------------------------------------------------------------------


def _workflow_refused(workflow: Mapping[str, Any]) -> InvalidInput:
    message = "workflow is a graph of ComfyUI, and this worker runs A1111."
    job = comfy_workflow.job_of(workflow)
    if job:
        return InvalidInput(
            message,
            hint=f"Send this input instead: {_as_text(job)}.",
            field="workflow",
            instead=without_secrets(job),
        )
    unknown = comfy_workflow.kinds(workflow)[:6]
    why = (
        f" There is no counterpart of its nodes {', '.join(map(shown, unknown))}."
        if unknown
        else ""
    )
    return InvalidInput(
        f"{message}{why}",
        hint='Send A1111\'s fields, such as {"prompt": "a fox", "steps": 25}; `checkpoint` and'
        " `loras` name the models.",
        field="workflow",
    )


def _as_text(job: Mapping[str, Any]) -> str:
    text = json.dumps(without_secrets(job), ensure_ascii=False)
    return text if len(text) <= _LONGEST_JSON else f"{text[:_LONGEST_JSON]}... (all in `instead`)"
