"""Files of a shared volume are opened without blocking, and only a bounded part is read."""

import errno
import os
from pathlib import Path

import pytest

from worker.errors import MachineExhausted, StoreFull, StoreNotWritable
from worker.files import exists, is_file, is_folder, open_regular, read_small, storage_error
from worker.formats.model_file import file_sha256


def test_a_regular_file_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert [read_small(one, limit=5) for one in (path, link)] == [b"12345"] * 2


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("make", [fifo, device, os.mkdir, lambda path: path.symlink_to(path)])
@pytest.mark.parametrize("read", [open_regular, read_small, file_sha256])
def test_nothing_else_is_opened(tmp_path, make, read):
    make(tmp_path / "x")
    before = descriptors()
    with pytest.raises(Exception, match=r"regular|directory|symbolic links"):
        read(tmp_path / "x")
    assert descriptors() == before


def test_a_large_file_is_not_read_where_a_small_one_is_expected(tmp_path):
    (tmp_path / "large").write_bytes(bytes(6))
    with pytest.raises(OSError, match="unexpectedly large"):
        read_small(tmp_path / "large", limit=5)


def test_a_path_that_cannot_be_looked_at_is_no_file_and_no_folder(tmp_path):
    """The methods of `Path` raise an error for it."""
    path = tmp_path / ("x" * 300)
    assert not exists(path)
    assert not is_file(path)
    assert not is_folder(path)
    assert is_folder(tmp_path)


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ([errno.ENOSPC, errno.EDQUOT], StoreFull),
        ([errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE], StoreNotWritable),
        ([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN], MachineExhausted),
    ],
)
def test_a_failed_write_is_about_the_disk_the_store_or_the_machine(numbers, kind):
    for number in numbers:
        error = storage_error(OSError(number, os.strerror(number)))
        assert type(error) is kind
        assert os.strerror(number) in error.message
