"""What start.sh makes of its environment for its two programs: variables, streams, the user."""

import shutil
import subprocess
import sys

import pytest
from fakes.supervised import LASTING_ENGINE, PROJECT

from worker.config.settings import Settings

# Those that start.sh itself sets.
SET_BY_START_SH = {
    *("supervisor_pid", "read_only_models_dir"),
    *("engine_device", "engine_gpu", "engine_driver", "engine_attention"),
}
OF_OPERATOR = {
    "RUNPOD_POD_ID": "pod1",
    "RUNPOD_ENDPOINT_ID": "end1",
    "RUNPOD_DC_ID": "EU-1",
    "RUNPOD_VOLUME_ID": "vol1",
    "RUNPOD_GPU_COUNT": "1",
    "RUNPOD_INIT_TIMEOUT": "300",
    "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/take",
    "REVISION": "c0ffee",
    "PORT": "7860",
    "PORT_HEALTH": "7861",
    "GATEWAY_HOSTS": "gpu.example, other.example",
    "GATEWAY_ORIGINS": "http://localhost:5173",
    "GATEWAY_LOGIN": "me:swordfish",
    "GATEWAY_TOKEN": "swordfish",
    "HUB_CACHE_DIR": "/nowhere/hub",
    "MODELS_BUDGET_GB": "12.5",
    "ALLOW_PICKLES": "yes",
    "DEVICE": "CPU",
    "WEBUI_ARGS": "--ckpt-dir '/a b' --api-auth \"me:it's $HOME\"",
    "A1111_SPEEDUPS": "off",
    "CIVITAI_API_KEY": "key1",
    "HF_TOKEN": "key2",
    "CIVITAI_URL": "https://civitai.example/",
    "HF_ENDPOINT": "https://hub.example",
    "TRUSTED_HOSTS": "Mirror.example:8080, other.example",
    "TEMPLATES_FILE": "my templates.json",
    "DEFAULT_TEMPLATE": "none",
    "READY_TIMEOUT": "1e2",
    "JOB_TIMEOUT": "77",
    "JOB_CONCURRENCY": "2",
    "SHUTDOWN_GRACE": "2.5",
    "MAX_ENGINE_RESTARTS": "5",
    "ENGINE_RESTART_WINDOW": "60.25",
    "CHECKPOINTS_IN_MEMORY": "2",
    "MEMORY_GROWTH_LIMIT_GB": "1.5",
    "OUTPUT_DIR": "out put",
    "RESULT_LIMIT_MB": "4",
    "BUCKET_ENDPOINT_URL": "https://s3.example/bucket",
    "BUCKET_NAME": "bucket",
    "BUCKET_ACCESS_KEY_ID": "key3",
    "BUCKET_SECRET_ACCESS_KEY": "key4",
    "BUCKET_REGION": "mars-1",
    "BUCKET_PUBLIC_URL": "https://cdn.example/pics",
    "LOG_LEVEL": "'warn'",
    "LOG_FORMAT": "JSON",
}
# Variables that are no settings, but that the worker, its libraries or the engine read.
OTHERS = {
    "COMMANDLINE_ARGS": "--medvram",
    "CUDA_VISIBLE_DEVICES": "0",
    "https_proxy": "http://proxy.example",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "2",
    "USER": "me",
    "HOME": "/home/me",
}


def settings(environ):
    return Settings.from_environ(environ).model_dump(exclude=SET_BY_START_SH)


def test_both_programs_get_every_variable_as_the_operator_meant_it(new_worker):
    """The shell assigns some of them again: it must leave their meaning, and export them."""
    worker = new_worker(**OF_OPERATOR, **OTHERS)
    given = worker.environ
    fields = {name.lower() for name in given} & Settings.model_fields.keys()
    assert fields | SET_BY_START_SH == Settings.model_fields.keys(), "set a value for each"
    worker.start()
    engine, handler = (worker.await_event(f"{it} started") for it in ("engine", "handler"))

    assert given.keys() <= handler["environ"].keys()
    for program in (engine, handler):
        got = {name: value for name, value in program["environ"].items() if name in given}
        assert settings(given | got) == settings(given)
        assert {name: got[name] for name in OTHERS.keys() & got.keys()}.items() <= given.items()
    assert OTHERS.keys() - engine["environ"].keys() == {"COMMANDLINE_ARGS"}
    # A1111 adds the flags of COMMANDLINE_ARGS by itself.
    assert not {"COMMANDLINE_ARGS", "WEBUI_ARGS"} & engine["environ"].keys()
    flags = ["--ckpt-dir", "/a b", "--api-auth", "me:it's $HOME", "--medvram"]
    assert [word for word in engine["arguments"] if word in flags] == flags


NOTE_STREAMS = "me.note('streams', files=[os.readlink(f'/proc/self/fd/{it}') for it in range(3)]); "


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_stream_that_is_closed_at_the_start_is_the_null_device(new_worker, closed):
    """Else Python has no sys.stdout, or one that cannot be written, and no SDK is imported."""
    worker = new_worker(NOTE_STREAMS + LASTING_ENGINE, f"{NOTE_STREAMS}me.serve()")
    worker.start(under=("bash", "-c", f'exec {closed}; exec "$@"', "-"))
    null, own, other = worker.await_event("handler streams")["files"]
    assert (null, own == "/dev/null", other == "/dev/null") == (
        *("/dev/null", "1>" in closed, "2>" in closed),
    )
    null, *pipes = worker.await_event("engine streams")["files"]
    assert null == "/dev/null"
    assert all(it.startswith("pipe:") for it in pipes)
    assert worker.stop() == 0


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_the_handler_opens_a_closed_stream_by_itself(closed):
    show = "import standard_streams as it; it.open_closed(); import os, sys;"
    show += "sys.exit([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)].count('/dev/null'))"
    command = ["bash", "-c", f'exec {closed}; exec "$@"', "-", sys.executable]
    worker = {"cwd": PROJECT / "worker", "capture_output": True, "stdin": subprocess.PIPE}
    found = subprocess.run([*command, "-c", show], check=False, **worker)
    assert found.returncode == closed.count("-")
    done = subprocess.run([*command, PROJECT / "handler.py", "--schema"], check=False, **worker)
    assert done.returncode == 0, done.stderr


def test_a_user_without_a_name_gets_one_and_a_home(new_worker):
    """torch ends its own import where nothing names the user."""
    under = ("unshare", "--user", "--map-user=4321")
    if not shutil.which("unshare") or subprocess.run([*under, "true"], check=False).returncode:
        pytest.skip("this machine does not let a process be another user")
    ask = "import getpass, pathlib; home = str(pathlib.Path.home()); "
    ask += "me.note('user', name=getpass.getuser(), home=home); "
    worker = new_worker(ask + LASTING_ENGINE, f"{ask}me.serve()")
    assert not {"USER", "LOGNAME", "HOME"} & worker.environ.keys()
    worker.start(under=under)
    for program in ("engine", "handler"):
        user = worker.await_event(f"{program} user")
        assert (user["name"], user["home"]) == ("4321", "/")
    assert worker.stop() == 0
