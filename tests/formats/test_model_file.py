"""Two readers must accept a file: our bounded one first, then the safetensors library."""

import tracemalloc
from unittest.mock import Mock

import pytest
from fakes.model_files import safetensors
from safetensors import SafetensorError

from worker.errors import ModelFileInvalid
from worker.formats import model_file
from worker.formats.model_file import ModelFile, check_with_safetensors


@pytest.fixture
def parsed(monkeypatch):
    """The paths that the library was asked to open."""
    paths, real = [], model_file.safe_open

    def safe_open(path, **options):
        paths.append(path)
        return real(path, **options)

    monkeypatch.setattr(model_file, "safe_open", safe_open)
    return paths


@pytest.fixture
def file(tmp_path):
    def make(content):
        path = tmp_path / "fox.safetensors"
        path.write_bytes(content)
        return ModelFile("lora", path, "fox", len(content))

    return make


def test_the_library_parses_a_file_once_per_version(file, parsed):
    fox = file(safetensors())
    for _ in range(3):
        fox.check()
    assert parsed == [fox.path]
    file(safetensors(number=10)).check()
    assert parsed == [fox.path] * 2


def test_of_many_files_only_small_facts_are_kept(tmp_path, monkeypatch):
    """Metadata of kohya's scripts has 200 KB, and that of a hostile file 16 MB."""
    read = Mock(side_effect=model_file._read_header)
    monkeypatch.setattr(model_file, "_read_header", read)
    data = safetensors(ss_output_name="fox_v1", ss_tag_frequency="x" * 200_000)
    files = []
    for number in range(40):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        files.append(ModelFile("lora", path, path.stem, len(data)))
    tracemalloc.start()
    try:
        for file in [*files, *files]:
            assert file.trained_name() == "fox_v1"
            assert file.vector_widths()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read.call_count == len(files)
    assert kept < 20 * len(data)  # the last headers


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08" + bytes(7) + b"{", b"<html>"])
def test_our_checks_keep_hostile_headers_from_the_library(file, parsed, content):
    with pytest.raises(ModelFileInvalid):
        file(content).check()
    assert parsed == []


def test_a_file_that_the_library_rejects_is_invalid(file, monkeypatch):
    def reject(*_, **__):
        raise SafetensorError("Error while deserializing header: invalid JSON")

    with pytest.raises(ModelFileInvalid, match="safetensors library"):
        check_with_safetensors(file(safetensors()[:-1]).path)
    with pytest.raises(FileNotFoundError):
        check_with_safetensors(file(b"").path.with_name("missing"))
    monkeypatch.setattr(model_file, "safe_open", reject)
    with pytest.raises(ModelFileInvalid, match=r"'fox.safetensors' .*rejects it \(Error while"):
        file(safetensors()).check()


def test_a_file_that_may_not_be_read_is_not_called_damaged(file, monkeypatch):
    fox = file(safetensors())

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(model_file, "open_regular", forbidden)
    with pytest.raises(ModelFileInvalid, match=r"Permission denied\. Let the worker's user read"):
        fox.check()
