"""The memory that is left, from the files of Linux."""

import pytest

from worker.memory import available

GIB = 2**30
MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 20971520 kB\n"  # 20 GiB
V2 = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{5 * GIB}\n",
    "sys/fs/cgroup/memory.stat": f"anon 1\nactive_file {GIB}\ninactive_file {GIB}\n",
}
V1 = {
    "proc/self/cgroup": "3:cpu,cpuacct:/a\n4:memory:/docker/a\n0::/x\n",
    "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{6 * GIB}",
    "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": f"{4 * GIB}",
    "sys/fs/cgroup/memory/docker/a/memory.stat": f"total_inactive_file {GIB}\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 20),
        (V2, 5),  # 8 less 5, of which 2 only cache files
        (V2 | {"sys/fs/cgroup/memory.max": "max\n"}, 20),
        (V2 | {"proc/self/cgroup": "0::/a/b\n"}, 5),  # the limit of a group above
        (V1, 3),
        (V2 | {"sys/fs/cgroup/memory.current": f"{11 * GIB}"}, 0),
        ({"proc/self/cgroup": "nonsense\n::\n", "sys/fs/cgroup/memory.max": "x"}, 20),
        ({"proc/meminfo": ""}, 0),
    ],
)
def test_the_smallest_limit_counts_and_cached_files_are_free(tmp_path, files, expected):
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available(tmp_path) == expected * GIB


def test_this_machine_has_memory_left():
    assert available() > 0
