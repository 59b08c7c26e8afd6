"""Faults of RunPod's plane, of the model hosts, of picture hosts, and of the places of delivery."""

import random
import time
from typing import Any

from campaign.catalogue import Fault, Heal, Inject
from campaign.world import World

HOST = frozenset({"MODEL_HOST_FAILED"})
REFUSED = frozenset({"RESULT_REFUSED"})
IMAGE = frozenset({"IMAGE_HOST_FAILED", "IMAGE_URL_REFUSED", "INVALID_INPUT"})
FAILED = frozenset({"DELIVERY_FAILED"})
STORAGE, SITES = ("storage", "hf_cdn", "web"), ("civitai", "huggingface", "web")
HASHED = ("storage", "hf_cdn")  # a plain host tells no hash, so nobody can notice its wrong byte

# The plane ---------------------------------------------------------------------------------------


def _plane(route: str, most: int = 3, **how: Any) -> Inject:
    def inject(world: World, rng: random.Random) -> Heal:
        world.plane.fault(route, times=rng.randint(1, most), **how)
        return world.plane.no_faults

    return inject


def _deliver_twice(world: World, rng: random.Random) -> None:
    """RunPod delivers a job again that is running, or that has just ended."""
    given = [job for event in world.plane.events("given") for job in event["ids"]]
    if given:
        world.plane.deliver_again(rng.choice(given[-4:]))


def _end_jobs(how: str) -> Inject:
    """Cancel the jobs, or let their time be over; some of them, or all."""

    def inject(world: World, rng: random.Random) -> None:
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
        for event in world.plane.events("submit"):
            if world.plane.status(event["id"])["status"] not in ended and rng.random() < 0.8:
                getattr(world.plane, how)(event["id"])

    return inject


PLANE = [
    Fault("plane: job-take answers 500", _plane("job-take", 4)),
    Fault("plane: job-take answers 429", _plane("job-take", 1, status=429)),
    Fault("plane: job-take dropped", _plane("job-take", 4, drop=True)),
    Fault("plane: job-take slow", _plane("job-take", delay=1.5, status=200)),
    Fault("plane: result answered 502", _plane("job-done", 4, status=502)),
    Fault("plane: result answered 429", _plane("job-done", 2, status=429)),
    Fault("plane: result dropped", _plane("job-done", 3, drop=True)),
    Fault("plane: result taken, answer lost", _plane("job-done", 3, drop=True, is_done=True)),
    Fault("plane: result slow", _plane("job-done", delay=1.5, status=200)),
    Fault("plane: result refused", _plane("job-done", 1, status=400), REFUSED),
    Fault("plane: stream answers 500", _plane("job-stream", 3)),
    Fault("plane: stream taken, answer lost", _plane("job-stream", 3, drop=True, is_done=True)),
    Fault("plane: stream slow", _plane("job-stream", delay=1.0, status=200)),
    Fault("plane: stop signals answered 500", _plane("job-stop", 3)),
    Fault("plane: ping fails", _plane("ping", 3, drop=True)),
    Fault("plane: job delivered twice", _deliver_twice, weight=2),
    Fault("plane: jobs cancelled", _end_jobs("cancel"), weight=2),
    Fault("plane: jobs timed out", _end_jobs("time_out")),
]


def _late_stops(world: World, rng: random.Random) -> Heal:
    world.plane.fault("job-stop", status=200, delay=2.0, times=3)
    _end_jobs("cancel")(world, rng)
    return world.plane.no_faults


PLANE.append(Fault("plane: jobs cancelled, stop signals late", _late_stops))

# Hosts -------------------------------------------------------------------------------------------


def _host(name: str, *, roles: tuple[str, ...] = (), most: int = 3, **params: Any) -> Inject:
    def inject(world: World, rng: random.Random) -> Heal:
        role = rng.choice(roles) if roles else None
        fault = world.hosts.fault(name, role=role, times=rng.randint(1, most), **params)

        def heal() -> None:
            fault.times = 0

        return heal

    return inject


def _refuse(roles: tuple[str, ...]) -> Inject:
    def inject(world: World, rng: random.Random) -> Heal:
        role = rng.choice(roles)
        world.hosts.refuse(role)
        return lambda: world.hosts.accept(role)

    return inject


def _expire(world: World, _rng: random.Random) -> None:
    world.hosts.expire_urls()


def _throttle(world: World, _rng: random.Random) -> Heal:
    world.hosts.throttle(300_000, ttfb=0.3)
    return world.hosts.no_throttle


def _model(name: str, codes: set[str], inject: Inject) -> Fault:
    """A fault while models are fetched; the plain host may also have pictures and take files."""
    return Fault(f"hosts: {name}", inject, HOST | codes | IMAGE | FAILED, fetches=True)


CODES = {
    "rate_limited": "MODEL_RATE_LIMITED",
    "login_required": "MODEL_LOGIN_REQUIRED",
    "forbidden": "MODEL_FORBIDDEN",
    "not_found": "MODEL_NOT_FOUND",
    "archived": "MODEL_ARCHIVED",
    "early_access": "MODEL_EARLY_ACCESS",
    "region_blocked": "MODEL_REGION_BLOCKED",
    "redirect_loop": "MODEL_URL_REFUSED",
    "cloudflare_challenge": "MODEL_FORBIDDEN",
}
INVALID = {"MODEL_FILE_INVALID", "MODEL_HASH_MISMATCH", "MODEL_NOT_SUPPORTED"}
HOSTS = [
    _model("connection cut", set(), _host("cut", after=1000)),
    _model("connection reset", set(), _host("cut", after=5000, reset=True)),
    _model("download stalls", set(), _host("stall", after=1000, most=1)),
    _model("download trickles", set(), _host("trickle", rate=150_000)),
    _model("no answer", set(), _host("drop", roles=STORAGE)),
    _model("not HTTP", set(), _host("garbage", roles=STORAGE)),
    _model("wrong byte", INVALID, _host("corrupt", roles=HASHED, offset=3000)),
    _model("length too large", INVALID, _host("wrong_length", by=5)),
    _model("length too small", INVALID, _host("wrong_length", by=-5)),
    _model("wrong range", INVALID, _host("wrong_range_start")),
    _model("whole file for a range", set(), _host("whole")),
    _model("chunked", set(), _host("chunked")),
    _model("ETag changes", INVALID, _host("etag_changes")),
    _model("HTML instead of a model", INVALID, _host("html", roles=STORAGE)),
    _model("login page", INVALID | {"MODEL_LOGIN_REQUIRED"}, _host("login_page")),
    _model("endless body", INVALID | {"MODEL_URL_REFUSED"}, _host("endless", roles=STORAGE)),
    _model(
        "endless metadata", INVALID | {"MODEL_URL_REFUSED"}, _host("endless", roles=SITES, most=1)
    ),
    _model("compressed bomb", INVALID, _host("bomb", roles=STORAGE)),
    _model("compressed bomb as metadata", INVALID, _host("bomb", roles=SITES, most=1)),
    _model("answers 500", set(), _host("server_error", roles=SITES)),
    _model("answers 503", set(), _host("server_error", roles=STORAGE, status=503)),
    _model("slow", set(), _host("slow", roles=(*SITES, *STORAGE), seconds=1.5)),
    _model("other tier", set(), _host("tiering")),
    _model("URL for one use", set(), _host("url_limits", uses=1)),
    _model("signed URLs expire", set(), _expire),
    _model("connection refused", set(), _refuse((*SITES, *STORAGE))),
    _model("throttled", set(), _throttle),
    *(_model(name.replace("_", " "), {code}, _host(name)) for name, code in CODES.items()),
]

# Delivery ----------------------------------------------------------------------------------------


def _s3(answer: Any, *, seconds: float = 0.0) -> Inject:
    def inject(world: World, rng: random.Random) -> Heal:
        left = [rng.randint(1, 6)]

        def fault(_request: Any) -> Any:
            time.sleep(seconds)
            left[0] -= 1
            return answer if left[0] >= 0 else None

        def heal() -> None:
            world.s3.fault = lambda _: None

        world.s3.fault = fault
        return heal

    return inject


def _put(name: str, **params: Any) -> Inject:
    def inject(world: World, rng: random.Random) -> Heal:
        is_put = {"role": "web", "when": lambda request: request.method == "PUT"}
        fault = world.hosts.fault(name, times=rng.randint(1, 4), **is_put, **params)

        def heal() -> None:
            fault.times = 0

        return heal

    return inject


DELIVERY = [
    Fault("delivery: S3 down", _s3("cut"), FAILED),
    Fault("delivery: S3 answers 403", _s3((403, "AccessDenied")), FAILED),
    Fault("delivery: S3 answers 503", _s3((503, "SlowDown")), FAILED),
    Fault("delivery: S3 slow", _s3(None, seconds=0.7), FAILED),
    Fault("delivery: S3 stores, answer lost", _s3("late"), FAILED),
    Fault("delivery: PUT answers 500", _put("server_error"), FAILED),
    Fault("delivery: PUT answers 403", _put("forbidden"), FAILED),
    Fault("delivery: PUT dropped", _put("drop"), FAILED),
    Fault("delivery: PUT slow", _put("slow", seconds=1.0), FAILED),
]

FAULTS = [*PLANE, *HOSTS, *DELIVERY]
