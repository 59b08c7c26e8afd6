"""The command line: what it runs, and what ends with the usage before anything is started."""

import json
import re
import shlex
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from fakes.a1111.process import free_port

from worker.config.settings import PROJECT
from worker.service.arguments import read

FOX = {"prompt": "a fox", "steps": 5}
JOB = {"input": FOX}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("job", [JOB, FOX, JOB | {"id": "mine"}, {"task": "health"}], ids=str)
@pytest.mark.parametrize("text", [json.dumps, lambda job: "\ufeff" + json.dumps(job, indent=2)])
def test_a_file_and_a_text_are_the_job_with_or_without_the_word_input(folder, job, text):
    (folder / "custom input.json").write_text(text(job), encoding="utf-8")
    whole = job if "input" in job else {"input": job}
    from_file, from_text = read(["custom input.json"]), read(["--test_input", json.dumps(job)])
    assert from_file.job == from_text.job == whole
    assert from_file.for_sdk[-2:] == ("--test_input", json.dumps(whole)) == from_text.for_sdk[-2:]
    assert from_file.for_handler == (str(folder / "custom input.json"),)
    assert read(from_file.for_handler).job == whole  # as start.sh passes it on


def test_the_options_reach_the_sdk_and_the_gateway():
    port = str(free_port())
    given = ["--rp_serve_api", "--rp_api_port", port, "--rp_log_level=debug"]
    arguments = read(given)
    assert arguments.for_handler == tuple(given)
    assert arguments.for_sdk == ("--rp_log_level", "DEBUG")
    served = (arguments.serves_http, arguments.host, arguments.port)
    assert served == (True, "localhost", int(port))
    assert read([]).job is None
    assert read(["--schema"]).schema


REFUSED = [
    (["--prompt", "a fox"], "unrecognized arguments: --prompt"),
    (["--test-input", "{}"], "unrecognized arguments: --test-input"),
    (["--test_inputt", "{}"], "unrecognized arguments: --test_inputt"),
    (["--test_inp", "{}"], "unrecognized arguments: --test_inp"),
    (["a.json", "b.json"], "unrecognized arguments: b.json"),
    (["a fox"], "'a fox' is no argument; a job is a file such as job.json"),
    (["missing.json"], "there is no file 'missing.json' in "),
    (["."], "'.' is no argument"),
    (["--test_input", "job.json"], "to run a file, give its name alone: job.json"),
    (["--test_input", "a fox"], "--test_input is not JSON (Expecting value"),
    (["--test_input", "[1]"], "--test_input is no object"),
    (["--test_input", "[" * 100_000], "--test_input is nested too deeply"),
    (["--test_input", '{"input": null}'], "--test_input has an empty `input`"),
    (["--test_input"], "argument --test_input: expected one argument"),
    (["broken.json"], "'broken.json' is not JSON (Expecting value"),
    (["latin1.json"], "'latin1.json' cannot be read: it is not a text in UTF-8"),
    (["broken.json", "--test_input", "{}"], "are two jobs"),
    (["--rp_serve_api", "broken.json"], "--rp_serve_api waits for jobs over HTTP"),
    (["--rp_api_port", "http"], "argument --rp_api_port"),
    (["--rp_api_port", "70000"], "argument --rp_api_port: '70000' is no whole number from 1 to"),
    (["--rp_api_concurrency", "2"], "unrecognized arguments: --rp_api_concurrency"),
    (["--rp_log_level", "loud"], "argument --rp_log_level"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_not_understood_ends_with_2_and_the_usage(folder, capsys, arguments, message):
    (folder / "broken.json").write_text("prompt: a fox")
    (folder / "latin1.json").write_bytes(b'{"prompt": "f\xfcchs"}')
    with pytest.raises(SystemExit) as ended:
        read(arguments)
    text = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in text
    assert text.startswith("usage: handler.py [-h] [--test_input JSON]")


def test_a_taken_port_of_the_local_api_ends_with_71(capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = str(server.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            read(["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", port])
    assert ended.value.code == 71
    assert f"cannot listen on port {port} of 127.0.0.1 (Address already in use)" in (
        capsys.readouterr().err
    )


def test_start_sh_gets_the_arguments_quoted_for_the_shell(tmp_path):
    (tmp_path / "a 'job'.json").write_text(json.dumps(JOB))
    command = [sys.executable, str(PROJECT / "worker/service/arguments.py"), "a 'job'.json"]
    environ = {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert shlex.split(done.stdout) == [str(tmp_path / "a 'job'.json")]


def test_the_page_about_the_handler_lists_every_argument():
    page = (PROJECT / "docs/internals/handler-module.md").read_text()
    source = (PROJECT / "worker/service/arguments.py").read_text()
    options = set(re.findall(r'"(--\w+)"', source))
    assert options
    assert [option for option in options if f"`{option}" not in page] == []
