"""The whole diagnosis, as a program of its own: what is in it, and what never is."""

import ctypes
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker.config.settings import PROJECT
from worker.kept_log import KeptLog

# A planted secret has this word in it, and nothing else does.
PLANTED = {
    "CIVITAI_API_KEY": "xyzzyCivitai0123456789",
    "HF_TOKEN": "hf_xyzzyabcdefghijkl",
    "BUCKET_ACCESS_KEY_ID": "AKIAxyzzy00000000000",
    "BUCKET_SECRET_ACCESS_KEY": "xyzzy/secret+key/of/the/bucket0000000000",
    "RUNPOD_API_KEY": "rpa_xyzzyABCDEFGHIJK",
    "RUNPOD_AI_API_KEY": "xyzzy-ai-key",
    "RUNPOD_S3_SECRET_KEY": "xyzzy-volume",
    "GATEWAY_LOGIN": "operator:xyzzy-password",
    "GATEWAY_TOKEN": "xyzzy-token",
    "DB_PASS": "xyzzy-unknown-name",
    "lower_case_key": "xyzzy lower case",
    "HF_ENDPOINT": "https://me:xyzzy-mirror@mirror.example",
    "CIVITAI_URL": "https://mirror.example/xyzzyA1b2c3d4e5f6g7h8i9j0",
    "WEBUI_ARGS": "--api-auth user:xyzzy-auth --gradio-auth=a:xyzzy-b --medvram --device-id 1",
    "RUNPOD_WEBHOOK_GET_JOB": "https://api.runpod.ai/v2/e/job-take/$ID?key=xyzzy-query",
    "HTTPS_PROXY": "http://proxy:xyzzy-proxy@proxy.example:3128",
    "BUCKET_ENDPOINT_URL": "https://s3.example/bucket",
}
LINES = (
    "POST https://user:xyzzypass@h.example/x",
    "GET https://h.example/f?token=xyzzy123",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=xyzzy1",
    "Authorization: Bearer xyzzy.unknown.token",
    "{'Cookie': 'session=xyzzy'}",
    *(f"it reads {value} here" for value in PLANTED.values()),
)
KEPT = (
    "2026-11-29T09:00:00Z INFO    [job-1 upload] done {'total': 1.5}",
    "2026-11-29T09:00:01Z WARNING [job-2 validate] failed {'total': 0.1}: INVALID_INPUT: it is.",
    '{"requestId": "job-3", "phase": "-", "level": "ERROR", "message": "internal error 012345"}',
    "```",
    "@somebody <img src=x> \x1b[31mred\x1b[0m",
    "\r".join(f"{percent}%|" for percent in range(100)),
)


def run(*arguments, environ=None, program=("handler.py",), **more):
    """The program's standard output and standard error."""
    given = {"PATH": os.environ["PATH"], "HOME": "/home/nobody"} | (environ or {})
    done = subprocess.run(
        [sys.executable, *program, "--diagnose", *arguments],
        cwd=PROJECT,
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def part(text, title):
    """The content of one part."""
    found = re.search(
        rf"^## {re.escape(title)}\n\n(`+)text\n(.*?)\n\1$", text, re.MULTILINE | re.DOTALL
    )
    return found[2]


@pytest.fixture
def folder(tmp_path):
    """A worker's folders, after it has died."""
    (tmp_path / "run").mkdir()
    for name, lines in (("handler", KEPT), ("engine", LINES)):
        KeptLog(tmp_path / "run" / f"log.{name}").write("".join(f"{x}\n" for x in lines).encode())
    (tmp_path / "run/log.start").write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "run/engine").write_text("failed 137 no further restart\n")
    for name in ("downloads/key.1.part", "leases/key.lock", "Stable-diffusion/a.safetensors"):
        (tmp_path / "models" / name).parent.mkdir(parents=True)
        (tmp_path / "models" / name).write_bytes(b"12345")
    os.mkfifo(tmp_path / "models/Stable-diffusion/pipe.safetensors")
    return tmp_path


@pytest.fixture
def environ(folder):
    names = {"RUN_DIR": "run", "MODELS_DIR": "models", "WEBUI_DIR": "webui"}
    return {name: str(folder / below) for name, below in names.items()}


def test_no_planted_secret_is_in_it_and_what_helps_is(folder, environ):
    (folder / "key").write_text("xyzzy-of-a-file\n")
    secrets = PLANTED | {"CIVITAI_TOKEN_FILE": str(folder / "key")}
    for given in (environ | PLANTED, environ | secrets, environ):
        if "CIVITAI_TOKEN_FILE" in given:
            with (folder / "run/log.start").open("a") as log:
                log.write("it has xyzzy-of-a-file\n")
        out, err = run(environ=given)
        path = Path(re.search(r"the diagnosis is in (\S+):", err)[1])
        text = path.read_text()
        found = [line for line in text.splitlines() if "xyzzy" in line]
        if given is environ:  # nobody knows the secrets any more: what looks like one is hidden
            found = [line for line in found if not line.startswith(("it reads ", "it has "))]
        assert found == []
        assert (out, path.parent, path.stat().st_mode & 0o777) == ("", folder / "run", 0o600)
    assert "secrets that are set: BUCKET_ACCESS_KEY_ID" in run("-", environ=environ | PLANTED)[0]
    assert part(text, "Jobs").splitlines() == [
        "in the kept lines: 1 done, 1 INVALID_INPUT, 1 INTERNAL_ERROR",
        *("2026-11-29T09:00:00Z job-1 done", "2026-11-29T09:00:01Z job-2 INVALID_INPUT"),
        " job-3 INTERNAL_ERROR",
    ]
    assert "engine: failed 137 no further restart" in part(text, "State and health")
    store = part(text, "Folder MODELS_DIR")
    assert re.search(r"key\.1\.part: 0\.000 MB, written \d+ s ago", store)
    assert "Stable-diffusion: 1 files with 0.0 MB (1 .safetensors), 0 links, 1 that are" in store
    lines = part(text, "Last lines of the handler")
    assert lines.splitlines()[3:] == ["```", "@somebody <img src=x> red", "99%|"]
    assert "This part is not complete" not in text


def test_the_flags_of_a1111_are_shown_without_their_words(environ):
    text, _ = run("-", environ=environ | PLANTED)
    shown = "WEBUI_ARGS: --api-auth *** --gradio-auth=*** --medvram --device-id 1\n"
    assert shown in part(text, "Settings")


@pytest.mark.parametrize("name", ["WEBUI_ARGS", "COMMANDLINE_ARGS"])
@pytest.mark.parametrize(
    "flags", ["--gradio-auth 'a:my xyzzy1,b:xyzzy=2' --ngrok=xyzzy3", '"--api-auth a:xyzzy4"']
)
def test_a_password_of_a_flag_is_hidden_in_the_engines_lines(folder, environ, name, flags):
    words = [word for word in ("my xyzzy1", "xyzzy=2", "xyzzy3", "xyzzy4") if word in flags]
    log = KeptLog(folder / "run/log.engine")
    log.write("".join(f"it reads {word} here\n" for word in words).encode())
    text, _ = run("-", environ=environ | {name: flags, "ENGINE": "a1111"})
    lines = part(text, "Last lines of the engine").splitlines()
    assert lines[-len(words) :] == ["it reads *** here"] * len(words)
    (shown,) = re.findall("^WEBUI_ARGS: (.*)", text, re.MULTILINE)
    assert shown in {"--gradio-auth *** --ngrok=***", "--api-auth ***"}


def test_broken_settings_are_named_and_the_rest_counts(environ):
    wrong = {"ENGINE": "comfy", "JOB_TIMEOUT": "-1", "PORT": "7860", "BUCKET_NAME": "alone"}
    wrong |= {"HF_TOKEN_FILE": "/no/such/file", "WEBUI_URL": "http://u:xyzzypw@h:99999999"}
    text, _ = run("-", environ=environ | wrong)
    settings = part(text, "Settings")
    for name in ("ENGINE", "JOB_TIMEOUT", "BUCKET_ENDPOINT_URL", "HF_TOKEN_FILE", "WEBUI_URL"):
        assert re.search(rf"^WRONG: .*{name}", settings, re.MULTILINE), settings
    assert "xyzzypw" not in text
    assert "PORT: 7860\n" in settings
    assert f"MODELS_DIR: {environ['MODELS_DIR']}\n" in settings


@pytest.mark.parametrize("where", ["/proc/nothing/here", "taken"])
def test_where_nothing_can_be_written_it_is_on_standard_output(folder, environ, where):
    (folder / "taken").write_text("mine")
    out, err = run(where if where[0] == "/" else str(folder / where), environ=environ)
    assert out.startswith("# Diagnosis of the worker\n")
    assert "it follows on standard output" in err
    assert (folder / "taken").read_text() == "mine"


def test_on_a_full_disk_it_is_on_standard_output_and_leaves_no_part_of_a_file(folder, environ):
    limited = ["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "-", sys.executable]
    done = subprocess.run(
        [*limited, "handler.py", "--diagnose"],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("# Diagnosis of the worker\n")
    assert "## Last lines of start.sh" in done.stdout
    assert not list((folder / "run").glob("*.md"))


@contextmanager
def deaf_engine():
    """A program that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_engine_that_hangs_is_reported_and_costs_nothing_else(environ):
    with deaf_engine() as url:
        text, _ = run("-", environ=environ | {"WEBUI_URL": url})
    answers = part(text, "The engine's answers")
    assert "a program accepts connections there" in answers
    assert answers.endswith("no answer within 4 s: it hangs, or it computes")
    assert "Python 3." in part(text, "Versions")


@contextmanager
def hung_volume(folder):
    """A mount whose server never answers: each access waits for ever, as on a lost network."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("this machine has no FUSE")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"hung", bytes(folder), b"fuse", 0, options):
        os.close(server)
        pytest.skip("only root may mount")
    try:
        yield
    finally:
        libc.umount2(bytes(folder), 2)  # MNT_DETACH
        os.close(server)


def test_a_volume_that_hangs_costs_only_its_own_part(tmp_path, environ):
    with hung_volume(tmp_path / "volume"):
        text, _ = run("-", environ=environ | {"MODELS_DIR": str(tmp_path / "volume/models")})
    volume = part(text, "Folder MODELS_DIR")
    assert f"mount: fuse at {tmp_path / 'volume'}, writable" in volume
    assert volume.endswith("This part is not complete: it did not end within 8 seconds")
    assert f"MODELS_DIR: {tmp_path / 'volume/models'}\n" in part(text, "Settings")
    for title in ("Versions", "Limits", "Folder RUN_DIR", "Last lines of the handler"):
        assert "not complete" not in part(text, title)


def test_without_any_worker_and_without_packages_it_says_so(tmp_path):
    """`python -m worker.diagnosis` imports nothing that could be missing."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "worker.diagnosis", "-"],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "RUN_DIR": str(tmp_path / "none"), "DB_PASS": "xyzzy-1"},
        capture_output=True,
        text=True,
        check=True,
    )
    settings = part(done.stdout, "Settings")
    assert re.search(
        "WRONG: the settings could not be read: ModuleNotFoundError: .*pydantic", settings
    )
    assert "xyzzy" not in done.stdout
    assert "pydantic is not installed" in part(done.stdout, "Versions")
    assert part(done.stdout, "Jobs") == "no lines of a handler are kept"
    assert json.dumps(done.stderr) == '""'
