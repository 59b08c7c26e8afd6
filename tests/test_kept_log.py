import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import kept_log, log
from worker.kept_log import KeptLog

SIZE = 64


@given(
    writes=st.lists(
        st.lists(st.text("ab", max_size=9), max_size=20).map(
            lambda lines: "".join(f"{line}\n" for line in lines).encode()
        ),
        max_size=30,
    ),
    again=st.integers(0, 29),
)
def test_the_end_of_what_was_written_is_kept_in_whole_lines(tmp_path_factory, writes, again):
    path = tmp_path_factory.mktemp("kept") / "log"
    kept = KeptLog(path, SIZE)
    for number, text in enumerate(writes):
        if number == again:  # another process goes on behind the lines of the first one
            kept = KeptLog(path, SIZE)
        kept.write(text)
    whole, found = b"".join(writes), kept_log.read(path, SIZE)
    assert whole.endswith(found)
    assert len(whole) - len(found) <= max(0, len(whole) - SIZE + 10)
    assert len(path.read_bytes()) == SIZE + 16


@pytest.mark.parametrize("content", [b"", b"x" * (SIZE + 16), b"-1\n" * 40, b"9" * (SIZE + 16)])
def test_any_file_in_its_place_is_used_and_never_an_error(tmp_path, content):
    path = tmp_path / "log"
    path.write_bytes(content)
    KeptLog(path, SIZE).write(b"hello\n")
    assert kept_log.read(path, SIZE).splitlines()[-1:] == [b"hello"]


def test_what_is_no_regular_file_is_refused_and_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("target")
    for name in ("fifo", "link", "no/folder"):
        with pytest.raises(OSError, match=r"."):
            KeptLog(tmp_path / name)
    with pytest.raises(OSError, match="no regular file"):
        kept_log.read(tmp_path / "fifo")


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path, monkeypatch, capsys):
    """Also one that is full from the beginning: /dev/full cannot be made a regular file."""

    def full(*_):
        raise OSError(28, "No space left on device")

    log.configure("INFO", "text", [], keep_in=tmp_path / "log.handler")
    monkeypatch.setattr("os.pwrite", full)
    log.logging.getLogger("worker.test").info("still here")
    log.configure("INFO", "text", [], keep_in=tmp_path / "other")
    log.logging.getLogger("worker.test").info("and here")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["here"] * 2
    assert (tmp_path / "other").stat().st_size == 0


def test_the_handlers_lines_are_kept_as_they_are_written(tmp_path, capsys):
    log.configure("INFO", "text", ["my-secret"], keep_in=tmp_path / "log.handler")
    log.logging.getLogger("worker.test").warning("a fox and my-secret")
    written = capsys.readouterr().err
    assert kept_log.read(tmp_path / "log.handler").decode() == written
    assert "a fox and ***" in written
    assert (tmp_path / "log.handler").stat().st_mode & 0o777 == 0o600


def test_the_program_copies_its_input_also_when_nobody_reads_its_output(tmp_path):
    program = [sys.executable, "-I", "-S", kept_log.__file__, str(tmp_path / "log.engine")]
    given = b"".join(b"line %d\n" % number for number in range(50_000))
    done = subprocess.run(program, input=given, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (given, b"")
    kept = kept_log.read(tmp_path / "log.engine")
    assert given.endswith(kept)
    assert len(kept) > kept_log.SIZE - 20
    reader, writer = os.pipe()
    os.close(reader)
    quiet = subprocess.run(program, input=b"last\n" * 50_000, stdout=writer, check=False)
    os.close(writer)
    assert quiet.returncode == 0
    assert kept_log.read(tmp_path / "log.engine").endswith(b"last\nlast\n")


def test_without_a_file_the_program_still_copies(tmp_path):
    program = [sys.executable, "-I", "-S", kept_log.__file__, str(Path(tmp_path, "no", "log"))]
    done = subprocess.run(program, input=b"hello", capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"hello", b"")
