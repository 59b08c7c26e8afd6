"""The command line as operators, scripts and start.sh meet it: real processes, real exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fakes import model_files
from fakes.hosts.model_hosts import ModelHosts
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
def hosts(running_hosts):
    running_hosts.no_faults()
    running_hosts.forget_requests()
    return running_hosts


@pytest.fixture
def start(hosts, tmp_path):
    def start(*arguments, **environ):
        return subprocess.Popen(
            [sys.executable, "model_manager.py", *arguments],
            cwd=PROJECT,
            env=full_environment(hosts, tmp_path, **environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run(start, hosts):
    """Run a command; returns its exit status, standard output and standard error."""

    def run(*arguments, **environ):
        with start(*arguments, **environ) as process:
            out, err = process.communicate(timeout=60)
        shown = [secret for secret in hosts.planted_secrets if secret in out + err]
        assert (shown, "Traceback" in err) == ([], False), err
        return process.returncode, out, err

    return run


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "models" / "fetched")


def unused(blob, days=1):
    then = time.time() - days * DAY
    os.utime(blob.path.with_suffix(".json"), (then, then))


# fetch and resolve.


def test_a_model_is_fetched_and_shown(run, blobs):
    status, out, err = run("fetch", "civitai:2@22")

    path = blobs.find(sha256(LORA)).path
    assert (status, out.splitlines()[0].split()) == (
        0,
        ["kind", "name", "size", "sha256", "source", "path"],
    )
    row = ["lora", "fox", str(len(LORA)), sha256(LORA), "civitai:2@22+222", str(path)]
    assert out.splitlines()[1].split() == row
    assert "fetching Model 2" in err

    status, out, err = run("fetch", "22", "--json", "--kind", "lora", CIVITAI_API_KEY="")
    assert (status, err) == (0, "")
    assert json.loads(out) == [
        {
            "kind": "lora",
            "name": "fox",
            "size": len(LORA),
            "sha256": sha256(LORA),
            "source": "civitai:2@22+222",
            "path": str(path),
        }
    ]


def test_of_several_models_each_failure_is_told(run, hosts, blobs):
    url = hosts.add_web("/page.safetensors", model_files.HTML)
    status, out, err = run("fetch", url + "?token=swordfish", "22", "99", "--json")

    assert status == 1
    first, second, third = json.loads(out)
    assert (first["code"], third["code"]) == ("MODEL_FILE_INVALID", "MODEL_NOT_FOUND")
    assert second["name"] == "fox"
    assert [blob.about.stem for blob in blobs.all()] == ["fox"]
    assert "MODEL_FILE_INVALID: " in err
    assert "CivitAI does not have it (404)" in err
    assert "swordfish" not in out.replace(first["ref"], "") + err


def test_the_hash_and_the_name_can_be_given(run, hosts, blobs):
    url = hosts.add_web("/x.safetensors", OTHER)
    wrong = run("fetch", url, "--sha256", sha256(LORA))
    assert wrong[0] == 1
    assert "MODEL_HASH_MISMATCH" in wrong[2]

    digest = f"sha256:{sha256(OTHER).upper()}"
    status, out, _ = run("fetch", url, "--sha256", digest, "--filename", "My: fox.safetensors")
    assert (status, "My_ fox" in out) == (0, True)
    assert blobs.find(sha256(OTHER)).about.stem == "My_ fox"


def test_a_key_that_is_missing_is_told(run, blobs):
    status, out, err = run("fetch", "22", CIVITAI_API_KEY="")

    assert (status, out) == (1, "")
    assert "MODEL_LOGIN_REQUIRED" in err
    assert "CIVITAI_API_KEY" in err
    assert list(blobs.all()) == []


def test_a_reference_is_resolved_without_a_download(run, hosts, blobs):
    status, out, _ = run("resolve", "22", "--json")

    assert status == 0
    (row,) = json.loads(out)
    assert (row["filename"], row["sha256"], row["role"]) == (
        "fox.safetensors",
        sha256(LORA),
        "lora",
    )
    assert "url" not in row
    status, out, _ = run("resolve", "22")
    assert (status, "fox.safetensors" in out) == (0, True)
    assert hosts.count("storage") == 0
    assert list(blobs.all()) == []
    assert run("resolve", "fox", "https://")[0] == 1


# ls, stats, verify.


def test_models_are_listed_and_counted(run, blobs, tmp_path):
    add(blobs, LORA, "fox")
    own = tmp_path / "models" / "VAE" / "own.safetensors"
    own.parent.mkdir()
    own.write_bytes(safetensors(model_files.VAE))

    status, out, _ = run("ls")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["lora", "fox"], ["vae", "own"]]
    status, out, _ = run("ls", "--json")
    assert [(row["name"], row["sha256"]) for row in json.loads(out)] == [
        ("fox", sha256(LORA)),
        ("own", None),
    ]
    status, out, _ = run("stats", "--json")
    counts = {row["kind"]: (row["count"], row["total_size"]) for row in json.loads(out)}
    assert counts["loras"] == (1, len(LORA))
    assert counts["vaes"] == (1, own.stat().st_size)


def test_an_empty_store_is_no_failure(run, tmp_path):
    for command in ("ls", "verify", "prune"):
        assert run(command) == (0, "", "")
    assert run("stats")[0] == 0
    assert not (tmp_path / "models").exists()


def test_damage_that_keeps_size_and_time_is_found_by_verifying(run, blobs):
    good, bad = add(blobs, LORA, "good"), add(blobs, OTHER, "bad")
    before = bad.path.stat()
    bad.path.write_bytes(LORA[:-1] + b"x")
    os.utime(bad.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert run("verify", "good")[0] == 0
    status, out, err = run("verify", "--json")
    assert status == 1
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["good"]["state"] == "whole"
    assert "bad was damaged and is removed" in rows["bad"]["error"]
    assert "bad was damaged" in err
    assert not bad.path.exists()
    assert good.path.exists()
    assert run("verify")[0] == 0


def test_verifying_an_unknown_name_fails(run, blobs):
    add(blobs, LORA, "fox")
    status, out, err = run("verify", "fox", "nope")

    assert status == 1
    assert "whole" in out
    assert "'nope'" in err


# prune.


def test_a_dry_run_deletes_nothing(run, blobs):
    unused(add(blobs, LORA, "old"), days=9)
    unused(add(blobs, OTHER, "new"), days=1)
    partial = blobs.partial("key")
    partial.write_bytes(b"half")
    before = files_below(blobs.root)

    budget = f"{(len(LORA) + size_on_disk(partial)) / 1e9:.9f}"
    status, out, _ = run("prune", "--dry-run", "--json", "--budget", budget)
    assert status == 0
    (row,) = json.loads(out)
    assert (row["do"], row["name"], row["size"]) == ("evict", "lora old", len(LORA))
    assert files_below(blobs.root) == before


def test_pruning_evicts_down_to_the_budget(run, blobs):
    unused(add(blobs, LORA, "old"), days=9)
    unused(add(blobs, OTHER, "new"), days=1)

    status, out, err = run("prune", MODELS_BUDGET_GB=f"{len(LORA) / 1e9:.9f}")
    assert status == 0
    header, row = (line.split() for line in out.splitlines())
    assert (header, row[:3]) == (["do", "name", "size", "last_used"], ["evict", "lora", "old"])
    assert "evicted lora old" in err
    assert [blob.about.stem for blob in blobs.all()] == ["new"]


def test_what_is_in_use_stays_and_that_is_told(run, blobs):
    add(blobs, LORA, "fox")
    status, out, err = run("prune", "--budget", "0")

    assert (status, out) == (1, "")
    assert "are in use" in err
    assert len(list(blobs.all())) == 1


# Exit codes.

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
def test_wrong_arguments_are_status_2(arguments, capsys):
    from model_manager import main

    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: model_manager.py" in capsys.readouterr().err


def test_status_2_is_the_processes_too(run):
    assert run("fetch", "22", "--sha256", "abc")[0] == 2


def test_a_wrong_setting_is_status_78(run):
    status, out, err = run("ls", MODELS_BUDGET_GB="lots")

    assert (status, out) == (78, "")
    assert "MODELS_BUDGET_GB='lots'" in err


def test_help_names_every_command(run):
    status, out, _ = run("--help")

    assert status == 0
    for command in ("fetch", "resolve", "ls", "verify", "prune", "stats", "prepare-engine"):
        assert command in out


def test_ctrl_c_ends_a_download_soon_and_keeps_what_has_arrived(start, hosts, blobs):
    data = safetensors(model_files.LORA, size=24 << 20)
    hosts.add_web("/slow.safetensors", data)
    hosts.throttle(1 << 20, roles=["web"])
    with start("fetch", hosts.web + "/slow.safetensors") as process:
        while not hosts.bytes_sent("web") > 1 << 20:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    hosts.no_throttle()

    assert process.returncode == 130
    assert hosts.bytes_sent("web") < len(data)
    assert "Traceback" not in err
    assert len(blobs.partials()) == 1
