"""Every error code, produced by the real handler; what the log and `health` show of each.

    PYTHONPATH=tests python -m fakes.error_codes     writes docs/errors.json

The engine is the fake A1111, which nothing restarts, and the hosts are fakes. An error that none of
them can cause is raised by the part that raises it: see `RAISED`.
"""

import asyncio
import base64
import errno
import functools
import itertools
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

import handler
from fakes import model_files
from fakes.a1111.picture import png
from fakes.a1111.process import A1111, running_a1111, wait_until, write_safetensors
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_store import AT_ONCE, PROJECT, environment_for
from fakes.quick_handler import QUICK
from gateway.local.jobs import LocalJobs
from model_manager import ModelManager
from worker import errors
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.errors import WorkerEnding, WorkerError
from worker.http.client import HttpLimits
from worker.job.template_file import Templates
from worker.models.download.limits import DownloadLimits
from worker.runpod.results import ResultPoster
from worker.runpod.timing import TransportTiming
from worker.webui.runner import Runner

RECORDED = PROJECT / "docs" / "errors.json"
SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 1}
BOTH = SMALL | {"checkpoint": "second", "loras": ["detail"]}
FOREVER = -1
CODES = sorted({kind.code for kind in vars(errors).values() if hasattr(kind, "code")})
# Of `health`: the others change with every job.
HEALTH = ("worker.jobs.failures", "engine.ready", "engine.restarts", "engine.retiring")

Record = dict[str, list[str]]


class Lines(logging.Handler):
    """The warnings and errors of the worker, without what differs from job to job."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the message with `...` in the place of its values."""
        given = iter(record.args if isinstance(record.args, tuple) else (record.args,))
        text = re.sub("%[-+0-9.]*[a-z]", lambda _: _shown(next(given, None)), str(record.msg))
        line = f"{record.levelname} {text}"
        if line not in self.lines[-1:]:  # attempts of a download repeat it
            self.lines.append(line)


def _shown(value: Any) -> str:
    return f"{value.code}: ..." if isinstance(value, WorkerError) else "..."


@contextmanager
def noted():
    """The lines that are logged in the body."""
    lines, logger = Lines(), logging.getLogger("worker")
    before = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield lines.lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class World:
    """The hosts, and an engine with two checkpoints, for one code after the other.

    Attributes:
        settings: more variables for the next worker.
        faults: those of its engine, once it is ready.
        raising: method of a part of the worker -> what it raises.
    """

    def __init__(self, folder: Path, hosts: ModelHosts, engine: A1111) -> None:
        self.folder, self.hosts, self.engine = folder, hosts, engine
        self.settings: dict[str, str] = {}
        self.raising: dict[str, BaseException] = {}
        self.faults: list[dict[str, Any]] = []
        self._files: list[Path] = []
        self._numbers = itertools.count(100)

    def clean(self) -> None:
        """Undo what a code has needed."""
        self.settings, self.raising, self.faults = {}, {}, []
        for file in self._files:
            file.unlink()
        self._files = []
        self.hosts.reset()
        requests.delete(f"{self.engine.url}/_fake/faults", timeout=30).raise_for_status()
        wait_until(lambda: not self.engine.get("progress").json()["state"]["job"], "an idle engine")

    def file(self, name: str, content: bytes) -> Any:
        """A job whose checkpoint is a file with this content."""
        path = self.folder / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._files.append(path)
        return SMALL | {"checkpoint": path.name}

    def host(self, fault: str, **more: Any) -> Any:
        """A job whose checkpoint's host has a fault."""
        number = next(self._numbers)
        data = model_files.safetensors(model_files.SD1, number=number, size=10_000)
        self.hosts.add_model(version_id=number, model_id=number, data=data)
        if fault:
            self.hosts.fault(fault, **more)
        return SMALL | {"checkpoint": f"civitai:{number}@{number}"}

    def handler(self) -> Any:
        """A new handler, once its engine is ready."""
        environ = environment_for(self.hosts, self.folder) | {
            "ENGINE": "external",
            "WEBUI_URL": self.engine.url,
            "WEBUI_DIR": str(self.folder / "engine"),
        }
        settings = Settings.from_environ(environ | self.settings)
        _, engine = handler.build(settings, QUICK)
        limits = HttpLimits(**AT_ONCE), DownloadLimits(**AT_ONCE)
        models = ModelManager(settings, *limits)
        built = handler.Handler(settings, engine, models, Templates(None))
        engine.boot(60)
        for fault in self.faults:
            self.engine.fault(**fault)
        return built

    def run(self, job_input: Any) -> tuple[dict[str, Any], Record]:
        """Run a job in a new handler; its answer, and what log and health show of it."""
        return asyncio.run(self._story(self.handler(), job_input))

    async def _story(self, built: Any, job_input: Any) -> tuple[dict[str, Any], Record]:
        before = await self._health(built)
        with noted() as lines, self._raising(built):
            answer = await built({"id": "job-1", "input": job_input})
        after = await self._health(built)
        changed = [f"{name} = {after[name]}" for name in after if after[name] != before.get(name)]
        return answer, {"log": lines, "health": changed}

    async def _health(self, built: Any) -> dict[str, str]:
        answer = await built({"id": "ask", "input": {"task": "health"}})
        return dict(_flat(answer, ""))

    @contextmanager
    def _raising(self, built: Any):
        """Let a part of the worker raise, where no fake can cause its error."""
        with ExitStack() as stack:
            for name, error in self.raising.items():
                owner: Any = {"models": built.worker.models, "runner": Runner}[name.split(".")[0]]
                method = name.split(".")[1]

                def fail(*_: Any, error: BaseException = error, **__: Any) -> Any:
                    raise error

                stack.callback(setattr, owner, method, getattr(owner, method))
                setattr(owner, method, fail)
            yield


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    """The values of `health` that are noted, by their dotted names."""
    if isinstance(value, dict):
        return [
            pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}".lstrip("."))
        ]
    if not name.startswith(HEALTH):
        return []
    return [(name, "..." if isinstance(value, str) else json.dumps(value))]


# Each code ----------------------------------------------------------------------------------------


def mismatch(world: World) -> Any:
    kinds = ((11, model_files.SDXL, "Checkpoint"), (12, model_files.LORA, "LORA"))
    for number, shapes, kind in kinds:
        data = model_files.safetensors(shapes, number=number)
        world.hosts.add_model(version_id=number, model_id=number, data=data, kind=kind)
    return SMALL | {"checkpoint": 11, "loras": ["12"]}


def engine_fault(fault: str, job: Any = SMALL, **more: Any) -> Callable[[World], Any]:
    def scenario(world: World) -> Any:
        world.faults = [{"fault": fault, "times": FOREVER, **more}]
        return job

    return scenario


def host_fault(fault: str, **more: Any) -> Callable[[World], Any]:
    return lambda world: world.host(fault, **more)


def picture(url: str) -> Any:
    return SMALL | {"task": "img2img", "init_images": [url], "timeout": 5}


def slow_picture(world: World) -> Any:
    world.hosts.fault("server_error", role="web")
    return picture(world.hosts.add_web("/a.png", b"x"))


def not_writable(world: World) -> Any:
    """A file stands in the place of a folder: root may write everywhere."""
    folder = world.folder / "models/fetched/leases"
    if folder.is_dir():
        folder.rename(folder.with_name("leases.before"))
    world.file("fetched/leases", b"")
    return world.host("")


def no_checkpoint(world: World) -> Any:
    """The last one: the engine has none after it."""
    for path in world.folder.rglob("*.safetensors"):
        path.unlink()
    world.engine.post("refresh-checkpoints")
    return SMALL


def put(world: World) -> Any:
    """The upload is refused, and the result would be too large."""
    world.settings = {"RESULT_LIMIT_MB": "0.0005"}
    url = world.hosts.add_web("/put.png", b"x")
    world.hosts.fault("status", role="web", times=100, status=403)
    return SMALL | {"output": {"delivery": "put", "urls": [url]}}


def too_large(world: World) -> Any:
    world.settings = {"RESULT_LIMIT_MB": "0.0005"}
    return SMALL


def store_full(world: World) -> Any:
    world.settings = {"MODELS_BUDGET_GB": "0.000001"}
    return world.host("")


def not_listed(world: World) -> Any:
    """The engine reads another folder than the worker fills."""
    world.settings = {"WEBUI_DIR": str(world.folder / "another")}
    return world.host("")


def slow(world: World) -> Any:
    world.faults = [{"fault": "slow_steps", "seconds": 1, "times": FOREVER}]
    return SMALL | {"steps": 100, "timeout": 2}


def raised(part: str, error: BaseException, job: Any = SMALL) -> Callable[[World], Any]:
    def scenario(world: World) -> Any:
        world.raising = {part: error}
        return job

    return scenario


PREPARE, RUN = "models.prepare_models_for_request", "runner.run"
PICTURE = base64.b64encode(png(64, 64, b"\xff\xff\xff", "")).decode()
STORE = "Stable-diffusion"

# No fake can cause these, or only with a second process beside it.
RAISED = {
    "REQUEST_REFUSED": raised(RUN, errors.EngineRefused("the engine refused it.")),
    "FETCH_STOPPED": raised(PREPARE, errors.FetchStopped("the download was stopped.")),
    "ENGINE_NOT_READY": raised(RUN, errors.EngineNotReady("the engine's process ended.")),
    "WRONG_VAE": raised(RUN, errors.WrongVae("expected VAE 'a'.")),
    "UNIT_NOT_APPLIED": raised(RUN, errors.UnitNotApplied("controlnet[0]: no picture.")),
    "INTERNAL_ERROR": raised(PREPARE, RuntimeError("a bug")),
    "MACHINE_EXHAUSTED": raised(PREPARE, OSError(errno.EMFILE, "Too many open files")),
}
CAUSED: dict[str, Callable[[World], Any]] = {
    "INVALID_INPUT": lambda _: SMALL | {"stepz": 9},
    "TEMPLATE_NOT_FOUND": lambda _: SMALL | {"template": "unknown"},
    "MODEL_NOT_FOUND": lambda _: SMALL | {"checkpoint": "frist"},
    "MODEL_FILE_INVALID": lambda w: w.file(f"{STORE}/a.safetensors", model_files.HTML),
    "MODEL_NOT_SUPPORTED": lambda w: w.file(f"{STORE}/b.safetensors", model_files.GGUF),
    "MODEL_UNSAFE": lambda w: w.file(f"{STORE}/c.safetensors", model_files.PICKLE),
    "MODEL_MISMATCH": mismatch,
    "MODEL_URL_REFUSED": host_fault("redirect_loop"),
    "IMAGE_URL_REFUSED": lambda _: picture("http://127.0.0.1:1/secret.png"),
    "MODEL_FORBIDDEN": host_fault("downloads_disabled"),
    "MODEL_EARLY_ACCESS": host_fault("early_access"),
    "MODEL_ARCHIVED": host_fault("archived"),
    "MODEL_LOGIN_REQUIRED": host_fault("login_required"),
    "MODEL_REGION_BLOCKED": host_fault("region_blocked"),
    "MODEL_RATE_LIMITED": host_fault("rate_limited", retry_after=3600),
    "MODEL_HASH_MISMATCH": host_fault("corrupt", offset=5000),
    "MODEL_HOST_FAILED": host_fault("server_error", retry_after=3600),
    "IMAGE_HOST_FAILED": slow_picture,
    "ENGINE_MODEL_MISSING": lambda _: {"task": "interrogate", "image": PICTURE},
    "OUT_OF_MEMORY": engine_fault("out_of_memory"),
    "RESULT_TOO_LARGE": too_large,
    "STORE_FULL": store_full,
    "STORE_NOT_WRITABLE": not_writable,
    "ENGINE_ROUTE_MISSING": engine_fault("no_route"),
    "ENGINE_CONNECTION_LOST": engine_fault("drop"),
    "ENGINE_POISONED": engine_fault("cuda_fault"),
    "ENGINE_CACHE_DAMAGED": engine_fault("sqlite"),
    "MODEL_NOT_LISTED": not_listed,
    "ENGINE_ERROR": engine_fault("internal_error", error="ValueError", errors="odd"),
    "WRONG_CHECKPOINT": engine_fault("wrong_checkpoint", BOTH),
    "LORA_NOT_APPLIED": engine_fault("missing_lora", BOTH),
    "WRONG_DRAWING": engine_fault(
        "mask_ignored",
        SMALL | {"task": "img2img", "init_images": [PICTURE], "mask": PICTURE},
    ),
    "INCOMPLETE_ANSWER": engine_fault("no_images"),
    "DELIVERY_FAILED": put,
    "BATCH_FAILED": lambda _: {"task": "batch", "inputs": [SMALL | {"stepz": 9}]},
    "JOB_TIMEOUT": slow,
}
SCENARIOS = CAUSED | RAISED | {"NO_CHECKPOINT": no_checkpoint}


@contextmanager
def world():
    """The world, with its hosts and its engine."""
    with ModelHosts() as hosts, tempfile.TemporaryDirectory(prefix="codes-") as folder:
        for name in ("first", "second"):
            path = Path(folder, "models/Stable-diffusion", f"{name}.safetensors")
            write_safetensors(path, name.encode())
        write_safetensors(Path(folder, "models/Lora/detail.safetensors"))
        ModelManager(
            Settings.from_environ(
                environment_for(hosts, Path(folder)) | {"WEBUI_DIR": f"{folder}/engine"}
            )
        ).link_everything()
        with running_a1111(Path(folder, "engine")) as engine:
            yield World(Path(folder), hosts, engine)


def record(of: World, code: str) -> Record:
    """Produce the code; what the log and `health` show of it."""
    try:
        answer, found = of.run(SCENARIOS[code](of))
    finally:
        of.clean()
    assert answer.get("code") == code, answer
    return found


# Codes that are no answer of the handler ----------------------------------------------------------


def bad_configuration(_: World) -> Record:
    """handler.py ends before there is a log: the line is all."""
    done = subprocess.run(
        [sys.executable, "handler.py"],
        cwd=PROJECT,
        env={"ENGINE": "comfy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_BAD_CONFIGURATION
    return {
        "log": [re.sub(": .*", ": ...", line) for line in done.stderr.splitlines()],
        "health": [],
    }


def result_refused(_: World) -> Record:
    """The job has ended for the handler: RunPod does not take its result."""

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=413 if (await request.json()).get("output") == "big" else 200)

    async def story() -> bool:
        app = web.Application()
        app.router.add_post("/{path:.*}", refuse)
        async with TestServer(app) as server, ClientSession() as session:
            poster = ResultPoster(session, f"{server.make_url('/done')}/$ID?x=y", TransportTiming())
            return await poster.post_result("job-1", {"output": "big"})

    with noted() as lines:
        assert asyncio.run(story())
    return {"log": lines, "health": []}


def worker_ending(of: World) -> Record:
    """The server ends while a job runs and another one waits."""
    job = slow(of) | {"timeout": 60}
    built = of.handler()

    async def story() -> Any:
        counters = built.worker.counters
        jobs = LocalJobs(built, aborted=functools.partial(handler.count_aborted, counters))
        jobs.begin()
        states = [await jobs.submit({"input": job}) for _ in range(2)]
        while not counters.running_count:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.05)
        await jobs.end(WorkerEnding("this worker is shutting down."), 0)
        ended = [await jobs.state(one.id) for one in states]
        assert all(one.error.startswith("WORKER_ENDING: ") for one in ended), ended
        while counters.running_count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return built.worker.counters.jobs().failures

    try:
        with noted() as lines:
            failures = asyncio.run(story())
    finally:
        of.clean()
    return {"log": lines, "health": [f"worker.jobs.failures.{name} = 1" for name in failures]}


OTHERS = {
    "BAD_CONFIGURATION": bad_configuration,
    "RESULT_REFUSED": result_refused,
    "WORKER_ENDING": worker_ending,
}
# `model_manager.py push` prints it; tests/models/volume/test_push.py has its causes.
PRINTED = {"VOLUME_FAILED": {"log": ["(printed by model_manager.py push)"], "health": []}}


def record_any(of: World, code: str) -> Record:
    """What log and `health` show of a code."""
    return OTHERS[code](of) if code in OTHERS else record(of, code)


if __name__ == "__main__":
    with world() as it:
        every = PRINTED | {code: record_any(it, code) for code in (*OTHERS, *SCENARIOS)}
    RECORDED.write_text(json.dumps(every, indent=2, sort_keys=True) + "\n")
