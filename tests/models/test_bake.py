"""Baking templates into an image's folder, and what a worker of that image does with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.hosts.model_hosts import ModelHosts
from fakes.hub_cache import add_cached
from fakes.model_files import sha256
from fakes.model_store import PROJECT, files_below, full_environment, manager_for
from fakes.template_models import KEY, checkpoint, lora, named, write
from safetensors.numpy import load, load_file, save

from worker.config.store_settings import VOLUME
from worker.files import write_atomically
from worker.formats.model_file import file_sha256
from worker.job.template_file import Templates
from worker.job.txt2img import parse
from worker.models.bake import MANIFEST, Baking

MIB = 1 << 20
YEAR = 365 * 86_400


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as hosts:
        hosts.add_model(version_id=1, data=checkpoint(1, 3 * MIB), name="base.safetensors")
        hosts.add_model(version_id=2, data=lora(2), name="one.safetensors", kind="LORA")
        hosts.add_model(version_id=3, data=lora(3), name="two.safetensors", kind="LORA")
        hosts.add_model(version_id=4, data=checkpoint(4, 2 * MIB), name="other.safetensors")
        yield hosts


@pytest.fixture
def templates(tmp_path):
    """The path of a file with three templates that share models."""
    one, two = named(2, scale=0.5), named(3, te=1.0, unet=0.25)
    content = {
        "plain": {"name": "Plain", "checkpoint": named(4)},
        "fox": {"name": "Fox", "checkpoint": named(1), "loras": [one, two]},
        "owl": {"name": "Owl", "checkpoint": named(1), "loras": [one]},
    }
    return write(tmp_path / "templates.json", content)


def edit(templates, **changes):
    """Add or replace templates; None removes one."""
    content = json.loads(templates.read_text())["templates"] | changes
    write(templates, {name: one for name, one in content.items() if one})


@pytest.fixture
def environ(hosts, tmp_path, templates):
    """The environment of a build, with the API key in a file as a Dockerfile's secret has it."""
    secret = tmp_path / "civitai-key"
    secret.write_text(hosts.civitai_key + "\n")
    keys = {"CIVITAI_API_KEY": "", "CIVITAI_API_KEY_FILE": str(secret), "HF_TOKEN": ""}
    return full_environment(hosts, tmp_path, TEMPLATES_FILE=str(templates), **keys)


@pytest.fixture
def bake(environ, run_command):
    return lambda *arguments, **more: run_command(["bake", *arguments], environ | more)


@pytest.fixture
def merge(bake):
    """Bake with merged checkpoints, which must succeed; returns the log."""

    def merge(*arguments):
        status, _, err = bake("--merge", *arguments)
        assert status == 0, err
        return err

    return merge


@pytest.fixture
def baked(tmp_path):
    return tmp_path / "baked"


def manifest(baked):
    return json.loads((baked / MANIFEST).read_text())


def blobs(baked):
    return [path for path in files_below(baked) if path.endswith(".safetensors")]


def published(baked):
    return {path for path in blobs(baked) if "/blobs/" in path}


def job(templates, name, **fields):
    """A job as the handler reads it."""
    return parse(Templates(templates).fill_in({"template": name, **fields}))


def test_a_cached_model_is_baked_too_because_an_image_has_no_cache(bake, baked, tmp_path):
    cached = add_cached(
        tmp_path / "hub", "org/other", {"other.safetensors": checkpoint(4, 2 * MIB)}
    )
    assert bake("--template", "plain", HUB_CACHE_DIR=str(tmp_path / "hub"))[0] == 0
    blob = cached["other.safetensors"].resolve().name
    assert published(baked) == {f"fetched/blobs/{blob}.safetensors"}


def test_each_model_is_fetched_once_verified_and_listed(bake, merge, baked, hosts, tmp_path):
    status, out, err = bake("--merge", LOG_LEVEL="DEBUG")
    assert (status, err.count("ERROR")) == (0, 0), err
    files = manifest(baked)["files"]
    names = sorted(file["name"] for file in files if file["source"].startswith("civitai:"))
    assert names == ["base", "one", "other", "two"]
    assert all(name in out for name in names)
    for file in files:
        path = baked / file["path"]
        assert (path.stat().st_size, file_sha256(path)) == (file["size"], file["sha256"])
    downloads = [one for one in hosts.asked("civitai") if "/download/" in one.target]
    assert len(downloads) == 4
    assert files_below(tmp_path / "models") == []
    key = hosts.civitai_key
    assert key not in out + err
    for path in baked.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path
    entry = manifest(baked)["templates"]["fox"]
    by_sha = {file["sha256"]: baked / file["path"] for file in files}
    merged = load_file(by_sha[entry["merged"]])[KEY].astype(float)
    expected = load_file(by_sha[entry["checkpoint"]])[KEY].astype(float)
    for one in entry["loras"]:
        parts = load_file(by_sha[one["sha256"]])
        (down, up) = (parts[key].astype(float) for key in sorted(parts))
        expected += one["unet"] * (up @ down)
    assert {(one["te"], one["unet"]) for one in entry["loras"]} == {(0.5, 0.5), (1.0, 0.25)}
    assert abs(merged - expected).max() < abs(expected).max() * 2**-11
    # A lock that is removed would not lock.
    left = set(files_below(baked)) - {".bake.lock"}
    assert not [path for path in left if path.endswith((".part", ".lock", ".new"))]
    folders = {"Lora", "Stable-diffusion", "blobs", "merged", "references"}
    assert {path.name for path in (baked / "fetched").iterdir()} == folders
    # A second run needs no network and changes nothing.
    before = {path: (baked / path).stat().st_mtime_ns for path in blobs(baked)}
    first = (baked / MANIFEST).read_bytes()
    hosts.forget_requests()
    assert "merged " not in merge()
    assert hosts.requests == []
    assert (baked / MANIFEST).read_bytes() == first
    assert {path: (baked / path).stat().st_mtime_ns for path in blobs(baked)} == before


@pytest.mark.parametrize("engine", ["a1111", "embedded"])
def test_a_lora_in_another_tools_names_is_merged_and_converted_in_the_image(
    merge, baked, templates, hosts, engine
):
    """The merge is found by either engine; only A1111 gets the conversion."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    foreign = save(
        {f"unet.{path}.lora.{key.split('_')[-1]}": value for key, value in load(lora(2)).items()}
    )
    hosts.add_model(version_id=7, data=foreign, name="foreign.safetensors", kind="LORA")
    write(templates, {"fox": {"name": "Fox", "checkpoint": named(1), "loras": [named(7)]}})
    assert "merged base+foreign" in merge()
    rows = [file for file in manifest(baked)["files"] if file["kind"] == "lora"]
    assert len({row["sha256"] for row in rows}) == 2  # the source and its conversion
    content = (baked / MANIFEST).read_bytes()
    assert "converted" not in merge()
    assert (baked / MANIFEST).read_bytes() == content
    manager = manager_for(hosts, baked.parent, ENGINE=engine)
    models = manager.find_models(job(templates, "fox"))
    assert models.merged
    (file,) = manager.find_models(job(templates, "fox", prompt="<lora:foreign:1>")).loras
    assert bool(file[0].converted_from) == (engine == "a1111")
    assert file[0].path.is_relative_to(baked)


def test_a_merged_checkpoint_of_a_long_name_is_listed(merge, baked, templates):
    base = named(1, filename="я" * 101 + ".safetensors")
    write(templates, {"long": {"name": "L", "checkpoint": base, "loras": [named(2), named(3)]}})
    merge()
    content = manifest(baked)
    assert content["templates"]["long"]["merged"] in {row["sha256"] for row in content["files"]}
    assert [row["path"] for row in content["files"] if not (baked / row["path"]).is_file()] == []


def test_an_interrupted_merge_starts_again_and_a_damaged_file_is_fetched_again(merge, baked):
    merge()
    first = (baked / MANIFEST).read_bytes()
    downloads = baked / "fetched/downloads"
    downloads.mkdir()
    for note in list((baked / "fetched/merged").iterdir()):
        note.unlink()
        (downloads / f"merge-{note.stem[:32]}.0123456789ab.part").write_bytes(b"half")
    assert merge().count("INFO    [- -] merged ") == 2
    assert (baked / MANIFEST).read_bytes() == first
    assert not downloads.exists()
    row = next(file for file in manifest(baked)["files"] if file["name"] == "one")
    path = baked / row["path"]
    data = path.read_bytes()
    path.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    merge()
    assert file_sha256(path) == row["sha256"]


def test_templates_can_be_baked_one_after_the_other(bake, merge, baked, templates):
    bake("--template", "plain")
    assert list(manifest(baked)["templates"]) == ["plain"]
    merge("--template", "owl")
    assert sorted(manifest(baked)["templates"]) == ["owl", "plain"]
    edit(templates, plain=None)
    merge("--template", "owl")
    assert list(manifest(baked)["templates"]) == ["owl"]


def test_every_model_that_cannot_be_fetched_is_an_error_and_there_is_no_manifest(
    bake, baked, templates
):
    lost = {"name": "L", "checkpoint": named(777)}
    edit(templates, lost=lost, gone={"name": "G", "checkpoint": "gone.safetensors"})
    status, _, err = bake()
    assert (status, err.count("MODEL_NOT_FOUND")) == (1, 2)
    assert "gone.safetensors" in err
    assert "777" in err
    assert not (baked / MANIFEST).exists()


def test_a_lora_of_another_checkpoint_fails_its_template(bake, merge, baked, templates, hosts):
    layer = "mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    hosts.add_model(version_id=9, data=lora(9, layer), name="odd.safetensors", kind="LORA")
    edit(templates, odd={"name": "Odd", "checkpoint": named(1), "loras": [named(9)]})
    # Without a merge only A1111's rules are known here: the embedded engine refuses it itself.
    for arguments, engine in ((["--merge"], "embedded"), ([], "a1111")):
        status, _, err = bake(*arguments, ENGINE=engine)
        assert status == 1
        assert "template 'odd': MODEL_MISMATCH" in err
        assert not (baked / MANIFEST).exists()
    layer = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    hosts.add_model(version_id=8, data=lora(8, layer, "lost"), name="x.safetensors", kind="LORA")
    edit(templates, odd={"name": "Odd", "checkpoint": named(1), "loras": [named(8)]})
    assert "the checkpoint does not have 1 of its layers (lora_unet_lost)" in merge()


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "message"),
    [
        (["--template", "fux"], {}, 1, "Did you mean 'fox'?"),
        ([], {"TEMPLATES_FILE": "/nowhere.json"}, 78, "/nowhere.json cannot be read"),
        ([], {"BAKED_MODELS_DIR": "{}/models"}, 78, "would hide what is baked there"),
        ([], {"BAKED_MODELS_DIR": "{}/models/below"}, 78, "would hide what is baked there"),
        ([], {"BAKED_MODELS_DIR": str(VOLUME / "baked")}, 78, "would hide"),
    ],
)
def test_wrong_arguments_and_settings_are_errors(
    bake, tmp_path, arguments, changes, status, message
):
    changes = {name: value.format(tmp_path) for name, value in changes.items()}
    result, _, err = bake(*arguments, **changes)
    assert (result, message in err) == (status, True), err
    assert not (tmp_path / "models").exists()


def test_nothing_is_evicted_while_an_image_is_baked(hosts, tmp_path):
    """The models that were baked first look like the least recently used ones."""
    manager = manager_for(hosts, tmp_path)
    Baking(manager, tmp_path / "baked").run({})
    assert not manager.space.evicts


def test_baked_models_need_no_network_a_year_later(merge, hosts, templates, tmp_path):
    """Also one of a web file, which may have changed since."""
    edit(templates, web={"name": "W", "checkpoint": hosts.add_web("/x.safetensors", checkpoint(5))})
    merge()
    hosts.forget_requests()
    manager = manager_for(hosts, tmp_path, lambda: time.time() + YEAR)
    for name in ("plain", "fox", "owl", "web"):
        models, new = manager.prepare_models_for_request(job(templates, name))
        assert new
        assert models.loaded.path.is_relative_to(tmp_path / "baked")
        state = manager.template_state(job(templates, name))
        assert state == {"baked": True, "merged": name in {"fox", "owl"}}
    assert hosts.requests == []
    assert not (tmp_path / "models").exists(), "nothing is copied or written"


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_the_next_build_fetches_a_new_version_of_a_web_file(merge, baked, hosts, templates, query):
    """The folder of the build before is still there, as in the cache of an image's build."""
    url = hosts.add_web("/moving.safetensors", checkpoint(5), etag='"1"') + query
    write(templates, {"web": {"name": "W", "checkpoint": url, "loras": [named(2)]}})
    merge()
    first = manifest(baked)["files"]
    hosts.forget_requests()
    merge()
    assert manifest(baked)["files"] == first
    assert hosts.bytes_sent("web") <= 1, "the same ETag is not downloaded again"
    hosts.add_web("/moving.safetensors", checkpoint(6), etag='"2"')
    merge()
    files = {row["name"]: row for row in manifest(baked)["files"]}
    assert files["moving"]["sha256"] == sha256(checkpoint(6))
    assert published(baked) == {row["path"] for row in files.values()}
    cached = (baked / MANIFEST).read_bytes()
    shutil.rmtree(baked)
    merge()
    assert (baked / MANIFEST).read_bytes() == cached, "the same as a build without a cache"


def test_models_that_no_template_names_any_more_are_removed(merge, baked, templates):
    merge()
    operators_own = baked / "Lora" / "own.safetensors"
    operators_own.parent.mkdir()
    operators_own.write_bytes(lora(8))
    for name in ("0" * 64, f".{'1' * 64}.new"):
        (baked / "fetched/diffusers" / name).mkdir(parents=True)
    edit(templates, plain=None, fox=None)
    merge()
    listed = {row["path"] for row in manifest(baked)["files"]}
    assert published(baked) == listed
    links = [path for path in (baked / "fetched").rglob("*") if path.is_symlink()]
    assert len(links) == len(listed)
    assert all(link.exists() for link in links)
    assert operators_own.exists()
    assert list((baked / "fetched/diffusers").iterdir()) == []


def test_what_a_killed_build_was_about_to_write_does_not_stay(bake, baked, monkeypatch):
    def no_replace(_path, target):
        raise KeyboardInterrupt(f"killed before {target}")

    folders = [baked, *(baked / "fetched" / name for name in ("blobs", "merged", "references"))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", no_replace)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(folder / MANIFEST, "{}")
        assert any(folder.glob(".*.new"))

    assert bake("--merge")[0] == 0

    assert not [path for path in files_below(baked) if path.endswith(".new")]


@pytest.fixture(scope="module")
def image(tmp_path_factory, running_hosts):
    """A baked and merged folder, made by a process as in a Dockerfile; no test changes it."""
    folder = tmp_path_factory.mktemp("image")
    content = {
        "owl": {"name": "Owl", "checkpoint": named(1), "loras": [named(2, scale=0.5)]},
        "other": {"name": "Other", "checkpoint": named(4)},
        "two": {"name": "Two", "checkpoint": named(1), "loras": [named(3)]},
    }
    file = write(folder / "templates.json", content)
    environ = full_environment(running_hosts, folder, TEMPLATES_FILE=str(file))
    command = [sys.executable, "model_manager.py", "bake", "--merge"]
    subprocess.run(command, cwd=PROJECT, env=environ, check=True, capture_output=True)
    return folder


JOBS = [
    ({}, True),
    ({"loras": ["Model 2"]}, True),
    ({"loras": [{"name": "Model 2", "scale": 0.5}]}, True),
    ({"loras": [{"name": "Model 2", "te": 0.5, "unet": 0.5}]}, True),
    ({"loras": [{"name": "Model 2", "scale": 0.6}]}, False),
    ({"loras": [{"name": "Model 2", "te": 0}]}, False),
    ({"loras": []}, False),
    ({"loras": ["Model 2", "two"]}, False),
    ({"checkpoint": "other"}, False),
    ({"prompt": "a fox <lora:one:0.3>"}, False),
    ({"prompt": "a fox <lora:two:0.3>"}, True),
    ({"refiner_checkpoint": "other", "refiner_switch_at": 0.5}, False),
    ({"template": None, "checkpoint": "base", "loras": [{"name": "one", "scale": 0.5}]}, False),
]


@pytest.mark.parametrize(("fields", "is_merged"), JOBS, ids=[str(fields) for fields, _ in JOBS])
def test_a_job_that_changes_a_lora_gets_the_checkpoint_and_tags(
    image, running_hosts, fields, is_merged
):
    manager = manager_for(running_hosts, image)
    models = manager.find_models(job(image / "templates.json", "owl", **fields))
    assert bool(models.merged) == is_merged
    kinds = {file.kind for file in models.engine_files() if file.stem != "two"}
    assert kinds == ({"checkpoint"} if is_merged or not models.loras else {"checkpoint", "lora"})


def test_an_edited_template_does_not_use_the_old_merged_checkpoint(image, running_hosts, tmp_path):
    content = json.loads((image / "templates.json").read_text())["templates"]
    content["owl"]["loras"][0]["scale"] = 0.7
    edited = write(tmp_path / "templates.json", content)
    manager = manager_for(running_hosts, image)
    assert manager.find_models(job(edited, "owl")).merged is None
    assert manager.template_state(job(edited, "owl")) == {"baked": True, "merged": False}


def test_the_engine_starts_with_the_default_templates_checkpoint(
    image, running_hosts, tmp_path, run_command
):
    environ = {
        "TEMPLATES_FILE": str(image / "templates.json"),
        "DEFAULT_TEMPLATE": "owl",
        "WEBUI_DIR": str(tmp_path / "webui"),
    }
    run_command(["prepare-engine"], full_environment(running_hosts, image, **environ))
    first = json.loads((tmp_path / "webui/config.json").read_text())["sd_model_checkpoint"]
    assert first.startswith("base+one-")
    assert (tmp_path / f"webui/models/Stable-diffusion/{first}.safetensors").exists()


def test_builds_that_are_killed_at_three_steps_are_resumed_to_the_same_manifest(
    merge, baked, hosts, environ
):
    merge()
    expected = (baked / MANIFEST).read_bytes()
    whole = {path: file_sha256(baked / path) for path in blobs(baked)}
    baked.rename(baked.with_name("reference"))
    hosts.throttle(3 * MIB)
    hosts.forget_requests()
    command = [sys.executable, "model_manager.py", "bake", "--merge"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    steps, killed = [(baked / "fetched/blobs").exists, (baked / "fetched/merged").exists], 0
    for is_time in (lambda: hosts.bytes_sent("storage") > MIB, *steps):
        with subprocess.Popen(command, cwd=PROJECT, env=environ, **quiet) as process:
            while process.poll() is None and not is_time():
                time.sleep(0.005)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        manifest_file = baked / MANIFEST
        assert not manifest_file.exists() or manifest_file.read_bytes() == expected
        for path in (baked / "fetched/blobs").glob("[0-9a-f]*.safetensors"):
            assert file_sha256(path) == path.stem
    assert killed >= 2
    hosts.no_throttle()
    merge()
    assert (baked / MANIFEST).read_bytes() == expected
    assert {path: file_sha256(baked / path) for path in blobs(baked)} == whole
    assert not [path for path in files_below(baked) if path.endswith((".part", ".new"))]
