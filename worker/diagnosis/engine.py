"""The engine and the handler: the files of start.sh, the port, and what the engine answers."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from worker import kept_log
from worker.config.ports import is_answered
from worker.diagnosis.place import Place
from worker.files import read_small

_STATE_FILES = ("engine", "engine.ready", "engine.checkpoint", "engine.restart")
_SECONDS = 4.0  # for one answer
_LARGEST = 4 << 20  # bytes of one
# Options of A1111 beyond those that the worker sets.
_OPTIONS = (
    *("sd_model_checkpoint", "sd_checkpoint_hash", "sd_checkpoints_limit", "sd_vae"),
    *("sd_checkpoints_keep_in_cpu", "cross_attention_optimization", "CLIP_stop_at_last_layers"),
    *("upcast_attn", "fp8_storage", "auto_vae_precision", "samples_save", "sd_unet"),
)


def state(place: Place) -> Iterator[str]:
    """What start.sh and the handler have written into RUN_DIR."""
    yield f"RUN_DIR {place.run_dir}"
    for name in _STATE_FILES:
        yield f"{name}: {_content(place.run_dir / name)}"
    path = place.run_dir / kept_log.HEALTH
    try:
        age = time.time() - path.stat().st_mtime
    except OSError as error:
        yield f"{kept_log.HEALTH}: {error.strerror}; the handler writes it when it is ready"
        return
    yield f"{kept_log.HEALTH}, written {age:.0f} s ago:"
    try:
        yield json.dumps(json.loads(_content(path, 64 << 10)), indent=1)
    except (ValueError, RecursionError):
        yield _content(path, 64 << 10)


def _content(path: Path, longest: int = 1000) -> str:
    try:
        return read_small(path).decode(errors="replace").rstrip()[:longest]
    except OSError as error:
        return error.strerror or str(error)


def answers(place: Place) -> Iterator[str]:
    """Whether the engine answers, and what."""
    parts = urlsplit(place.engine_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    yield f"engine {place.engine} at port {port} of {parts.hostname}"
    is_there = is_answered(parts.hostname or "", port, _SECONDS)
    yield "a program accepts connections there" if is_there else "no program accepts connections"
    if not is_there:
        return
    for route, shown in (
        ("progress?skip_current_image=true", _progress),
        ("memory", json.dumps),
        ("options", _options),
        ("sd-models", _count),
        ("loras", _count),
    ):
        yield f"GET /sdapi/v1/{route}: "
        try:
            began = time.monotonic()
            answer = _get(f"{place.engine_url.rstrip('/')}/sdapi/v1/{route}")
            yield f"    after {time.monotonic() - began:.2f} s: {shown(answer)}"
        except TimeoutError:
            yield f"    no answer within {_SECONDS:g} s: it hangs, or it computes"
            return
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", None)
            if isinstance(error, URLError) and isinstance(reason, TimeoutError):
                yield f"    no answer within {_SECONDS:g} s: it hangs, or it computes"
                return
            yield f"    {type(error).__name__}: {error}"


def _get(url: str) -> Any:  # noqa: ANN401 - JSON
    """The JSON answer of the operator's own engine, without a proxy."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(  # noqa: S310 - http or https, as the settings check
        urlunsplit(parts._replace(netloc=host))
    )
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        coded = base64.b64encode(login.encode()).decode()
        request.add_header("Authorization", f"Basic {coded}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_SECONDS) as answer:
        return json.loads(answer.read(_LARGEST))


def _progress(answer: Any) -> str:  # noqa: ANN401 - JSON
    found = answer if isinstance(answer, dict) else {}
    state = found.get("state")
    names = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "interrupted")
    kept = {name: state.get(name) for name in names} if isinstance(state, dict) else None
    return json.dumps({"progress": found.get("progress"), "state": kept})


def _options(answer: Any) -> str:  # noqa: ANN401 - JSON
    """Those that the worker sets or relies on, and a few more; others may be anything."""
    from worker.config.webui_config import (  # noqa: PLC0415 - the bridge has no engine
        OF_EXTENSIONS,
        OVERRIDABLE,
        RELIED_ON,
    )

    names = sorted({*_OPTIONS, *OVERRIDABLE, *RELIED_ON, *OF_EXTENSIONS})
    found = answer if isinstance(answer, dict) else {}
    return json.dumps({name: found[name] for name in names if name in found})


def _count(answer: Any) -> str:  # noqa: ANN401 - JSON
    return f"{len(answer)} entries" if isinstance(answer, list) else "no list"
