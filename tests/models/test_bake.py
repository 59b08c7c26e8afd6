"""Baking: the command as a Dockerfile runs it, and what a worker then makes of the folder."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_store import PROJECT, files_below, full_environment, manager_for
from safetensors.numpy import load_file, save

from worker.config.settings import VOLUME, Settings
from worker.errors import ConfigError
from worker.formats.model_file import file_sha256
from worker.job.request import parse
from worker.job.template_file import Templates
from worker.models.bake import MANIFEST, Baking
from worker.models.store import references

WIDTH = 768  # SD1's
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
KILLS = 12
MIB = 1 << 20


def checkpoint(seed=0, filler=0):
    """A stand-in with what tells SD1 from the others, and one layer that LoRAs can change."""
    numbers = np.random.default_rng(seed)
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        KEY: (16, WIDTH),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, WIDTH),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    }
    tensors = {k: numbers.normal(size=shape).astype(np.float16) for k, shape in shapes.items()}
    if filler:
        tensors["filler"] = numbers.integers(0, 255, filler, np.uint8)
    return save(tensors)


def lora(seed=0, layer="down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"):
    numbers = np.random.default_rng(seed)
    parts = {"lora_down": (4, WIDTH), "lora_up": (16, 4)}
    return save(
        {
            f"lora_unet_{layer}.{part}.weight": numbers.normal(size=shape).astype(np.float16)
            for part, shape in parts.items()
        }
    )


def named(number, **more):
    url = f"https://civitai.com/api/download/models/{number}"
    return {"name": f"Model {number}", "url": url, **more}


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as hosts:
        hosts.add_model(version_id=1, data=checkpoint(1, 3 * MIB), name="base.safetensors")
        hosts.add_model(version_id=2, data=lora(2), name="one.safetensors", kind="LORA")
        hosts.add_model(version_id=3, data=lora(3), name="two.safetensors", kind="LORA")
        hosts.add_model(version_id=4, data=checkpoint(4, 2 * MIB), name="other.safetensors")
        yield hosts


@pytest.fixture
def hosts(running_hosts):
    running_hosts.no_faults()
    running_hosts.no_throttle()
    running_hosts.forget_requests()
    return running_hosts


@pytest.fixture
def templates(tmp_path):
    """A file with three templates that share models; returns its path."""
    one, two = named(2, scale=0.5), named(3, te=1.0, unet=0.25)
    base = named(1)
    content = {
        "plain": {"name": "Plain", "checkpoint": named(4)},
        "fox": {"name": "Fox", "checkpoint": base, "loras": [one, two]},
        "owl": {"name": "Owl", "checkpoint": base, "loras": [one]},
    }
    return write(tmp_path / "templates.json", content)


def write(file, templates, **more):
    file.write_text(json.dumps({"templates": templates, **more}))
    return file


@pytest.fixture
def start(hosts, tmp_path, templates):
    """Begin to bake into `tmp_path / "baked"`."""
    secret = tmp_path / "civitai-key"
    secret.write_text(hosts.civitai_key + "\n")

    def start(*arguments, **environ):
        keys = {"CIVITAI_API_KEY": "", "CIVITAI_API_KEY_FILE": str(secret), "HF_TOKEN": ""}
        more = {"TEMPLATES_FILE": str(templates), **keys, **environ}
        return subprocess.Popen(
            [sys.executable, "model_manager.py", "bake", *arguments],
            cwd=PROJECT,
            env=full_environment(hosts, tmp_path, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def bake(start):
    """Bake; returns the exit status, standard output and standard error."""

    def bake(*arguments, **environ):
        with start(*arguments, **environ) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return bake


@pytest.fixture
def baked(tmp_path):
    return tmp_path / "baked"


def manifest(baked):
    return json.loads((baked / MANIFEST).read_text())


def job(templates, name, **said):
    """A job as the handler reads it."""
    return parse(Templates(templates).fill_in({"template": name, **said}))


def test_each_model_is_fetched_once_verified_and_listed(bake, baked, hosts, tmp_path):
    status, out, err = bake()

    assert (status, err.count("ERROR")) == (0, 0), err
    files = manifest(baked)["files"]
    names = sorted(file["name"] for file in files)
    assert names == ["base", "one", "other", "two"]
    for file in files:
        path = baked / file["path"]
        assert (path.stat().st_size, file_sha256(path)) == (file["size"], file["sha256"])
        assert file["source"].startswith("civitai:")
    downloads = [one for one in hosts.asked("civitai") if "/download/" in one.target]
    assert len(downloads) == 4
    assert all(name in out for name in names)
    assert files_below(tmp_path / "models") == []


def test_the_key_from_the_secret_file_stays_nowhere(bake, baked, hosts):
    status, out, err = bake("--merge", LOG_LEVEL="DEBUG")

    assert status == 0, err
    key = hosts.civitai_key
    assert key not in out + err
    for path in baked.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_nothing_but_models_and_notes_is_left(bake, baked):
    bake("--merge")

    # A lock that is removed would not lock.
    files = set(files_below(baked)) - {".bake.lock"}
    assert not [path for path in files if path.endswith((".part", ".lock", ".new"))]
    assert {path.name for path in (baked / "fetched").iterdir()} == {
        "Lora",
        "Stable-diffusion",
        "blobs",
        "merged",
        "references",
    }


def test_a_second_run_asks_nobody_and_changes_nothing(bake, baked, hosts):
    bake("--merge")
    before = {path: (baked / path).stat().st_mtime_ns for path in blobs(baked)}
    first = (baked / MANIFEST).read_bytes()
    hosts.forget_requests()

    status, _, err = bake("--merge")

    assert status == 0, err
    assert "merged " not in err
    assert hosts.requests == []
    assert (baked / MANIFEST).read_bytes() == first
    assert {path: (baked / path).stat().st_mtime_ns for path in blobs(baked)} == before


def blobs(baked):
    return [path for path in files_below(baked) if path.endswith(".safetensors")]


def test_a_merged_checkpoint_has_the_sum_of_its_loras(bake, baked):
    bake("--merge")
    content = manifest(baked)
    (entry,) = (e for name, e in content["templates"].items() if name == "fox")
    by_sha = {file["sha256"]: baked / file["path"] for file in content["files"]}
    merged = load_file(by_sha[entry["merged"]])[KEY].astype(float)

    expected = load_file(by_sha[entry["checkpoint"]])[KEY].astype(float)
    for one in entry["loras"]:
        parts = load_file(by_sha[one["sha256"]])
        up, down = (
            next(v for k, v in parts.items() if part in k).astype(float) for part in ("up", "down")
        )
        expected += one["unet"] * (up @ down)
    assert {(one["te"], one["unet"]) for one in entry["loras"]} == {(0.5, 0.5), (1.0, 0.25)}
    assert abs(merged - expected).max() < abs(expected).max() * 2**-11


def test_a_checkpoint_with_a_long_name_stays_merged(bake, baked, templates):
    base = named(1, filename="я" * 101 + ".safetensors")
    write(templates, {"long": {"name": "L", "checkpoint": base, "loras": [named(2), named(3)]}})

    status, _, err = bake("--merge")

    assert status == 0, err
    content = manifest(baked)
    assert content["templates"]["long"]["merged"] in {row["sha256"] for row in content["files"]}
    assert [row["path"] for row in content["files"] if not (baked / row["path"]).is_file()] == []


def test_a_merge_that_was_broken_off_is_begun_anew(bake, baked):
    bake("--merge")
    first = (baked / MANIFEST).read_bytes()
    downloads = baked / "fetched/downloads"
    downloads.mkdir()
    for note in list((baked / "fetched/merged").iterdir()):
        note.unlink()
        (downloads / f"merge-{note.stem[:32]}.0123456789ab.part").write_bytes(b"half")

    status, _, err = bake("--merge")

    assert (status, err.count("INFO    [- -] merged ")) == (0, 2), err
    assert (baked / MANIFEST).read_bytes() == first
    assert not downloads.exists()


def test_baking_one_template_after_the_other_is_baking_both(bake, baked, templates):
    bake("--template", "plain")
    assert list(manifest(baked)["templates"]) == ["plain"]
    bake("--template", "owl", "--merge")
    one_by_one = manifest(baked)
    assert sorted(one_by_one["templates"]) == ["owl", "plain"]

    write(templates, {"owl": json.loads(templates.read_text())["templates"]["owl"]})
    bake("--template", "owl", "--merge")
    assert list(manifest(baked)["templates"]) == ["owl"]


def test_every_model_that_cannot_be_had_is_told_and_there_is_no_manifest(bake, baked, templates):
    content = json.loads(templates.read_text())["templates"]
    content["lost"] = {"name": "L", "checkpoint": named(777)}
    content["gone"] = {"name": "G", "checkpoint": "gone.safetensors"}
    write(templates, content)

    status, _, err = bake()

    assert status == 1
    assert err.count("MODEL_NOT_FOUND") == 2
    assert "gone.safetensors" in err
    assert "777" in err
    assert not (baked / MANIFEST).exists()


def test_a_lora_that_does_not_fit_fails_its_template_by_name(bake, baked, templates, hosts):
    hosts.add_model(version_id=9, data=lora(9, "nowhere"), name="odd.safetensors", kind="LORA")
    content = json.loads(templates.read_text())["templates"]
    content["odd"] = content["owl"] | {"loras": [named(9)]}
    write(templates, content)

    status, _, err = bake("--merge")

    assert status == 1
    assert "template 'odd': MODEL_MISMATCH" in err
    assert not (baked / MANIFEST).exists()
    assert bake()[0] == 0, "as a tag it does no harm"


def test_wrong_words_are_told(bake):
    status, _, err = bake("--template", "fux")
    assert (status, "Did you mean 'fox'?" in err) == (1, True)
    status, _, err = bake(TEMPLATES_FILE="/nowhere.json")
    assert (status, "/nowhere.json cannot be read" in err) == (78, True)


@pytest.mark.parametrize("folder", ["models", "models/below"])
def test_what_a_volume_would_hide_is_not_baked(bake, tmp_path, folder):
    status, _, err = bake(BAKED_MODELS_DIR=str(tmp_path / folder))

    assert status == 78
    assert "would hide what is baked there" in err
    assert not (tmp_path / folder).exists()


def test_nor_below_the_place_of_runpods_volume():
    settings = Settings.from_environ({"BAKED_MODELS_DIR": str(VOLUME / "baked")})

    with pytest.raises(ConfigError, match="would hide"):
        settings.to_bake()


def test_while_one_bakes_nothing_is_evicted(hosts, tmp_path):
    """What was baked first looks like what a worker would evict first."""
    manager = manager_for(hosts, tmp_path)
    Baking(manager, tmp_path / "baked").run({})

    assert not manager.space.evicts


def test_a_damaged_file_is_found_and_brought_again(bake, baked):
    bake()
    row = next(file for file in manifest(baked)["files"] if file["name"] == "one")
    path = baked / row["path"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    status, _, err = bake()

    assert status == 0, err
    assert file_sha256(path) == row["sha256"]


# What a worker makes of it -----------------------------------------------------------------------


def test_a_baked_templates_first_job_asks_nobody(bake, hosts, templates, tmp_path, monkeypatch):
    bake("--merge")
    hosts.forget_requests()
    year_later = time.time() + 365 * 86_400
    monkeypatch.setattr(references.time, "time", lambda: year_later)
    manager = manager_for(hosts, tmp_path)

    for name in ("plain", "fox", "owl"):
        models, new = manager.prepare_models_for_request(job(templates, name))
        assert new
        assert models.loaded.path.is_relative_to(tmp_path / "baked")
        assert manager.template_state(job(templates, name)) == {
            "baked": True,
            "merged": name != "plain",
        }
    assert hosts.requests == []
    assert not (tmp_path / "models").exists(), "nothing is copied, nothing is noted"


def test_a_reference_that_moves_stays_what_was_baked(bake, hosts, templates, tmp_path, monkeypatch):
    """A web file may change every day; the image does not."""
    url = hosts.add_web("/moving.safetensors", checkpoint(5))
    content = {"web": {"name": "W", "checkpoint": url}}
    write(templates, content)
    assert bake()[0] == 0
    hosts.forget_requests()
    monkeypatch.setattr(references, "_age", lambda _then: 10 * references.FRESH)

    manager_for(hosts, tmp_path).prepare_models_for_request(job(templates, "web"))

    assert hosts.requests == []


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_the_next_build_asks_what_a_reference_that_moves_means_now(
    bake, baked, hosts, templates, query
):
    """As in the cache of an image's build: the folder of the build before is still there."""
    url = hosts.add_web("/moving.safetensors", checkpoint(5), etag='"1"') + query
    write(templates, {"web": {"name": "W", "checkpoint": url, "loras": [named(2)]}})
    assert bake("--merge")[0] == 0
    first = manifest(baked)["files"]
    hosts.forget_requests()
    assert bake("--merge")[0] == 0
    assert manifest(baked)["files"] == first
    assert hosts.bytes_sent("web") <= 1, "the same ETag is no download"

    hosts.add_web("/moving.safetensors", checkpoint(6), etag='"2"')
    assert bake("--merge")[0] == 0

    files = {row["name"]: row for row in manifest(baked)["files"]}
    assert files["moving"]["sha256"] == hashlib.sha256(checkpoint(6)).hexdigest()
    assert {path for path in blobs(baked) if "/blobs/" in path} == {
        row["path"] for row in files.values()
    }
    cached = (baked / MANIFEST).read_bytes()
    shutil.rmtree(baked)
    assert bake("--merge")[0] == 0
    assert (baked / MANIFEST).read_bytes() == cached, "a build without a cache makes the same"


def test_what_no_template_names_any_more_is_not_left(bake, baked, templates):
    assert bake("--merge")[0] == 0
    operators_own = baked / "Lora" / "own.safetensors"
    operators_own.parent.mkdir()
    operators_own.write_bytes(lora(8))
    for name in ("0" * 64, f".{'1' * 64}.new"):
        (baked / "fetched/diffusers" / name).mkdir(parents=True)
    write(templates, {"owl": json.loads(templates.read_text())["templates"]["owl"]})

    assert bake("--merge")[0] == 0

    listed = {row["path"] for row in manifest(baked)["files"]}
    assert {path for path in blobs(baked) if "/blobs/" in path} == listed
    links = [path for path in (baked / "fetched").rglob("*") if path.is_symlink()]
    assert len(links) == len(listed)
    assert all(link.exists() for link in links)
    assert operators_own.exists()
    assert list((baked / "fetched/diffusers").iterdir()) == []


FALLBACK = [
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


@pytest.fixture(scope="module")
def image(tmp_path_factory, running_hosts):
    """A baked and merged folder; nothing in these tests changes it."""
    folder = tmp_path_factory.mktemp("image")
    fox = {"name": "Owl", "checkpoint": named(1)}
    fox["loras"] = [named(2, scale=0.5)]
    other = {"name": "Other", "checkpoint": named(4)}
    two = {"name": "Two", "checkpoint": named(1), "loras": [named(3)]}
    file = write(folder / "templates.json", {"owl": fox, "other": other, "two": two})
    environ = full_environment(running_hosts, folder, TEMPLATES_FILE=str(file))
    command = [sys.executable, "model_manager.py", "bake", "--merge"]
    subprocess.run(command, cwd=PROJECT, env=environ, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("said", "is_merged"), FALLBACK, ids=[str(said) for said, _ in FALLBACK])
def test_a_job_that_changes_a_lora_gets_the_checkpoint_and_tags(
    image, running_hosts, said, is_merged
):
    manager = manager_for(running_hosts, image)
    models = manager.find_models(job(image / "templates.json", "owl", **said))

    assert bool(models.merged) == is_merged
    shown = {file.kind for file in models.engine_files() if file.stem != "two"}
    assert shown == ({"checkpoint"} if is_merged or not models.loras else {"checkpoint", "lora"})


def test_an_edited_template_never_uses_what_was_merged_before(image, running_hosts, tmp_path):
    content = json.loads((image / "templates.json").read_text())["templates"]
    content["owl"]["loras"][0]["scale"] = 0.7
    edited = write(tmp_path / "templates.json", content)
    manager = manager_for(running_hosts, image)

    assert manager.find_models(job(edited, "owl")).merged is None
    assert manager.template_state(job(edited, "owl")) == {"baked": True, "merged": False}


def test_a_volume_over_the_models_folder_hides_nothing(image, running_hosts, tmp_path):
    """As with `docker run -v volume:/models`: an empty file system lies over MODELS_DIR."""
    volume = tmp_path / "volume"
    volume.mkdir()
    code = (
        "from model_manager import ModelManager; import os;"
        "from worker.config.settings import Settings;"
        "from worker.job.template_file import Templates; from worker.job.request import parse;"
        "settings = Settings.from_environ(os.environ); manager = ModelManager(settings);"
        "wanted = parse(Templates(settings.templates_path).fill_in({'template': 'owl'}));"
        "models, _ = manager.prepare_models_for_request(wanted);"
        "print(models.merged.path)"
    )
    environ = full_environment(
        running_hosts,
        image,
        TEMPLATES_FILE=str(image / "templates.json"),
        MODELS_DIR=str(image / "models"),
        WEBUI_DIR=str(tmp_path / "webui"),
    )
    (image / "models").mkdir(exist_ok=True)
    (image / "models/hidden").touch()
    mount = f"mount --bind {volume} {image}/models && test ! -e {image}/models/hidden"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} || exit 125; exec "$@"', "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount")
    done = subprocess.run(
        [*command, sys.executable, "-c", code],
        cwd=PROJECT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(image / "baked/fetched/blobs"))
    assert list(volume.iterdir()) == [], "nothing is copied"


def test_the_engine_starts_with_the_default_templates_checkpoint(image, running_hosts, tmp_path):
    environ = full_environment(
        running_hosts,
        image,
        TEMPLATES_FILE=str(image / "templates.json"),
        DEFAULT_TEMPLATE="owl",
        WEBUI_DIR=str(tmp_path / "webui"),
    )
    command = [sys.executable, "model_manager.py", "prepare-engine"]
    subprocess.run(command, cwd=PROJECT, env=environ, check=True, capture_output=True)

    first = json.loads((tmp_path / "webui/config.json").read_text())["sd_model_checkpoint"]
    assert first.startswith("base+one-")
    assert (tmp_path / f"webui/models/Stable-diffusion/{first}.safetensors").exists()


# Killed ----------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_however_often_it_is_killed_it_ends_with_the_same_manifest(start, bake, baked, hosts):
    assert bake("--merge")[0] == 0
    expected = (baked / MANIFEST).read_bytes()
    whole = {path: file_sha256(baked / path) for path in blobs(baked)}
    baked.rename(baked.with_name("reference"))
    hosts.throttle(3 * MIB)
    chance = random.Random(4)
    killed = 0
    for _ in range(KILLS):
        with start("--merge") as process:
            time.sleep(0.6 + chance.random() * 1.2)  # Python takes 0.5 s to start
            os.killpg(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        manifest_file = baked / MANIFEST
        assert not manifest_file.exists() or manifest_file.read_bytes() == expected
        published = baked / "fetched/blobs"
        for path in published.glob("[0-9a-f]*.safetensors") if published.exists() else ():
            assert file_sha256(path) == path.stem
    assert killed >= KILLS // 3
    hosts.no_throttle()

    status, _, err = bake("--merge")

    assert status == 0, err
    assert (baked / MANIFEST).read_bytes() == expected
    assert {path: file_sha256(baked / path) for path in blobs(baked)} == whole
    assert not [path for path in files_below(baked) if path.endswith((".part", ".new"))]
