import os

import pytest

from worker import cores


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, None),  # no cgroup: another system
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),  # half a core
        ({"cpu.max": "100001 100000"}, 2),
        ({"cpu.max": "6400000 100000"}, None),  # more than the machine has
        ({"cpu.max": "1 0"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_cores_are_those_of_the_machine_unless_the_quota_allows_fewer(
    files, most, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores.usable(tmp_path) == (most or 4)
