"""`push`: what goes to a network volume, and what a worker finds there."""

import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest
from fakes import model_files, template_models
from fakes.hosts.bucket import KEY_ID, SECRET
from fakes.hosts.model_hosts import ModelHosts
from fakes.hosts.volume_api import VOLUME
from fakes.model_files import safetensors, sha256
from fakes.model_store import PROJECT, full_environment, manager_for

from worker.formats import model_file
from worker.job.reference import Wanted, parse_reference
from worker.models.volume.limits import DEFAULT

LORA, OTHER = safetensors(model_files.LORA), safetensors(model_files.LORA, number=2)
BASE = safetensors(model_files.SD1)
HF = "org/repo/base.safetensors"
BLOBS, REFERENCES = "models/fetched/blobs", "models/fetched/references"


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as running:
        fox = {"name": "fox.safetensors", "kind": "LORA"}
        running.add_model(version_id=22, model_id=2, data=LORA, file_id=222, **fox)
        running.add_model(version_id=23, model_id=3, data=OTHER, file_id=223, **fox)
        running.add_hf("org/repo", "base.safetensors", BASE)
        yield running


@pytest.fixture
def local(tmp_path):
    """The operator's machine."""
    return tmp_path / "local"


@pytest.fixture
def push(hosts, api, local, run_command):
    """Push; returns the exit status, the rows and standard error."""

    def push(*arguments, **environ):
        more = api.environ() | environ
        where = ("--volume", VOLUME, "--endpoint-url", api.endpoint, "--json")
        environment = full_environment(hosts, local, **more)
        status, out, err = run_command(("push", *where, *arguments), environment)
        assert out, err
        secrets = [*hosts.planted_secrets, KEY_ID, SECRET]
        assert not [secret for secret in secrets if secret in out + err]
        return status, json.loads(out), err

    return push


@pytest.fixture
def no_hashing(monkeypatch):
    """Reading a whole model for its hash is an error from now on."""

    def start():
        def hashed(path, *_):
            raise AssertionError(f"{path} was hashed")

        monkeypatch.setattr(model_file, "_sha256", hashed)

    return start


def ensure(manager, *texts, kind=None):
    return manager.ensure([Wanted(parse_reference(text), kind) for text in texts])


def test_a_worker_finds_what_was_pushed_without_a_request_and_without_hashing(
    push, api, hosts, tmp_path, no_hashing
):
    status, rows, err = push("22", HF)
    assert (status, [row["state"] for row in rows]) == (0, ["sent", "sent"])
    assert [row["path"] for row in rows] == [
        f"{BLOBS}/{sha256(data)}.safetensors" for data in (LORA, BASE)
    ]
    assert "sending fox.safetensors" not in err, "so small a file needs no progress"
    hosts.forget_requests()
    no_hashing()
    volume = api.mount(tmp_path / "volume")
    for _ in range(2):  # a worker, and the next one on the volume
        worker = manager_for(hosts, volume)
        files = ensure(worker, "22", HF, f"sha256:{sha256(LORA)}")
        assert [file.verified_sha256 for file in files] == list(map(sha256, (LORA, BASE, LORA)))
        assert worker.link_everything() == 2
        named = ensure(worker, "fox", kind="lora") + ensure(worker, "base.safetensors")
        assert [file.sha256() for file in named] == [sha256(LORA), sha256(BASE)]
        assert worker.health()["stored"]["loras"] == {"count": 1, "total_size": len(LORA)}
    assert hosts.requests == []


def test_the_metadata_come_last_and_the_second_run_sends_nothing(push, api):
    push("22")
    kinds = [one.key.rpartition("/")[0] for one in api.writes() if one.method == "PUT"]
    assert kinds == [BLOBS, REFERENCES, BLOBS]
    assert api.writes()[-1].key.endswith(".json")
    before = {key: api.content(key) for key in api.files()}
    api.forget_requests()
    status, rows, _ = push("22")
    assert (status, rows[0]["state"], rows[0]["sent"], api.writes()) == (0, "there", 0, [])
    assert {key: api.content(key) for key in api.files()} == before


def test_a_run_without_its_metadata_is_completed_by_the_next(push, api):
    push("22")
    metadata = f"{BLOBS}/{sha256(LORA)}.json"
    api.client.delete_object(Bucket=VOLUME, Key=metadata)
    api.forget_requests()
    push("22")
    assert [one.key for one in api.writes()] == [metadata]


@pytest.mark.parametrize("content", [b"", b"half", LORA[:-1] + b"?"])
def test_a_file_under_the_hash_with_another_content_is_replaced(push, api, content):
    key = f"{BLOBS}/{sha256(LORA)}.safetensors"
    api.client.put_object(Bucket=VOLUME, Key=key, Body=content)
    push("22")
    assert api.content(key) == LORA


def test_what_a_worker_has_fetched_there_stays(push, api, hosts, tmp_path):
    """Its metadata have the file's time; its reference is as new."""
    worker = manager_for(hosts, tmp_path)
    ensure(worker, "22", HF)
    for file in (tmp_path / "models").rglob("*"):
        if file.is_file() and not file.is_symlink():
            key = file.relative_to(tmp_path).as_posix()
            api.client.put_object(Bucket=VOLUME, Key=key, Body=file.read_bytes())
    assert push("22")[1][0]["state"] == "there"
    assert api.writes() == []
    status, rows, _ = push(HF)  # the meaning of `main` is newer here
    assert (status, rows[0]["state"]) == (0, "there")
    assert [one.key.rpartition("/")[0] for one in api.writes()] == [REFERENCES]


def test_a_killed_run_is_continued_and_no_whole_part_is_sent_twice(push, api, hosts, local):
    data = random.Random(1).randbytes(6 * DEFAULT.part)
    header = safetensors(model_files.LORA, size=len(data))
    data = header[: -len(data)] + data
    url = hosts.add_web("/large.safetensors", data)
    reached, hold = threading.Event(), threading.Event()

    def fault(request):
        if request.part == 6:
            reached.set()
            hold.wait(60)
            return "cut"
        return None

    api.fault = fault
    arguments = ("push", url, "--volume", VOLUME, "--endpoint-url", api.endpoint)
    environ = full_environment(hosts, local, **api.environ())
    command = [sys.executable, "model_manager.py", *arguments]
    with subprocess.Popen(command, cwd=PROJECT, env=environ, stderr=subprocess.DEVNULL) as process:
        assert reached.wait(120)
        process.send_signal(signal.SIGKILL)
    hold.set()
    first = {one.part for one in api.requests if one.part}
    api.forget_requests()
    (upload,) = api.client.list_multipart_uploads(Bucket=VOLUME)["Uploads"]
    what = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
    there = {p["PartNumber"] for p in api.client.list_parts(Bucket=VOLUME, **what)["Parts"]}
    assert there
    assert not [key for key in api.files() if key.endswith(".json")]
    api.fault = lambda _: None
    status, (row,), _ = push(url)
    second = {one.part for one in api.requests if one.part}
    assert (status, api.content(row["path"]) == data) == (0, True)
    assert second == set(range(1, 8)) - there
    assert len(second & first) <= DEFAULT.at_once, "they were in flight"
    assert row["sent"] == sum(one.size for one in api.requests if one.method == "PUT")


# Templates and own files.


def test_the_models_of_templates_are_pushed_each_once(push, api, hosts, tmp_path, local):
    base = template_models.checkpoint()
    lora = template_models.lora()
    hosts.add_model(version_id=1, model_id=1, data=base, name="base.safetensors")
    hosts.add_model(version_id=5, model_id=5, data=lora, name="tag.safetensors", kind="LORA")
    own = local / "models/Lora/sub/own.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(template_models.lora(3))
    named = {"name": "x", "checkpoint": template_models.named(1)}
    templates = {
        "one": named | {"loras": [template_models.named(5)]},
        "two": named | {"defaults": {"prompt": "<lora:own:1>"}},
        "bad": named | {"checkpoint": template_models.named(404)},
    }
    file = template_models.write(tmp_path / "templates.json", templates)
    status, rows, err = push(TEMPLATES_FILE=str(file))
    assert (status, "bad: MODEL_NOT_FOUND: " in err) == (1, True)
    sent = [(row["name"], row["state"]) for row in rows if "state" in row]
    assert sent == [("base", "sent"), ("tag", "sent"), ("own", "sent")]
    assert api.content("models/Lora/sub/own.safetensors") == own.read_bytes()
    status, rows, _ = push("--template", "two", TEMPLATES_FILE=str(file))
    assert (status, [row["state"] for row in rows]) == (0, ["there", "there"])
    assert push("--template", "tow", TEMPLATES_FILE=str(file))[0] == 1


def test_a_template_whose_files_do_not_fit_together_is_not_sent(push, api, hosts, tmp_path):
    wide = safetensors(model_files.SDXL)
    hosts.add_model(version_id=7, model_id=7, data=wide, name="wide.safetensors")
    models = {"checkpoint": template_models.named(7), "loras": [template_models.named(22)]}
    templates = {"t": {"name": "x"} | models}
    file = template_models.write(tmp_path / "templates.json", templates)
    status, rows, _ = push(TEMPLATES_FILE=str(file))
    assert (status, rows[0]["code"], api.writes()) == (1, "MODEL_MISMATCH", [])


def test_a_file_of_the_operator_gets_its_folder_and_never_replaces_another(
    push, api, tmp_path, hosts
):
    mine = tmp_path / "my lora.safetensors"
    mine.write_bytes(LORA)
    for state in ("sent", "there"):
        status, (row,), _ = push(str(mine))
        assert (status, row["state"], row["kind"]) == (0, state, "lora")
    assert api.files() == ["models/Lora/my lora.safetensors"]
    mine.write_bytes(OTHER)  # as many bytes
    status, (row,), err = push(str(mine))
    assert (status, row["code"]) == (1, "VOLUME_FAILED")
    assert "another file models/Lora/my lora.safetensors" in err
    assert api.content(api.files()[0]) == LORA
    worker = manager_for(hosts, api.mount(tmp_path / "volume"))
    (file,) = ensure(worker, "my lora", kind="lora")
    assert file.path.read_bytes() == LORA


def test_a_checkpoint_is_pushed_with_its_yaml_below_another_prefix(push, api, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(BASE)
    mine.with_suffix(".yaml").write_text("model: {}")
    assert push(str(mine), "--prefix", "a/b/", "--kind", "checkpoint")[0] == 0
    names = ["a/b/Stable-diffusion/mine.safetensors", "a/b/Stable-diffusion/mine.yaml"]
    assert api.files() == names
    api.forget_requests()
    push(str(mine), "--prefix", "a/b", "--kind", "checkpoint")
    assert api.writes() == []


NOT_SENT = {
    "html": ("x.safetensors", model_files.HTML, (), "MODEL_FILE_INVALID"),
    "kind": ("x.safetensors", LORA, ("--kind", "vae"), "MODEL_NOT_SUPPORTED"),
    "pickle": ("x.ckpt", model_files.PICKLE, (), "INVALID_INPUT"),
    "missing": ("x.safetensors", None, (), "INVALID_INPUT"),
}


@pytest.mark.parametrize(("name", "data", "more", "code"), NOT_SENT.values(), ids=NOT_SENT)
def test_a_file_that_is_no_usable_model_is_not_sent(push, api, tmp_path, name, data, more, code):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    status, (row,), _ = push(str(tmp_path / name), *more)
    assert (status, row["code"], api.writes()) == (1, code, [])


def test_a_model_that_was_damaged_on_this_machine_is_not_sent(push, api, local):
    push("22")
    api.reset()
    (blob,) = (local / "models/fetched/blobs").glob("*.safetensors")
    status = blob.stat()
    blob.write_bytes(LORA[:-1] + b"?")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, (row,), err = push("22")
    assert (code, row["code"], api.writes()) == (1, "MODEL_FILE_INVALID", [])
    assert "model_manager.py verify fox" in err


def test_a_dry_run_fetches_and_sends_nothing(push, api, hosts, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(OTHER)
    arguments = ("22", str(mine), "--dry-run")
    status, rows, _ = push(*arguments)
    listed = [(row["name"], row["state"], row["size"]) for row in rows]
    assert listed == [("fox", "to fetch and send", len(LORA)), ("mine", "to send", len(OTHER))]
    assert (status, api.writes(), hosts.count("storage")) == (0, [], 0)
    push(*arguments[:-1])
    api.forget_requests()
    states = [row["state"] for row in push(*arguments)[1]]
    assert (states, api.writes()) == (["there", "there"], [])


# Failures.


def test_a_wrong_key_is_found_before_anything_is_fetched(push, api, hosts):
    api.fault = lambda _: 403
    status, (row,), err = push("22")
    assert (status, row["code"], hosts.count("storage")) == (1, "VOLUME_FAILED", 0)
    assert "RUNPOD_S3_ACCESS_KEY" in err


def test_a_missing_key_is_a_wrong_configuration(hosts, local, run_command):
    environ = full_environment(hosts, local)
    arguments = ("push", "22", "--volume", "v1", "--data-center", "EU-RO-1")
    status, out, err = run_command(arguments, environ)
    assert (status, out) == (78, "")
    assert "RUNPOD_S3_ACCESS_KEY and RUNPOD_S3_SECRET_KEY must be set" in err


def test_one_failure_does_not_stop_the_others(push, api):
    api.fault = lambda one: 507 if sha256(LORA) in one.key and one.method == "PUT" else None
    no_path = f"{'x' * 300}.safetensors"  # longer than a file's name can be
    status, rows, err = push("22", "99", no_path, "23")
    codes = [row.get("code", row.get("state")) for row in rows]
    assert (status, codes) == (1, ["MODEL_NOT_FOUND", "INVALID_INPUT", "STORE_FULL", "sent"])
    assert f"{VOLUME} is full" in err
    assert not [key for key in api.files() if sha256(LORA) in key]
