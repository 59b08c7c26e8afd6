#!/usr/bin/env python3
"""Draws pictures on a RunPod endpoint, or on this machine: python client.py "a red fox".

One file, standard library only, Python 3.10 or newer. The environment names the endpoint:

    RUNPOD_ENDPOINT_ID, RUNPOD_API_KEY   an endpoint on RunPod
    RUNPOD_URL                           another address, such as http://localhost:8000 (make serve)

Without them it is http://localhost:8000. Exit status: 0 drawn, 1 the job failed, 2 wrong usage,
3 no connection to the endpoint, 130 cancelled. docs/clients/terminal.md shows how to use it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import functools
import http.client
import importlib.util
import io
import ipaddress
import json
import math
import os
import queue
import re
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

if sys.version_info < (3, 10):  # noqa: UP036 - a sentence instead of a traceback
    sys.stderr.write("client.py needs Python 3.10 or newer.\n")
    sys.exit(2)

DRAWN, FAILED, USAGE, NO_CONNECTION, CANCELLED = 0, 1, 2, 3, 130

RUNPOD = "https://api.runpod.ai"
LOCAL = "http://localhost:8000"
FOLDER = Path(__file__).resolve().parent

MIB = 1 << 20
ANSWER_MAX = 512 * MIB  # bytes of an answer; RunPod's own limit is 20 MB
PICTURE_MAX = 64 * MIB  # bytes of a picture, given or fetched
JOB_MAX = 64 * MIB  # bytes of a job's file
RUN_MAX = 10_000_000  # bytes of a request that RunPod accepts for /run
TEXT_MAX = MIB  # bytes of the parameters in a picture
REDIRECTS_MAX = 5
NAME_MAX = 240  # bytes of a file's name; file systems take 255, and a number may be added

IDLE_SECONDS = 30.0  # without a byte from the other side
REQUEST_SECONDS = 120.0  # for one request and its answer
CANCEL_SECONDS = 15.0  # for the request that cancels a job
PICTURE_SECONDS = 300.0  # for one picture of a bucket
STOP_SECONDS = 30.0  # for start.sh to stop its processes
TICK = 0.1  # seconds between two looks at Ctrl-C and the clock
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before a request is repeated
POLL_FIRST, POLL_FACTOR, POLL_MOST = 0.3, 1.3, 5.0  # seconds between two looks at a job
FIRST_MAX = 2  # repetitions if there is no connection from the beginning
UNKNOWN_MAX = 3  # answers "no such job" in a row until it is believed

ACCEPTED = "Cancelled: the endpoint has accepted the cancel of the job {}."
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
LISTS = (
    *("models", "loras", "vaes", "embeddings", "samplers", "schedulers", "upscalers", "scripts"),
    *("styles", "templates"),
)
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

Json = Any
Result = TypeVar("Result")


class Failed(Exception):
    """Ends the program: a sentence for the user, and the exit status."""

    def __init__(self, sentence: str, status: int = FAILED) -> None:
        super().__init__(sentence)
        self.status = status


class UnknownJob(Failed):
    """The endpoint does not know this job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The endpoint does not know the job {job_id}. RunPod keeps results for 30 minutes; a"
            " restarted `make serve` has forgotten its jobs."
        )


class Stopped(Exception):
    """The user asked to stop (`by_user`), or the time of --timeout is over."""

    def __init__(self, *, by_user: bool) -> None:
        super().__init__()
        self.by_user = by_user


def without_key(text: str) -> str:
    """The text without RunPod's key, should the other side send it back."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    return text.replace(key, "***") if key else text


def plain(text: object, most: int = 2000) -> str:
    """Text from outside on one line, without characters that control a terminal."""
    line = " ".join(str(text)[: 4 * most].split())
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    return line if len(line) <= most else f"{line[: most - 3]}..."


# The command line ---------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one sentence after the usage."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        raise Failed(f"{plain(message, 500)}\nShow all options: {self.prog} --help", USAGE)


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def seconds(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if value <= 0:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def size(text: str) -> tuple[int, int]:
    """`512x768`: width and height."""
    found = re.fullmatch(r"([0-9]{1,5})[xX\u00d7]([0-9]{1,5})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; a size is 512x768 (width, height)")
    return int(found[1]), int(found[2])


def lora(text: str) -> Json:
    """`NAME_OR_URL[:scale]` as an entry of the job's `loras`.

    A number up to 10 after the last colon is the scale; a port of a URL, the digits of an AIR or of
    a hash are not.
    """
    reference, colon, last = text.rpartition(":")
    is_scale = re.fullmatch(r"[+-]?([0-9]{1,4}(\.[0-9]{0,9})?|\.[0-9]{1,9})", last)
    is_part = reference.lower().rpartition(":")[2] in {"civitai", "huggingface", "sha256"}
    if not (colon and reference and is_scale and abs(float(last)) <= 10) or is_part:  # noqa: PLR2004
        return text
    return {"name": reference, "scale": float(last)}


def setting(text: str) -> tuple[str, Json]:
    """`NAME=JSON`: a field of the job. A value that is not JSON is a text."""
    name, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name)):
        raise argparse.ArgumentTypeError(f"{text!r} has not the form NAME=VALUE, as in eta=0.5")
    try:
        return name, read_json(value)
    except ValueError:
        if value[:1] in {"{", "[", '"'}:
            raise argparse.ArgumentTypeError(f"the value of {name} is not valid JSON") from None
        return name, value


def read_json(text: str | bytes) -> Json:
    """The value of a JSON text; ValueError for anything else, NaN and Infinity included."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def new_parser() -> Parser:
    """All options of the command line."""
    parser = Parser(
        prog="client.py",
        allow_abbrev=False,
        description="Draws pictures on a RunPod endpoint, or on this machine (make serve).",
        epilog="RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY name the endpoint; RUNPOD_URL another"
        " address. Ctrl-C cancels the job. `client.py bridge --help`: A1111's API for other"
        " programs. Exit status: 0 drawn, 1 the job failed, 2 wrong usage, 3 no connection,"
        " 130 cancelled.",
    )
    parser.add_argument("prompt", nargs="?", help="what to draw, in quotes")
    _add_picture_options(parser.add_argument_group("the picture"))
    _add_model_options(parser.add_argument_group("models"))
    _add_job_options(parser.add_argument_group("the job"))
    _add_other_options(parser.add_argument_group("instead of drawing"))
    return parser


def _add_picture_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--negative", metavar="TEXT", help="what not to draw")
    group.add_argument("--size", type=size, metavar="WxH", help="width and height in pixels")
    group.add_argument("--steps", type=int, metavar="N", help="steps of the sampler")
    group.add_argument("--cfg", type=number, metavar="X", help="how closely to follow the prompt")
    group.add_argument("--sampler", metavar="NAME", help="such as 'DPM++ 2M Karras'")
    group.add_argument("--scheduler", metavar="NAME", help="such as Karras")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed: the same picture")
    group.add_argument(
        "--hires", nargs="?", type=number, const=2.0, metavar="SCALE", help="draw larger, twice"
    )
    group.add_argument(
        "-n", type=count, metavar="N", dest="number", help="how many pictures, one after another"
    )
    group.add_argument("--init", metavar="FILE", help="picture to begin with (img2img), or its URL")
    group.add_argument("--mask", metavar="FILE", help="with --init: draw only its white part anew")
    group.add_argument(
        "--denoising", type=number, metavar="X", help="with --init or --hires: how much to change"
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--template", metavar="NAME", help="a preset of the endpoint")
    group.add_argument("--checkpoint", metavar="NAME_OR_URL", help="the model")
    group.add_argument(
        "--lora",
        type=lora,
        action="append",
        metavar="NAME_OR_URL[:SCALE]",
        help="a LoRA; several: repeat the option",
    )
    group.add_argument("--vae", metavar="NAME_OR_URL", help="another VAE")
    group.add_argument(
        "--embedding", action="append", metavar="NAME_OR_URL", help="a textual inversion"
    )


def _add_job_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--like", metavar="FILE", help="take the parameters from a picture's file")
    group.add_argument("--job", metavar="FILE", help="take a job from a JSON file; -: from stdin")
    group.add_argument(
        "--set", type=setting, action="append", metavar="NAME=JSON", help="any field of a job"
    )
    group.add_argument("--out", metavar="FILE_OR_FOLDER", help="where to save: fox.png, or foxes/")
    group.add_argument(
        "--timeout", type=seconds, default=3600.0, metavar="S", help="seconds to wait (3600)"
    )
    group.add_argument("--endpoint", metavar="ID", help="instead of RUNPOD_ENDPOINT_ID")
    group.add_argument("--start", action="store_true", help="run ./start.sh for this one job")
    group.add_argument("--quiet", action="store_true", help="print only files and errors")
    group.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_other_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--list", choices=LISTS, metavar="WHAT", help=", ".join(LISTS))
    group.add_argument("--health", action="store_true", help="workers and jobs of the endpoint")
    group.add_argument("--dry-run", action="store_true", help="print the job, and send nothing")
    group.add_argument("--fetch", metavar="JOB_ID", help="wait for a job sent before, and save it")
    group.add_argument("--cancel", metavar="JOB_ID", help="cancel a job")


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; Failed with status 2 if they make no sense."""
    parser = new_parser()
    if any("\ud800" <= char <= "\udfff" for char in "".join(arguments)):
        parser.error("an argument is not text in UTF-8")
    options, extra = parser.parse_known_args(arguments)
    if extra and extra[0].startswith("-"):
        parser.error(f"unknown option: {extra[0]}")
    if extra:
        parser.error(f"put the prompt in quotes: {' '.join([options.prompt or '', *extra])!r}")
    if options.mask and not options.init:
        parser.error("--mask needs --init, the picture that it belongs to")
    other = (options.list, options.health, options.fetch, options.cancel, options.job, options.like)
    if options.prompt is None and not any(other):
        parser.error('what shall be drawn? client.py "a red fox"')
    target_of(options.out)
    options.given = arguments
    return options


# The job ------------------------------------------------------------------------------------------

# option -> field of the job
FIELDS = {
    "prompt": "prompt",
    "negative": "negative_prompt",
    "steps": "steps",
    "cfg": "cfg_scale",
    "sampler": "sampler_name",
    "scheduler": "scheduler",
    "seed": "seed",
    "number": "n_iter",
    "denoising": "denoising_strength",
    "template": "template",
    "checkpoint": "checkpoint",
    "vae": "vae",
    "lora": "loras",
    "embedding": "embeddings",
}


def job_of(options: argparse.Namespace, screen: Screen) -> dict[str, Json]:
    """The job: `{"input": {...}}`. Options win over --like, and --like over --job."""
    job = _job_of_file(options.job) if options.job else {"input": {}}
    given = {FIELDS[name]: value for name, value in vars(options).items() if name in FIELDS}
    given = {name: value for name, value in given.items() if value is not None}
    if options.size:
        given["width"], given["height"] = options.size
    if options.hires is not None:
        given |= {"enable_hr": True, "hr_scale": options.hires}
    if options.init:
        given |= {"task": "img2img", "init_images": [_picture_field(options.init)]}
    if options.mask:
        given["mask"] = _picture_field(options.mask)
    given |= dict(options.set or [])
    fields = {**job["input"], **(_like(options.like, given, screen) if options.like else {})}
    fields |= given
    if fields.get("enable_hr") and fields.get("denoising_strength") is None:
        fields["denoising_strength"] = 0.5  # the second pass needs one
    suffix = target_of(options.out).suffix
    if suffix and "output" not in given:
        fields["output"] = {"format": FORMATS[suffix]}
    return {**job, "input": fields}


def _job_of_file(name: str) -> dict[str, Json]:
    try:
        value = read_json(_bytes_of(name, JOB_MAX).decode("utf-8-sig"))
    except ValueError as error:
        raise Failed(f"{name} is not JSON: {plain(error, 200)}", USAGE) from None
    if isinstance(value, dict) and "input" not in value:
        value = {"input": value}
    if not (isinstance(value, dict) and isinstance(value["input"], dict)):
        raise Failed(f'{name} is no job; a job is {{"input": {{"prompt": "a fox"}}}}', USAGE)
    return value


def _bytes_of(name: str, most: int) -> bytes:
    """A file's content, or that of standard input for `-`; Failed with status 2."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(most + 1) if sys.stdin else b""
        else:
            with Path(name).open("rb") as file:
                data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise Failed(f"{name} cannot be read: {reason_of(error)}", USAGE) from None
    if len(data) > most:
        raise Failed(f"{name} is larger than {most // MIB} MiB.", USAGE)
    return data


def _picture_field(name: str) -> str:
    """A picture as a job brings it: a URL as it is, a file as base64."""
    if name.lower().startswith(("https://", "http://", "data:")):
        return name
    data = _bytes_of(name, PICTURE_MAX)
    if not data:
        raise Failed(f"{name} is an empty file.", USAGE)
    return base64.b64encode(data).decode("ascii")


def reason_of(error: BaseException) -> str:
    """Why something failed, without Python's decorations."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return reason_of(error.reason)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return plain(getattr(error, "strerror", None) or error or type(error).__name__, 300)


# A picture's own parameters -----------------------------------------------------------------------

# name in A1111's infotext -> field of a job, and its type
LIKE: dict[str, tuple[str, Callable[[str], Json]]] = {
    "Steps": ("steps", int),
    "Sampler": ("sampler_name", str),
    "Schedule type": ("scheduler", str),
    "CFG scale": ("cfg_scale", number),
    "Seed": ("seed", int),
    "Model": ("checkpoint", str),
    "VAE": ("vae", str),
    "Clip skip": ("clip_skip", int),
    "Denoising strength": ("denoising_strength", number),
    "Variation seed": ("subseed", int),
    "Variation seed strength": ("subseed_strength", number),
    "Eta": ("eta", number),
    "Sigma churn": ("s_churn", number),
    "Sigma tmin": ("s_tmin", number),
    "Sigma tmax": ("s_tmax", number),
    "Sigma noise": ("s_noise", number),
    "Tiling": ("tiling", lambda text: text == "True"),
    "Face restoration": ("restore_faces", bool),
    "Refiner": ("refiner_checkpoint", str),
    "Refiner switch at": ("refiner_switch_at", number),
    "Hires upscale": ("hr_scale", number),
    "Hires upscaler": ("hr_upscaler", str),
    "Hires steps": ("hr_second_pass_steps", int),
    "Hires sampler": ("hr_sampler_name", str),
    "Hires schedule type": ("hr_scheduler", str),
    "Hires checkpoint": ("hr_checkpoint_name", str),
    "Hires prompt": ("hr_prompt", str),
    "Hires negative prompt": ("hr_negative_prompt", str),
}
LIKE_SIZES = {
    "Size": ("width", "height"),
    "Hires resize": ("hr_resize_x", "hr_resize_y"),
    "Seed resize from": ("seed_resize_from_w", "seed_resize_from_h"),
}
# These follow from the others.
LIKE_LEFT_OUT = {"Model hash", "VAE hash", "Version", "Lora hashes", "TI hashes"}
LORA_TAG = re.compile(r"<lora:[^<>]{1,500}>")
NEGATIVE = "Negative prompt:"


def _like(name: str, given: Mapping[str, Json], screen: Screen) -> dict[str, Json]:
    """The fields of the picture `name` that fit to the options that were given."""
    infotext = infotext_of(_bytes_of(name, PICTURE_MAX))
    if not infotext:
        raise Failed(
            f"{name} has no parameters: they are in the PNG, JPEG and WebP files of this client"
            " and of A1111, unless another program saved the picture again.",
            USAGE,
        )
    fields, unknown = fields_of(infotext)
    if "loras" in given:
        fields["prompt"] = LORA_TAG.sub("", fields["prompt"]).strip()
    if given.keys() & {"template", "checkpoint"}:
        fields.pop("checkpoint", None)
    if "sampler_name" in given:
        fields.pop("scheduler", None)
    if not (fields.get("enable_hr") or "init_images" in given):
        fields.pop("denoising_strength", None)
    if unknown:
        screen.say(f"note     not taken from {name}: {', '.join(unknown)}")
    return fields


def fields_of(infotext: str) -> tuple[dict[str, Json], list[str]]:
    """The fields of a job by an infotext, and the names of the values that have no field."""
    text, _, last = infotext.strip().rpartition("\n")
    if not re.match(r"Steps: ?[0-9]", last):
        text, last = infotext.strip(), ""
    prompt, separator, negative = f"\n{text}".partition(f"\n{NEGATIVE}")
    fields: dict[str, Json] = {"prompt": prompt.strip()}
    if separator:
        fields["negative_prompt"] = negative.strip()
    unknown = []
    for name, value in entries(last):
        if not _take(name, value, fields) and name not in LIKE_LEFT_OUT:
            unknown.append(plain(name, 64))
    if fields.keys() & {"hr_scale", "hr_resize_x"}:
        fields["enable_hr"] = True
    return fields, unknown


def _take(name: str, value: str, fields: dict[str, Json]) -> bool:
    """Write the field of one value of an infotext; returns whether there is one."""
    try:
        if name in LIKE_SIZES:
            fields |= dict(zip(LIKE_SIZES[name], size(value), strict=True))
            return True
        field, kind = LIKE[name]
        fields[field] = kind(value)
    except (KeyError, ValueError, argparse.ArgumentTypeError):
        return False
    return True


def entries(line: str) -> Iterator[tuple[str, str]]:
    """Names and values of `Steps: 20, Sampler: Euler a, Lora hashes: "a: 1, b: 2"`."""
    at = 0
    while (colon := line.find(":", at)) >= 0:
        name, at = line[at:colon].strip(" ,"), colon + 1
        while line[at : at + 1] == " ":
            at += 1
        if line[at : at + 1] == '"':
            value, at = _quoted(line, at)
        else:
            end = line.find(",", at)
            end = len(line) if end < 0 else end
            value, at = line[at:end].strip(), end
        if name:
            yield name, value


def _quoted(line: str, start: int) -> tuple[str, int]:
    """The JSON text that starts here, and the place behind it."""
    with contextlib.suppress(ValueError):
        value, end = json.JSONDecoder().raw_decode(line, start)
        return str(value), end
    return line[start:], len(line)


def infotext_of(data: bytes) -> str:
    """A1111's parameters in the file of a PNG, JPEG or WebP; empty if there are none."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return next(_png_texts(data), "")
    if data.startswith(b"\xff\xd8"):
        return next(map(_user_comment, _jpeg_exif(data)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return next(map(_user_comment, _webp_exif(data)), "")
    return ""


def _png_texts(data: bytes) -> Iterator[str]:
    """The texts of the chunks named `parameters`."""
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        at += 12 + length
        keyword, _, rest = body.partition(b"\0")
        if keyword != b"parameters":
            continue
        if kind == b"tEXt":
            yield rest[:TEXT_MAX].decode("latin-1")
        elif kind == b"zTXt":
            yield _inflated(rest[1:]).decode("latin-1")
        elif kind == b"iTXt":  # compressed, method, language, translated keyword, text
            text = rest[2:].split(b"\0", 2)[-1]
            text = _inflated(text) if rest[:1] == b"\1" else text[:TEXT_MAX]
            yield text.decode("utf-8", "replace")


def _inflated(data: bytes) -> bytes:
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj().decompress(data, TEXT_MAX)
    return b""


def _jpeg_exif(data: bytes) -> Iterator[bytes]:
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)
        if body.startswith(b"Exif\0\0"):
            yield body[6:]


def _webp_exif(data: bytes) -> Iterator[bytes]:
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            yield data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2


def _user_comment(exif: bytes) -> str:
    """The tag UserComment of an EXIF block."""
    order: Any = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return ""

    def at(place: int, length: int) -> int:
        return int.from_bytes(exif[place : place + length], order)

    def find(folder: int, tag: int) -> int:
        """The place of a tag's entry of 12 bytes, or 0."""
        places = (folder + 2 + 12 * index for index in range(at(folder, 2)))
        return next((place for place in places if at(place, 2) == tag), 0)

    inner = find(at(4, 4), 0x8769)
    entry = find(at(inner + 8, 4), 0x9286) if inner else 0
    if not entry:
        return ""
    start, length = at(entry + 8, 4), min(at(entry + 4, 4), TEXT_MAX)
    code, text = exif[start : start + 8], exif[start + 8 : start + length]
    if code == b"UNICODE\0":  # A1111 writes the high byte first; EXIF does not say which one is
        little = text[1:2] == b"\0" and text[:1] != b"\0"
        return text.decode("utf-16-le" if little else "utf-16-be", "replace")
    return text.decode("utf-8", "replace").strip("\0")


# Ctrl-C, the clock and the terminal ---------------------------------------------------------------


class Signals:
    """Ctrl-C, SIGTERM and a closed terminal. While a job lives, the first one only sets `wanted`,
    so that the job can be cancelled; every other one raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.job_lives = False
        self.job_id = ""

    def install(self) -> None:
        """Handle the signals that the parent process does not ignore for us (nohup)."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            found = getattr(signal, name, None)
            if found is not None and signal.getsignal(found) is not signal.SIG_IGN:
                signal.signal(found, self._handle)

    def _handle(self, _number: int, _frame: object) -> None:
        if self.wanted or not self.job_lives:
            raise KeyboardInterrupt
        self.wanted = True


class Screen:
    """Standard error: one line of progress that is redrawn on a terminal, and lines that stay.

    Args:
        quiet: only errors and warnings.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._live = sys.stderr is not None and sys.stderr.isatty() and not quiet
        self._shown = ""  # the progress line
        self._phase, self._text, self._since, self._quarter = "", "", 0.0, -1.0

    def say(self, line: str, *, always: bool = False) -> None:
        """A line that stays."""
        if always or not self.quiet:
            self._redraw("")
            self._write(f"{line}\n")

    def show(self, phase: str, text: str, percent: float = 0) -> None:
        """The newest progress; where it cannot be redrawn, up to five lines a phase."""
        if phase != self._phase:
            self._phase, self._since, self._quarter = phase, time.monotonic(), -1
        if percent // 25 > self._quarter and not (self._live or self.quiet):
            self._quarter = percent // 25
            self._write(f"{text}\n")
        self._text = text
        self.tick()

    def tick(self) -> None:
        """Redraw the progress line, whose seconds pass."""
        if self._live and self._text:
            passed = time.monotonic() - self._since
            line = f"{self._text}  {passed:.0f} s"
            self._redraw(line[: shutil.get_terminal_size().columns - 1])

    def clear(self) -> None:
        """Take the progress line away."""
        self._redraw("")
        self._phase = self._text = ""

    def _redraw(self, line: str) -> None:
        if self._live and line != self._shown:
            self._write("\r" + line.ljust(len(self._shown)) + ("" if line else "\r"))
            self._shown = line

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr is not None:
            try:
                sys.stderr.write(without_key(text))
                sys.stderr.flush()
            except OSError:  # a closed terminal must not end a job
                _silence(sys.stderr)
            except ValueError:
                sys.stderr = None


class Wait:
    """Waits for the network in other threads, so that Ctrl-C and the clock are always seen.

    Args:
        deadline: of time.monotonic(), for everything that can be stopped.
    """

    def __init__(self, screen: Screen, signals: Signals, deadline: float) -> None:
        self._screen, self._signals, self.deadline = screen, signals, deadline

    def until(self, work: Callable[[], Result], seconds: float, *, stoppable: bool) -> Result:
        """The result of `work`, or its error.

        Raises:
            Stopped: if `stoppable`, the user wants to stop, or the deadline is over.
            Broken: the work takes longer than `seconds`. Its thread is left alone.
        """
        results: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                results.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                result, error = results.get(timeout=TICK)
                if error is not None:
                    raise error
                return result  # type: ignore[return-value]
            self._look(stoppable=stoppable)
        raise Broken(f"no complete answer within {seconds:.0f} s")

    def pause(self, seconds: float, *, stoppable: bool) -> None:
        """Wait; Stopped as above."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._look(stoppable=stoppable)
            time.sleep(min(left, TICK))
        self._look(stoppable=stoppable)

    def _look(self, *, stoppable: bool) -> None:
        if self._signals.wanted:
            self._screen.show("stop", "cancelling the job (Ctrl-C again: end without waiting)")
        self._screen.tick()
        if stoppable and self._signals.wanted:
            raise Stopped(by_user=True)
        if stoppable and time.monotonic() > self.deadline:
            raise Stopped(by_user=False)


# HTTP ---------------------------------------------------------------------------------------------


class NotConnected(OSError):
    """There was no connection, so the other side has received nothing."""


class Broken(OSError):
    """The connection broke, or the answer is not usable: what the other side did is unknown."""


@dataclass(frozen=True)
class Answer:
    """A whole answer, of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @functools.cached_property
    def value(self) -> Json:
        """Its JSON; None if it is none."""
        try:
            return read_json(self.body)
        except ValueError:
            return None

    @property
    def excerpt(self) -> str:
        """The start of its text, without the tags of HTML."""
        text = self.body[:4000].decode("utf-8", "replace")
        return plain(re.sub(r"<[^<>]{0,500}>", " ", text), 200) or "nothing"


class _Connecting:
    """Marks the errors from before anything was sent."""

    def connect(self) -> None:
        try:
            super().connect()  # type: ignore[misc]
        except OSError as error:
            raise NotConnected(reason_of(error)) from error


class _HttpConnection(_Connecting, http.client.HTTPConnection):
    pass


class _HttpsConnection(_Connecting, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: the key must not follow it."""

    def redirect_request(self, *_: object) -> None:
        return None


def exchange(
    method: str, url: str, *, body: bytes | None = None, key: str | None = None, most: int
) -> Answer:
    """Send one request and read the whole answer, of up to `most` bytes. Follows no redirect.

    Raises:
        NotConnected, Broken.
    """
    headers = {"user-agent": "a1111-worker-client", "accept": "application/json, image/*"}
    if body is not None:
        headers["content-type"] = "application/json"
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    own = is_loopback(urllib.parse.urlsplit(url).hostname)
    proxies = urllib.request.ProxyHandler({} if own else None)
    opener = urllib.request.build_opener(proxies, _Http, _Https, _NoRedirect)
    try:
        try:
            response = opener.open(request, timeout=IDLE_SECONDS)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Answer(response.status, response.headers, _read(response, most))
    except urllib.error.URLError as error:
        if isinstance(error.reason, NotConnected):
            raise error.reason from error.reason.__cause__
        raise Broken(reason_of(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise error if isinstance(error, Broken) else Broken(reason_of(error)) from error


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    announced = response.headers.get("content-length", "")
    data = response.read(most + 1)
    if len(data) > most:
        raise Broken(f"the answer is larger than {most // MIB} MiB")
    if re.fullmatch("[0-9]{1,18}", announced) and len(data) < int(announced):
        raise Broken("the connection broke in the middle of the answer")
    return data


def is_loopback(host: str | None) -> bool:
    """Whether this is the machine itself."""
    if not host or host == "localhost" or host.endswith(".localhost"):
        return bool(host)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


# The endpoint -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """Where jobs go.

    Attributes:
        base: URL before `/run`, without a slash at its end.
        key: of RunPod; None: none is sent.
        is_local: it is on this machine, where a job costs nothing.
    """

    base: str
    key: str | None = None
    is_local: bool = False

    @property
    def is_runpod(self) -> bool:
        """Whether it is RunPod itself."""
        return urllib.parse.urlsplit(self.base).hostname == "api.runpod.ai"


def endpoint_of(environ: Mapping[str, str], endpoint_id: str | None = None) -> Endpoint:
    """The endpoint that the environment names; Failed with status 2 if it names none."""
    identity = endpoint_id or environ.get("RUNPOD_ENDPOINT_ID", "").strip()
    url = environ.get("RUNPOD_URL", "").strip()
    key = environ.get("RUNPOD_API_KEY", "").strip() or None
    if identity and not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", identity):
        raise Failed(f"The endpoint's id {plain(identity, 80)!r} is none: an id is 4f2k9x.", USAGE)
    if key and not re.fullmatch(r"[!-~]{1,500}", key):
        raise Failed("RUNPOD_API_KEY has characters that no key has; copy it again.", USAGE)
    if not (identity or url):
        return Endpoint(LOCAL, is_local=True)
    parts = _parts_of(url or RUNPOD)
    if pasted := re.fullmatch(r"(.*/v2)/([A-Za-z0-9_-]+)(/run(sync)?)?/?", parts.path):
        identity, parts = identity or pasted[2], parts._replace(path=pasted[1])
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v2')}"
    is_local = is_loopback(parts.hostname)
    endpoint = Endpoint(f"{base}/v2/{identity}" if identity else base, is_local=is_local)
    if endpoint.is_runpod:
        _check_for_runpod(identity, key, parts.scheme)
    may_send = is_local or parts.scheme == "https"  # over http everybody on the way reads the key
    return Endpoint(endpoint.base, key if may_send else None, is_local)


def _check_for_runpod(identity: str, key: str | None, scheme: str) -> None:
    if not identity:
        raise Failed("Set RUNPOD_ENDPOINT_ID to the endpoint's id, which its page shows.", USAGE)
    if key is None:
        raise Failed(
            "Set RUNPOD_API_KEY to a key of your RunPod account (Settings, API Keys).", USAGE
        )
    if scheme != "https":
        raise Failed("RUNPOD_URL must begin with https://, because the key is sent there.", USAGE)


def _parts_of(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        is_good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not re.fullmatch(r"[!-~]{1,2000}", url) or parts.query or parts.fragment:
        raise Failed(f"RUNPOD_URL is no address such as {RUNPOD} or {LOCAL}.", USAGE)
    if parts.username is not None or parts.password is not None:
        raise Failed("RUNPOD_URL has a user name in it: put the key into RUNPOD_API_KEY.", USAGE)
    return parts


class Api:
    """RunPod's routes of one endpoint."""

    def __init__(self, endpoint: Endpoint, wait: Wait) -> None:
        self.endpoint, self.wait = endpoint, wait

    def submit(self, job: dict[str, Json]) -> str:
        """Queue a job, once; returns its id."""
        body = json.dumps(job).encode()
        if self.endpoint.is_runpod and len(body) > RUN_MAX:
            raise Failed(
                f"The job has {len(body) / 1e6:.1f} MB, and RunPod accepts 10 MB: give large"
                " pictures as https URLs.",
                USAGE,
            )
        answer = self._request("POST", "run", body, may_repeat=False, stoppable=False)
        job_id = answer.value.get("id") if isinstance(answer.value, dict) else None
        if not (answer.status == http.client.OK and isinstance(job_id, str) and is_id(job_id)):
            problem, status = self._refusal(answer), answer.status
            if status == http.client.OK or status >= http.client.INTERNAL_SERVER_ERROR:
                raise Failed(f"{problem} {_goes_on('')}", problem.status)
            raise problem
        return job_id

    def status(self, job_id: str) -> dict[str, Json]:
        """What the endpoint says about a job."""
        for _ in range(UNKNOWN_MAX):
            answer = self._request("GET", f"status/{job_id}")
            if answer.status != http.client.NOT_FOUND:
                break
            self.wait.pause(POLL_FIRST, stoppable=True)
        else:
            raise UnknownJob(job_id)
        if answer.status != http.client.OK or not isinstance(answer.value, dict):
            raise self._refusal(answer)
        return answer.value

    def cancel(self, job_id: str) -> str:
        """Cancel a job; returns its state afterwards."""
        answer = self._request("POST", f"cancel/{job_id}", b"{}", stoppable=False)
        if answer.status == http.client.NOT_FOUND:
            raise UnknownJob(job_id)
        if answer.status != http.client.OK or not isinstance(answer.value, dict):
            raise self._refusal(answer)
        return plain(answer.value.get("status", "CANCELLED"), 40)

    def health(self) -> dict[str, Json]:
        """The numbers of workers and jobs; starts no worker."""
        answer = self._request("GET", "health")
        if answer.status != http.client.OK or not isinstance(answer.value, dict):
            raise self._refusal(answer)
        return answer.value

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        may_repeat: bool = True,
        stoppable: bool = True,
    ) -> Answer:
        """One request; repeated if nothing was received, or, where that is harmless, if it failed.

        Raises:
            Failed: with status 3 if there was no answer.
        """
        url, key = f"{self.endpoint.base}/{path}", self.endpoint.key
        is_cancel, is_first = path.startswith("cancel/"), path in {"run", "health"}
        for count, pause in enumerate((*(PAUSES[:4] if is_cancel else PAUSES), None)):
            try:
                answer = self.wait.until(
                    lambda: exchange(method, url, body=body, key=key, most=ANSWER_MAX),
                    CANCEL_SECONDS if is_cancel else REQUEST_SECONDS,
                    stoppable=stoppable,
                )
            except NotConnected as error:
                if pause is None or (is_first and (self.endpoint.is_local or count >= FIRST_MAX)):
                    raise self._nobody(error) from None
            except Broken as error:
                if pause is None or not may_repeat:
                    raise self._lost(error, path) from None
            else:
                if pause is None or not _is_passing(answer, may_repeat=may_repeat):
                    return answer
            self.wait.pause(pause, stoppable=not is_cancel)
        raise AssertionError("the last pause is None")

    def _nobody(self, error: OSError) -> Failed:
        sentence = f"No connection to {self.endpoint.base}: {error}."
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            sentence += (
                " The certificate is not trusted: check RUNPOD_URL. Python from python.org on macOS"
                " needs `Install Certificates.command` once."
            )
        elif self.endpoint.is_local:
            sentence += (
                " Start a worker with `make serve`, or set RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY to"
                " use an endpoint on RunPod."
            )
        else:
            sentence += " Check RUNPOD_URL, and the network."
        return Failed(sentence, NO_CONNECTION)

    def _lost(self, error: OSError, path: str) -> Failed:
        sentence = f"The connection to {self.endpoint.base} failed: {error}."
        if path == "run":
            sentence += (
                " The job may have been accepted, but its id is not known, so it was neither sent"
                " again nor cancelled: look at the requests on the endpoint's page."
            )
        return Failed(sentence, NO_CONNECTION)

    def _refusal(self, answer: Answer) -> Failed:
        """A sentence for an answer that is not the expected one."""
        where = self.endpoint.base
        wrong = "does not accept the key: check RUNPOD_API_KEY"
        missing = "needs a key: set RUNPOD_API_KEY; it is sent over https or within this computer"
        sentences = {
            401: wrong if self.endpoint.key else missing,
            403: "does not accept the key: check RUNPOD_API_KEY and what this key may do",
            404: "does not exist: check RUNPOD_ENDPOINT_ID and RUNPOD_URL",
            413: "does not accept a job of this size: give large pictures as https URLs",
            429: "accepts no more requests now (429): wait some minutes",
        }
        if answer.status in sentences:
            return Failed(f"{where} {sentences[answer.status]}.", NO_CONNECTION)
        if target := answer.headers.get("location"):
            sentence = f"leads to {plain(target, 200)}: if you trust it, set RUNPOD_URL to it"
            return Failed(f"{where} {sentence}.", NO_CONNECTION)
        return Failed(
            f"{where} answered {answer.status} with {answer.excerpt!r}. That is not RunPod's API,"
            " or it has a failure.",
            NO_CONNECTION,
        )


def _is_passing(answer: Answer, *, may_repeat: bool) -> bool:
    """Whether the same request may succeed a moment later. 429: nothing was done with it."""
    if answer.status == http.client.TOO_MANY_REQUESTS:
        return True
    no_json = answer.status == http.client.OK and not isinstance(answer.value, dict)
    return may_repeat and (answer.status >= http.client.INTERNAL_SERVER_ERROR or no_json)


def is_id(text: str) -> bool:
    """Whether it can be a job's id in a URL."""
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text)) and text.strip(".") != ""


# The life of a job --------------------------------------------------------------------------------


def run_job(api: Api, job: dict[str, Json], screen: Screen, signals: Signals) -> dict[str, Json]:
    """Send a job and wait for its end; cancels it if the user stops. Returns RunPod's answer."""
    signals.job_lives = True
    screen.show("send", "sending the job")
    try:
        job_id = api.submit(job)
    except Stopped as stop:
        if not stop.by_user:
            raise
        raise Failed("Cancelled before a job was accepted.", CANCELLED) from None
    return follow(api, job_id, screen, signals)


def follow(api: Api, job_id: str, screen: Screen, signals: Signals) -> dict[str, Json]:
    """Wait for a job's end, and check that it was a good one."""
    signals.job_lives, signals.job_id = True, job_id
    try:
        answer = _until_final(api, job_id, screen)
    except Stopped as stop:
        raise _cancelled(api, job_id, screen, by_user=stop.by_user) from None
    except UnknownJob:
        raise
    except Failed as problem:
        raise Failed(f"{problem} {_goes_on(job_id)}", problem.status) from None
    finally:
        screen.clear()
    signals.job_lives = False
    return checked(answer, job_id)


def _until_final(api: Api, job_id: str, screen: Screen) -> dict[str, Json]:
    delay, before = POLL_FIRST, ""
    while True:
        answer = api.status(job_id)
        state = str(answer.get("status"))
        if state in FINAL:
            return answer
        screen.show(*progress_of(answer))
        delay = POLL_FIRST if state != before else min(delay * POLL_FACTOR, POLL_MOST)
        before = state
        api.wait.pause(delay, stoppable=True)


def progress_of(answer: Mapping[str, Json]) -> tuple[str, str, float]:
    """Phase, text and percent of a job that is not over."""
    if answer.get("status") == "IN_QUEUE":
        return "queue", "waiting for a worker: it starts, or draws another job", 0
    report = answer.get("output")
    if not isinstance(report, dict) or not report:
        return "run", "a worker has the job", 0
    phase, percent = plain(report.get("phase", "run"), 40), _amount(report.get("percent"))
    parts, left = [phase], _amount(report.get("eta_seconds"))
    if isinstance(report.get("input"), int):
        parts.append(plain(f"input {report['input']} of {report.get('inputs')}", 40))
    if percent is not None:
        parts.append(f"{percent:.0f} %")
    if report.get("message"):
        parts.append(plain(report["message"], 100))
    if left is not None:
        parts.append(f"{left:.0f} s left")
    return phase, ", ".join(parts), percent or 0


def _amount(value: Json) -> float | None:
    """A number of a report; None if it is none, or larger than any sensible one."""
    return value if isinstance(value, int | float) and abs(value) < 1e9 else None  # noqa: PLR2004


def _cancelled(api: Api, job_id: str, screen: Screen, *, by_user: bool) -> Failed:
    """Cancel a job; says what became of it."""
    reason = "" if by_user else "It was not done within --timeout. "
    status = CANCELLED if by_user else FAILED
    screen.show("stop", "cancelling the job")
    try:
        state = api.cancel(job_id)
    except Failed as problem:
        sentence = f"The cancel was not accepted: {problem} {_goes_on(job_id)}"
        return Failed(f"{reason}{sentence}", status)
    if state == "CANCELLED" or state not in FINAL:
        return Failed(f"{reason}{ACCEPTED.format(job_id)}", status)
    return Failed(
        f"{reason}The job {job_id} was already over ({state}), so there was nothing to cancel."
        f" Its result: {command('--fetch', job_id)}",
        status,
    )


def _goes_on(job_id: str) -> str:
    if not job_id:
        return "A job may have been accepted: look at the requests on the endpoint's page."
    return (
        f"The job {job_id} may go on, and cost money. Cancel it: {command('--cancel', job_id)}."
        f" Wait for it: {command('--fetch', job_id)}"
    )


def checked(answer: dict[str, Json], job_id: str) -> dict[str, Json]:
    """The answer of a job that has completed; Failed with the worker's own sentence otherwise."""
    state, output = answer.get("status"), answer.get("output")
    error = answer.get("error") or (output.get("error") if isinstance(output, dict) else None)
    if state == "CANCELLED":
        raise Failed(f"The job {job_id} was cancelled.", CANCELLED)
    if state == "TIMED_OUT":
        raise Failed(
            f"The job {job_id} took longer than the endpoint's execution timeout: ask for less, or"
            " raise it in the endpoint's settings."
        )
    if state == "FAILED" or error:
        raise Failed(_sentence(error, output))
    if not isinstance(output, dict):
        raise Failed(
            f"The job {job_id} completed without a result: RunPod loses results that are larger"
            " than 10 MB. Ask for fewer or smaller pictures, or for --out picture.webp."
        )
    return answer


def _sentence(error: Json, output: Json) -> str:
    """The worker's sentence; of an exception that the SDK reported, its type and message."""
    if isinstance(error, str) and error.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            error = read_json(error)
    if isinstance(error, dict):
        kind, message = error.get("error_type", ""), error.get("error_message", error)
        return plain(f"The job failed: {kind} {message}")
    if error:
        return plain(error)
    known = isinstance(output, dict) and (output.get("detail") or output.get("message"))
    return plain(known or "The job failed, and the endpoint gives no reason: look at its log.")


# The pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where pictures are saved.

    Attributes:
        folder: the folder.
        stem: file name without suffix; None: made from the prompt and the seed.
        suffix: the one that was asked for; empty: none.
    """

    folder: Path
    stem: str | None = None
    suffix: str = ""


def target_of(out: str | None) -> Target:
    """`--out`: a name with the suffix of a picture is a file; every other one is a folder."""
    if out is None:
        return Target(Path())
    path = Path(out)
    with contextlib.suppress(RuntimeError):  # no such user: the name is taken as it is
        path = path.expanduser()
    if out in {"", "-"}:
        raise Failed("--out is a file such as fox.png, or a folder such as foxes/.", USAGE)
    if len(os.fsencode(path.name)) > NAME_MAX:
        raise Failed(f"--out has a file name of more than {NAME_MAX} bytes.", USAGE)
    if out.endswith(("/", os.sep)) or not path.suffix or _is_folder(path):
        return Target(path)
    if path.suffix.lower() not in FORMATS:
        raise Failed(
            f"--out {out}: a picture's name ends with .png, .jpg or .webp; a folder's with /.",
            USAGE,
        )
    return Target(path.parent, path.stem, path.suffix.lower())


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):  # such as a path that is too long
        return path.is_dir()
    return False


def prepare(target: Target) -> None:
    """Make the folder, and prove that files can be written: before a job that costs money."""
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        _temporary(target.folder, b"").unlink()
    except OSError as error:
        raise Failed(f"{target.folder} cannot be written: {reason_of(error)}.", USAGE) from None


def names(stem: str, suffix: str) -> Iterator[str]:
    """fox.png, fox-2.png, fox-3.png, ..."""
    yield f"{stem}{suffix}"
    number = 2
    while True:
        yield f"{stem}-{number}{suffix}"
        number += 1


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write a file under the first name that is free; whole, or not at all; replaces nothing."""
    temporary = _temporary(folder, data)
    try:
        for name in names(stem, suffix):
            with contextlib.suppress(FileExistsError):
                return _claim(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    raise AssertionError("names() does not end")


def _temporary(folder: Path, data: bytes) -> Path:
    path = folder / f".client-{secrets.token_hex(8)}.part"
    try:
        with path.open("xb") as file:
            file.write(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _claim(temporary: Path, path: Path) -> Path:
    """Give the file its name; FileExistsError if another file has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.open("xb").close()
        temporary.replace(path)
    return path


def suffix_of(data: bytes) -> str | None:
    """The suffix of a picture by its first bytes; None if it is none that an endpoint sends."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    return ".webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def parts_of(output: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """An answer; or those of a batch's inputs."""
    results = output.get("results")
    parts = results if isinstance(results, list) else [output]
    return [part for part in parts if isinstance(part, dict)]


def pictures_of(output: Mapping[str, Json]) -> Iterator[tuple[Json, str]]:
    """The pictures of an answer, each with a file name without suffix."""
    for part in parts_of(output):
        facts, images = info_of(part), part.get("images")
        for index, image in enumerate(images if isinstance(images, list) else []):
            yield image, stem_of(facts, index)


def bytes_of_picture(image: Json, api: Api) -> bytes:
    """The file of a picture: base64, or a URL of a bucket."""
    if not isinstance(image, str):
        raise Failed("The answer has a picture that is neither base64 nor a URL.")
    if image.startswith(("https://", "http://")):
        return _fetched(image, api)
    if image.startswith("s3://"):
        raise Failed(
            f"The picture was drawn, and only the keys of its bucket can read it: {image}. Copy it"
            " with `aws s3 cp` and the bucket's --endpoint-url, or set BUCKET_PUBLIC_URL on the"
            " endpoint."
        )
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise Failed("The answer has a picture that is neither base64 nor a URL.")
    return data


def _fetched(url: str, api: Api) -> bytes:
    """The file at a URL of a bucket. The key is not sent there."""
    problem, place = "it leads from one address to the next", url
    for pause in (*PAUSES[:REDIRECTS_MAX], None):
        parts = urllib.parse.urlsplit(place)
        may_be_http = api.endpoint.is_local and is_loopback(parts.hostname)
        if parts.scheme != "https" and not (parts.scheme == "http" and may_be_http):
            problem = "its address is not https"
            break
        answer, problem = _try_to_fetch(place, api)
        if answer is not None and answer.status == http.client.OK:
            return answer.body
        if answer is not None and (target := answer.headers.get("location")):
            place = urllib.parse.urljoin(place, target)
        elif pause is None or (answer is not None and answer.status < 500):  # noqa: PLR2004
            break
        else:
            api.wait.pause(pause, stoppable=True)
    raise Failed(
        f"The picture was drawn, but not fetched: {problem}. It is at {url}", NO_CONNECTION
    )


def _try_to_fetch(url: str, api: Api) -> tuple[Answer | None, str]:
    """An answer, or None; and the problem with it."""
    try:
        answer = api.wait.until(
            lambda: exchange("GET", url, most=PICTURE_MAX), PICTURE_SECONDS, stoppable=True
        )
    except OSError as error:
        return None, reason_of(error)
    return answer, f"the bucket answered {answer.status}"


def save(answer: Mapping[str, Json], target: Target, api: Api) -> Iterator[Path]:
    """Write the pictures of an answer one after the other; gives the file of each."""
    for image, stem in pictures_of(answer["output"]):
        data = bytes_of_picture(image, api)
        suffix = suffix_of(data)
        if suffix is None:
            excerpt = plain(data[:60].decode("utf-8", "replace"), 60)
            raise Failed(f"The answer has a file that is no PNG, JPEG or WebP: {excerpt!r}")
        if FORMATS.get(target.suffix) == FORMATS[suffix]:
            suffix = target.suffix  # .jpeg stays .jpeg
        try:
            yield write_new(target.folder, target.stem or stem, suffix, data)
        except OSError as error:
            other = command("--fetch", str(answer.get("id")), "--out", "OTHER_FOLDER/")
            raise Failed(
                f"{target.folder} cannot be written: {reason_of(error)}. The pictures are drawn,"
                f" and the endpoint keeps them for some minutes: {other}"
            ) from None


def stem_of(facts: Mapping[str, Json], index: int) -> str:
    """A file name from the prompt and the seed: a-red-fox-42."""
    prompt = LORA_TAG.sub("", str(facts.get("prompt", "")))[:200]
    words = re.findall(r"\w+", prompt.lower())
    name = "-".join(words)[:40].strip("-_") or "picture"
    seeds: Json = facts.get("all_seeds")
    has_one = isinstance(seeds, list) and index < len(seeds)
    seed = seeds[index] if has_one else facts.get("seed")
    return f"{name}-{seed}" if isinstance(seed, int) else name


def info_of(output: Mapping[str, Json]) -> dict[str, Json]:
    """A1111's facts about the pictures, which are a JSON text; empty if there are none."""
    with contextlib.suppress(ValueError, TypeError):
        facts = read_json(output.get("info") or "")
        return facts if isinstance(facts, dict) else {}
    return {}


# What is printed ----------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    """A command line of this client, quoted for the shell."""
    python = Path(sys.executable or "python3")
    known = shutil.which(python.name) == str(python)
    words = [python.name if known else str(python), sys.argv[0], *arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def again(arguments: Sequence[str], seed: Json) -> str:
    """The command that draws the same picture: that of now, with the seed."""
    words, rest = list(arguments), []
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at:]
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before != "--seed" and word != "--seed" and not word.startswith("--seed=")
    ]
    if isinstance(seed, int):
        kept += ["--seed", str(seed)]
    return command(*kept, *rest)


def report(answer: Mapping[str, Json], files: Sequence[Path], screen: Screen) -> None:
    """What was drawn, with which models, how long it took, and where it is."""
    for part in parts_of(answer["output"]):
        for label, text in _facts(part, info_of(part)):
            screen.say(f"{label:<8} {plain(text)}")
        warnings = part.get("warnings")
        for warning in warnings if isinstance(warnings, list) else []:
            screen.say(f"warning  {plain(warning)}", always=True)
        if part.get("error"):
            screen.say(f"failed   {plain(part['error'])}", always=True)
    for file in files:
        screen.say(f"file     {file}")


def _facts(output: Mapping[str, Json], facts: Mapping[str, Json]) -> Iterator[tuple[str, object]]:
    if facts.get("prompt"):
        yield "prompt", facts["prompt"]
    if "seed" in facts:
        size_text = f"{facts.get('width')}x{facts.get('height')}"
        sampler = f"{facts.get('steps')} steps of {facts.get('sampler_name')}"
        yield "picture", f"{size_text}, {sampler}, seed {facts['seed']}"
    models = output.get("models")
    if isinstance(models, list) and models:
        yield "models", ", ".join(str(one.get("name")) for one in models if isinstance(one, dict))
    timings = output.get("timings")
    if isinstance(timings, dict) and timings:
        yield "seconds", _seconds(timings)
        dollars = _amount(timings.get("usd_per_picture"))
        if dollars is not None:
            yield "cost", f"about ${dollars:.5f} a picture, at RunPod's prices"


def _seconds(timings: Mapping[str, Json]) -> str:
    """The phases that took time, to a tenth of a second: `generate 7.0, total 7.1`."""
    costs = ("gpu_seconds", "usd_per_picture")
    known = {name: _amount(value) for name, value in timings.items() if name not in costs}
    return ", ".join(
        f"{name} {value:.1f}"
        for name, value in known.items()
        if value is not None and (round(value, 1) or name == "total")
    )


def _silence(stream: IO[str]) -> None:
    """Let a stream that cannot be written lead nowhere, or Python's exit would fail at it again."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write_out(text: str) -> None:
    """A line on standard output. A reader that has gone is no failure: the files are written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(f"{without_key(text)}\n")
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            sentence = f"Standard output cannot be written: {reason_of(error)}."
            raise Failed(sentence) from None


def as_json(answer: Mapping[str, Json], files: Sequence[Path]) -> str:
    """The answer with the names of the files in place of the pictures."""

    def without_pictures(value: Json) -> Json:
        if isinstance(value, list):
            return [without_pictures(one) for one in value]
        if isinstance(value, dict):
            return {
                name: without_pictures(one) if name == "results" else one
                for name, one in value.items()
                if name != "images"
            }
        return value

    output = without_pictures(answer.get("output"))
    return json.dumps(
        {**answer, "output": output, "files": [str(file) for file in files]}, indent=2
    )


# Instead of drawing -------------------------------------------------------------------------------


def print_list(api: Api, options: argparse.Namespace, screen: Screen, signals: Signals) -> None:
    """The names that a field of a job can have."""
    what = options.list
    if api.endpoint.is_runpod:
        screen.say("note     a list is a job: it may start a worker, which RunPod charges for")
    limit = {} if what == "templates" else {"limit": 5000}
    answer = run_job(api, {"input": {"task": what, **limit}}, screen, signals)
    if options.json:
        write_out(as_json(answer, []))
        return
    items = answer["output"].get(what)
    if not isinstance(items, list):
        raise Failed(f"The endpoint's answer has no list of {what}.")
    for item in items:
        found = item.get("template") or item.get("name") if isinstance(item, dict) else item
        write_out(plain(found, 300))


def print_health(api: Api, options: argparse.Namespace) -> None:
    """The numbers of workers and jobs."""
    health = api.health()
    if options.json:
        write_out(json.dumps(health, indent=2))
        return
    for name, value in health.items():
        facts = value.items() if isinstance(value, dict) else {"": value}.items()
        write_out(f"{plain(name, 40):<8} {', '.join(plain(f'{a} {b}', 80) for a, b in facts)}")


def dry_run(api: Api, job: dict[str, Json], screen: Screen, signals: Signals) -> None:
    """Print the job, and check it where that is free."""
    shown = job
    if sys.stdout is not None and sys.stdout.isatty():
        shown = {**job, "input": {name: _short(value) for name, value in job["input"].items()}}
    write_out(json.dumps(shown, indent=2, ensure_ascii=False))
    if not api.endpoint.is_local:
        screen.say(
            "note     not checked: the endpoint's schema is a job, which would start a worker"
        )
        return
    try:
        answer = run_job(api, {"input": {"task": "schema"}}, Screen(quiet=True), signals)
    except Failed as problem:
        if problem.status != NO_CONNECTION:
            raise
        screen.say(f"note     not checked: {problem}")
        return
    document = answer["output"].get("document")
    task = job["input"].get("task", "txt2img")
    try:
        schema = document["tasks"][task]["input"]
        problems = list(problems_of(job["input"], schema, document["$defs"], ""))
    except (KeyError, TypeError, AttributeError, RecursionError):
        screen.say(f"note     not checked: the endpoint's schema has no task {plain(task, 60)}")
        return
    if problems:
        raise Failed("\n".join(f"The schema says: {one}" for one in problems[:20]))
    screen.say("note     the job has the form that the endpoint's schema asks for")


def _short(value: Json) -> Json:
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, str) and len(value) > 1000:  # noqa: PLR2004 - a picture
        return f"{value[:20]}... ({len(value)} characters)"
    return value


TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def problems_of(
    value: Json, schema: Mapping[str, Json], shared: Mapping[str, Json], path: str
) -> Iterator[str]:
    """What is wrong with a value by the parts of JSON Schema that the worker's schema uses.

    A field that is null or an empty text is one that the job does not give.
    """
    if "$ref" in schema:
        target = shared[schema["$ref"].rpartition("/")[2]]
        yield from problems_of(value, target, shared, path)
        return
    if "anyOf" in schema:
        found = [list(problems_of(value, one, shared, path)) for one in schema["anyOf"]]
        inner = [one for one in found if one and not one[0].startswith(f"{path} = ")]
        yield from [] if [] in found else (inner or found)[0]
        return
    yield from _problems_of_one(value, schema, path)
    known = schema.get("properties", {})
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name in known and inner not in (None, ""):
            yield from problems_of(inner, known[name], shared, f"{path}.{name}".lstrip("."))
        elif name not in known and schema.get("additionalProperties") is False:
            yield f"{path or 'the job'} has no field {plain(name, 60)!r}"
    for index, inner in enumerate(value if isinstance(value, list) else ()):
        yield from problems_of(inner, schema.get("items", {}), shared, f"{path}[{index}]")


def _problems_of_one(value: Json, schema: Mapping[str, Json], path: str) -> Iterator[str]:
    """By the keywords about the value itself."""
    shown, kind = plain(json.dumps(value), 60), schema.get("type")
    is_wrong_bool = isinstance(value, bool) and kind in {"integer", "number"}
    if kind in TYPES and (not isinstance(value, TYPES[kind]) or is_wrong_bool):
        yield f"{path} = {shown} is no {kind}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{path} = {shown} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} = {shown} is none of {', '.join(map(str, schema['enum']))}"
    amount = value if isinstance(value, int | float) else len(value) if value is not None else 0
    suffix = {"string": "Length", "array": "Items"}.get(str(kind), "imum")
    if amount < schema.get(f"min{suffix}", -math.inf):
        yield f"{path} = {shown} is below {schema[f'min{suffix}']}"
    if amount > schema.get(f"max{suffix}", math.inf):
        yield f"{path} = {shown} is above {schema[f'max{suffix}']}"


# start.sh and the bridge --------------------------------------------------------------------------


# What --start and `make serve` set unless the environment does: an engine and a model that work on
# any machine.
START = {
    "ENGINE": "embedded",
    "MODELS_DIR": "models",
    "BAKED_MODELS_DIR": "demo",
    "DEFAULT_TEMPLATE": "demo",
}


@contextlib.contextmanager
def started(screen: Screen, wait: Wait) -> Iterator[Endpoint]:
    """A local worker while the block lasts: ./start.sh on a port that was free.

    Raises:
        Failed: it ended before it was ready; with the last lines of its log.
    """
    script = FOLDER / "start.sh"
    if not script.exists():
        raise Failed(f"--start needs the project's start.sh beside client.py: {script}", USAGE)
    with tempfile.TemporaryFile() as log:
        port = free_port()
        arguments = [str(script), "--rp_serve_api", "--rp_api_port", str(port)]
        process = subprocess.Popen(
            arguments,
            cwd=FOLDER,
            env={
                **START,
                "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
                **os.environ,
                "END_WITH_PID": str(os.getpid()),  # also if this process is killed
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C must cancel the job before start.sh ends
        )
        try:
            screen.show("start", "starting the worker on this machine")
            base = f"http://localhost:{port}"
            while not _is_ready(base, wait):
                if process.poll() is not None:
                    raise Failed(f"start.sh ended with {process.returncode}:\n{_last_lines(log)}")
                wait.pause(POLL_FIRST, stoppable=True)
            yield Endpoint(base, is_local=True)
        except Stopped:
            raise Failed(f"The worker was not ready in time:\n{_last_lines(log)}") from None
        finally:
            _stop(process)


def _is_ready(base: str, wait: Wait) -> bool:
    with contextlib.suppress(OSError):
        answer = wait.until(
            lambda: exchange("GET", f"{base}/ping", most=MIB), IDLE_SECONDS, stoppable=True
        )
        return answer.status == http.client.OK
    return False


def _last_lines(log: Any) -> str:  # noqa: ANN401 - a file
    log.seek(max(0, log.seek(0, os.SEEK_END) - 20_000))
    lines = log.read().decode("utf-8", "replace").splitlines()[-15:]
    return "\n".join(f"  {plain(line, 300)}" for line in lines)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let start.sh stop its engine; kill them all if that takes too long, or on another Ctrl-C."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# What requirements-bridge.txt installs, by the names of the imports.
BRIDGE_NEEDS = (
    *("aiohttp", "certifi", "PIL", "pybase64", "pydantic", "python_multipart", "starlette"),
    *("urllib3", "uvicorn"),
)


def bridge(arguments: Sequence[str]) -> int:
    """Run `python -m gateway bridge` with a Python that has its packages; returns its status."""
    if not (FOLDER / "gateway").is_dir():
        raise Failed(
            f"The bridge needs the project's folder gateway/ beside client.py, in {FOLDER}", USAGE
        )
    words = [_python_of_bridge(), "-m", "gateway", "bridge", *arguments]
    if os.name != "nt":  # signals then go to the bridge itself
        os.chdir(FOLDER)
        os.execv(words[0], words)
    return subprocess.call(words, cwd=FOLDER)


def _python_of_bridge() -> str:
    if all(importlib.util.find_spec(name) for name in BRIDGE_NEEDS):
        return sys.executable
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    own = FOLDER / ".venv" / name
    code = f"import {', '.join(BRIDGE_NEEDS)}"
    if own.exists() and subprocess.call([str(own), "-c", code], stderr=subprocess.DEVNULL) == 0:
        return str(own)
    raise Failed(
        f"The bridge needs some packages. Install them in {FOLDER} with these two commands, then"
        " start it again:\n"
        f"  {Path(sys.executable).name} -m venv .venv\n"
        f"  {Path('.venv') / name} -m pip install -r requirements-bridge.txt",
        USAGE,
    )


# --------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, signals: Signals) -> None:
    """Do what the options ask for."""
    screen = Screen(quiet=options.quiet)
    wait = Wait(screen, signals, time.monotonic() + options.timeout)
    asks = options.list or options.health or options.fetch or options.cancel
    job = {} if asks else job_of(options, screen)
    if options.start and not options.dry_run:
        place: Any = started(screen, wait)
    else:
        place = contextlib.nullcontext(endpoint_of(os.environ, options.endpoint))
    if not (options.list or options.health or options.cancel or options.dry_run):
        prepare(target_of(options.out))
    with place as endpoint:
        api = Api(endpoint, wait)
        if options.list:
            print_list(api, options, screen, signals)
        elif options.health:
            print_health(api, options)
        elif options.cancel:
            print_cancel(api, options.cancel)
        elif options.dry_run:
            dry_run(api, job, screen, signals)
        else:
            draw(api, job, options, screen, signals)


def check_id(job_id: str) -> None:
    """Failed with status 2 if this cannot be a job's id."""
    if not is_id(job_id):
        raise Failed(f"{plain(job_id, 80)!r} is no job's id.", USAGE)


def print_cancel(api: Api, job_id: str) -> None:
    """Cancel a job; Failed if it was already over."""
    check_id(job_id)
    state = api.cancel(job_id)
    if state != "CANCELLED" and state in FINAL:
        raise Failed(f"The job {job_id} was not cancelled: it is {state}.")
    write_out(ACCEPTED.format(job_id))


def draw(
    api: Api,
    job: dict[str, Json],
    options: argparse.Namespace,
    screen: Screen,
    signals: Signals,
) -> None:
    """Send the job, or fetch the one of --fetch; save its pictures, and report them."""
    if options.fetch:
        check_id(options.fetch)
        answer = follow(api, options.fetch, screen, signals)
    else:
        answer = run_job(api, job, screen, signals)
    files: list[Path] = []
    try:
        files.extend(save(answer, target_of(options.out), api))
    finally:
        report(answer, files, screen)
    if files and not (options.fetch or options.job == "-"):
        screen.say(f"again    {again(options.given, info_of(answer['output']).get('seed'))}")
    if options.json or not files:  # a task without pictures
        write_out(as_json(answer, files))
    elif options.quiet or not (sys.stdout and sys.stdout.isatty()):  # else the report has them
        for file in files:
            write_out(str(file))


def _stopped(signals: Signals) -> str:
    did = "Ended without waiting for the cancel." if signals.job_lives else "Stopped."
    return f"{did} {_fate(signals)}"


def _fate(signals: Signals) -> str:
    """What becomes of the job when the client ends here."""
    if signals.job_lives:
        return _goes_on(signals.job_id)
    if signals.job_id:
        return f"The job is done; to save it again: {command('--fetch', signals.job_id)}"
    return "No job was sent."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the client; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None, as with a closed one
            stream.reconfigure(errors="backslashreplace")
    signals = Signals()
    signals.install()
    try:
        if words[:1] == ["bridge"]:
            return bridge(words[1:])
        run(read_arguments(words), signals)
    except Failed as problem:
        Screen(quiet=False).say(f"client.py: {problem}")
        return problem.status
    except Stopped:
        Screen(quiet=False).say("client.py: No answer within --timeout.")
        return NO_CONNECTION
    except KeyboardInterrupt:
        Screen(quiet=False).say(f"client.py: {_stopped(signals)}")
        return CANCELLED
    except Exception as error:  # noqa: BLE001 - a sentence instead of a traceback
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        sentence = f"This is a bug in client.py, line {line}: {type(error).__name__}: {error}."
        Screen(quiet=False).say(f"client.py: {plain(sentence)} {_fate(signals)}")
        return FAILED
    return DRAWN


if __name__ == "__main__":
    sys.exit(main())
