"""The environment, the files that the operator or the engine writes, arguments, and the log."""

import contextlib
import io
import json
import logging
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from fakes.recorded import recorded

from tests.fuzz.jobs import few
from tests.fuzz.target import target
from worker import log
from worker.config import bucket_address, nvidia_smi, webui_config
from worker.config.as_written import as_base_url, as_flags, as_hosts, as_meant, as_origins, as_path
from worker.config.credentials import secret_values
from worker.config.settings import Settings
from worker.errors import ConfigError
from worker.service import arguments

NAMES = [name.upper() for name in Settings.model_fields]
VALUES = [
    *("1", "0", "-1", "1e9", "nan", "inf", "true", "auto", "a1111", "external"),
    "http://127.0.0.1:3000",
    *("https://user:verysecret@x.y/z", "~/x", "~nobody/x", "$HOME/x", "/models", "a,b;c"),
    "x.y:8080",
    *("--port 1", "--medvram", "'", '"', "“x”", "none", "warn", "DEBUG"),
    "s3.eu-west-1.amazonaws.com",
    *("https://pictures.s3.eu-west-1.amazonaws.com", "http://[::1", "user:password", "*", "null"),
]
OPTIONS = few(recorded("get_options"))
SECRETS = {"CIVITAI_API_KEY": "verysecretkey", "BUCKET_SECRET_ACCESS_KEY": "anothersecret"}


@target(ConfigError, seconds=2.0)
def environment(draw):
    """Any values of the environment; no message has a secret."""
    environ = {
        draw.choice(NAMES): draw.choice((draw.text(VALUES), draw.choice(VALUES)))
        for _ in range(1 + draw.randrange(5))
    }
    environ = {name: value.replace("\0", "") for name, value in environ.items()}
    if draw.randrange(2):
        environ |= SECRETS
    try:
        found = Settings.from_environ(environ | {"SUPERVISOR_PID": "1"})
        assert not any(secret in repr(found) for secret in SECRETS.values())
        secret_values(environ)
    except ConfigError as error:
        assert not any(secret in str(error) for secret in SECRETS.values())
        raise


@target()
def value_as_written(draw):
    """One value, as consoles and files pass it on."""
    text = draw.text(VALUES)
    as_meant(text)
    for read in (as_path, as_flags, as_hosts, as_origins, as_base_url, bucket_address.read):
        with contextlib.suppress(ValueError):
            read(text)


@cache
def folder():
    """A data folder of the engine."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@target(seconds=2.0, per_mb=30.0)
def config_json(draw):
    """The WebUI's config.json: what is wrong in it is put aside, never a reason not to start."""
    place = folder() / "config.json"
    place.write_bytes(draw.json([OPTIONS, {"sd_checkpoints_limit": 2}]))
    webui_config.checkpoint(folder())
    webui_config.own_checkpoints_limit(folder())
    if draw.randrange(2):
        webui_config.set_checkpoint(folder(), "x")
    webui_config.write(folder(), "x")
    written = json.loads(place.read_text())
    assert written["samples_format"] == "png"


@cache
def logger():
    """Handlers of the worker's log in both formats, and what they write."""
    written, found = io.StringIO(), {}
    for form, formatter in (("text", log._Text()), ("json", log._Json())):
        found[form] = handler = log._Handler(written)
        handler.setFormatter(formatter)
        handler.addFilter(log._Redacting(["verysecret", "xverysecretx"]))
    return found, written


@target()
def log_line(draw):
    """A text from outside in the log: one entry, without secrets, within RunPod's limit."""
    handlers, written = logger()
    form = draw.choice(("text", "json"))
    text = draw.text(("verysecret", "\n2026-01-01T00:00:00Z INFO    [- -] forged", "\x1b[2J", "\r"))
    written.seek(0)
    written.truncate()
    token = log.job_id.set(draw.text())
    try:
        with log.hiding(["ofthejob"]):
            handlers[form].handle(logging.makeLogRecord({"msg": "%s ofthejob", "args": (text,)}))
    finally:
        log.job_id.reset(token)
    line = written.getvalue().removesuffix("\n")
    assert "verysecret" not in line
    assert "ofthejob" not in line
    assert len(line) <= log.LONGEST
    assert not any(one.startswith("2026") for one in line.split("\n")[1:])
    assert form == "text" or json.loads(line)


@target(SystemExit)
def command_line(draw):
    """The arguments of handler.py, with a job as JSON."""
    document = draw.json([{"input": {"prompt": "a"}}, {"prompt": "a"}]).decode("utf-8", "replace")
    with contextlib.redirect_stderr(io.StringIO()):
        found = arguments.read(["--test_input", document.replace("\0", "")])
    shlex.join(found.for_handler)
    json.dumps(found.job)


GPUS = ["NVIDIA L4, 8.9, 550.54.15, 23034, 22500", "[N/A], [Not Supported], 1, 2, 3", ", , , ,"]
REPORT = b"<nvidia_smi_log><cuda_version>12.4</cuda_version><gpu><mig_mode><current_mig>Disabled"
REPORT += b"</current_mig></mig_mode></gpu></nvidia_smi_log>"


@target()
def nvidia_smi_output(draw):
    """What nvidia-smi prints."""
    listed = "\n".join(draw.choice((*GPUS, draw.text(GPUS))) for _ in range(draw.randrange(4)))
    status = draw.choice((0, 2, 9, -1))
    found = nvidia_smi.read(subprocess.CompletedProcess((), status, listed))
    nvidia_smi.with_report(found.gpus, draw.blob([REPORT]).decode(errors="replace"))
