"""The command line for operators, scripts and start.sh."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fakes import model_files
from fakes.hosts.model_hosts import ModelHosts
from fakes.hub_cache import COMMIT, add_cached, state
from fakes.model_files import safetensors, sha256
from fakes.model_store import PROJECT, add, files_below, full_environment

from worker.models.store.blobs import Blobs, size_on_disk

LORA, OTHER = safetensors(model_files.LORA), safetensors(model_files.LORA, number=2)
DAY = 86_400


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as running:
        running.add_model(
            version_id=22, model_id=2, data=LORA, name="fox.safetensors", kind="LORA", file_id=222
        )
        yield running


@pytest.fixture
def run(hosts, tmp_path, run_command):
    def run(*arguments, **environ):
        status, out, err = run_command(arguments, full_environment(hosts, tmp_path, **environ))
        shown = [secret for secret in hosts.planted_secrets if secret in out + err]
        assert (shown, "Traceback" in err) == ([], False), err
        return status, out, err

    return run


@pytest.fixture
def rows(run):
    """The rows of a command that succeeds."""

    def rows(*arguments):
        status, out, _ = run(*arguments, "--json")
        assert status == 0
        return json.loads(out)

    return rows


@pytest.fixture
def start(hosts, tmp_path):
    """Start a command as a process."""

    def start(*arguments):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "model_manager.py", *arguments],
            cwd=PROJECT,
            env=full_environment(hosts, tmp_path),
            stdin=subprocess.DEVNULL,
            text=True,
            **pipes,
        )

    return start


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "models" / "fetched")


def stems(blobs):
    return [blob.about.stem for blob in blobs.all()]


# fetch and resolve.


def test_a_model_is_fetched_and_shown(run, blobs):
    status, out, err = run("fetch", "22", CIVITAI_API_KEY="")
    assert (status, out, stems(blobs)) == (1, "", [])
    assert "MODEL_LOGIN_REQUIRED" in err
    assert "CIVITAI_API_KEY" in err
    status, out, err = run("fetch", "civitai:2@22")
    row = {
        "kind": "lora",
        "name": "fox",
        "size": len(LORA),
        "sha256": sha256(LORA),
        "source": "civitai:2@22+222",
        "path": str(blobs.find(sha256(LORA)).path),
    }
    table = [line.split() for line in out.splitlines()]
    assert (status, table) == (0, [list(row), list(map(str, row.values()))])
    assert "fetching Model 2" in err
    status, out, err = run("fetch", "22", "--json", "--kind", "lora", CIVITAI_API_KEY="")
    assert (status, json.loads(out), err) == (0, [row], "")


def test_each_failure_of_several_models_is_printed(run, hosts, blobs):
    url = hosts.add_web("/page.safetensors", model_files.HTML)
    status, out, err = run("fetch", url + "?token=swordfish", "22", "99", "--json")
    first, second, third = json.loads(out)
    assert (status, first["code"], third["code"]) == (1, "MODEL_FILE_INVALID", "MODEL_NOT_FOUND")
    assert second["name"] == "fox"
    assert stems(blobs) == ["fox"]
    assert "MODEL_FILE_INVALID: " in err
    assert "CivitAI does not have it (404)" in err
    assert "swordfish" not in out.replace(first["ref"], "") + err


def test_the_hash_and_the_name_can_be_given(run, hosts, blobs):
    url = hosts.add_web("/x.safetensors", OTHER)
    status, _, err = run("fetch", url, "--sha256", sha256(LORA))
    assert (status, "MODEL_HASH_MISMATCH" in err) == (1, True)
    digest = f"sha256:{sha256(OTHER).upper()}"
    status, out, _ = run("fetch", url, "--sha256", digest, "--filename", "My: fox.safetensors")
    assert (status, "My_ fox" in out) == (0, True)
    assert stems(blobs) == ["My_ fox"]


def test_a_reference_is_resolved_without_a_download(run, rows, hosts, blobs):
    (row,) = rows("resolve", "22")
    expected = {"filename": "fox.safetensors", "sha256": sha256(LORA), "role": "lora"}
    assert expected.items() <= row.items()
    columns = "ref filename source size sha256 role title family trained_words etag"
    assert list(row) == columns.split()
    status, out, _ = run("resolve", "22")
    assert (status, "fox.safetensors" in out) == (0, True)
    assert hosts.count("storage") == 0
    assert stems(blobs) == []
    assert run("resolve", "fox", "https://")[0] == 1


# ls, stats, verify.


def test_models_are_listed_and_counted(run, rows, blobs, tmp_path):
    add(blobs, LORA, "fox")
    own = tmp_path / "models" / "VAE" / "own.safetensors"
    own.parent.mkdir()
    own.write_bytes(safetensors(model_files.VAE))
    status, out, _ = run("ls")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["lora", "fox"], ["vae", "own"]]
    listed = [(row["name"], row["sha256"]) for row in rows("ls")]
    assert listed == [("fox", sha256(LORA)), ("own", None)]
    counts = {row["kind"]: (row["count"], row["total_size"]) for row in rows("stats")}
    assert (counts["loras"], counts["vaes"]) == ((1, len(LORA)), (1, own.stat().st_size))


def test_each_command_leaves_a_hugging_face_cache_as_it_is(run, hosts, blobs, tmp_path):
    root = tmp_path / "hub"
    path = add_cached(root, "org/foxes", {"fox.safetensors": OTHER})["fox.safetensors"]
    ref, before = "org/foxes/fox.safetensors", state(root)

    def rows(*arguments):
        status, out, _ = run(*arguments, "--json", HUB_CACHE_DIR=str(root))
        return status, json.loads(out)

    source = f"hf://org/foxes@{COMMIT}/fox.safetensors"
    known = {"kind": "lora", "name": "fox", "size": len(OTHER), "sha256": sha256(OTHER)}
    known["source"] = source
    assert rows("ls") == (0, [known])
    assert rows("fetch", ref) == (0, [known | {"path": str(path)}])
    for command in (["verify"], ["prune", "--budget", "0"]):
        assert rows(*command) == (0, [])
    assert rows("verify", "fox")[0] == 1
    assert hosts.requests == []
    assert (list(blobs.all()), state(root)) == ([], before)


def test_an_empty_store_is_not_a_failure(run, tmp_path):
    for command in ("ls", "verify", "prune"):
        assert run(command) == (0, "", "")
    assert run("stats")[0] == 0
    assert not (tmp_path / "models").exists()


def test_damage_that_keeps_size_and_time_is_found_by_verifying(run, start, blobs):
    good, bad = add(blobs, LORA, "good"), add(blobs, OTHER, "bad")
    before = bad.path.stat()
    bad.path.write_bytes(LORA[:-1] + b"x")
    os.utime(bad.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    status, out, err = run("verify", "good", "nope")
    assert (status, "whole" in out, "'nope'" in err) == (1, True, True)
    assert run("verify", "good")[0] == 0
    with start("verify", "--json") as process:  # this process has the hash cached
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["good"]["state"] == "whole"
    assert "bad was damaged and was removed" in rows["bad"]["error"]
    assert "bad was damaged" in err
    assert (bad.path.exists(), good.path.exists()) == (False, True)
    assert run("verify")[0] == 0


# prune.


def test_pruning_evicts_down_to_the_budget(run, rows, blobs):
    for data, stem, days in ((LORA, "old", 9), (OTHER, "new", 1)):
        then = time.time() - days * DAY
        os.utime(add(blobs, data, stem).path.with_suffix(".json"), (then, then))
    partial = blobs.partial("key")
    partial.write_bytes(b"half")
    before = files_below(blobs.root)
    budget = f"{(len(LORA) + size_on_disk(partial)) / 1e9:.9f}"
    (row,) = rows("prune", "--dry-run", "--budget", budget)
    assert (row["do"], row["name"], row["size"]) == ("evict", "lora old", len(LORA))
    assert files_below(blobs.root) == before
    status, out, err = run("prune", MODELS_BUDGET_GB=budget)
    assert status == 0
    header, row = (line.split() for line in out.splitlines())
    assert (header, row[:3]) == (["do", "name", "size", "last_used"], ["evict", "lora", "old"])
    assert "evicted lora old" in err
    assert stems(blobs) == ["new"]

    run("verify")  # a use
    status, out, err = run("prune", "--budget", "0")
    assert (status, out, "Models in use exceed the budget" in err) == (1, "", True)
    assert stems(blobs) == ["new"]


WRONG = [
    [],
    ["nonsense"],
    ["fetch"],
    ["fetch", "22", "--kind", "hypernetwork"],
    ["fetch", "22", "--sha256", "abc"],
    ["fetch", "22", "23", "--sha256", "ab" * 32],
    ["fetch", "22", "23", "--filename", "x"],
    ["prune", "--budget", "lots"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_arguments_are_status_2(run, arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2
    assert "usage: model_manager.py" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("MODELS_BUDGET_GB", "lots"), ("ENGINE", "comfy")])
def test_a_wrong_setting_is_status_78(run, name, value):
    status, out, err = run("ls", **{name: value})
    assert (status, out) == (78, "")
    assert f"{name}='{value}'" in err


def test_the_process_has_these_exit_codes_and_its_help_names_every_command(start):
    with start("fetch", "22", "--sha256", "abc") as wrong, start("--help") as shown:
        out, _ = shown.communicate(timeout=60)
        wrong.communicate(timeout=60)
    assert (wrong.returncode, shown.returncode) == (2, 0)
    for command in ("fetch", "resolve", "ls", "verify", "prune", "bake", "stats", "prepare-engine"):
        assert command in out


def test_ctrl_c_ends_a_download_and_keeps_what_has_arrived(start, hosts, blobs):
    data = safetensors(model_files.LORA, size=24 << 20)
    url = hosts.add_web("/slow.safetensors", data)
    hosts.throttle(1 << 20, roles=["web"])
    with start("fetch", url) as process:
        while not hosts.bytes_sent("web") > 1 << 20:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    hosts.no_throttle()
    assert process.returncode == 130
    assert hosts.bytes_sent("web") < len(data)
    assert "Traceback" not in err
    assert len(blobs.partials()) == 1
