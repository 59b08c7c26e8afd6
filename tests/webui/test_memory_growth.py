"""When a worker has grown too much."""

from worker.webui.recovery import MemoryGrowth

GB = 10**9


def test_growth_counts_from_the_least_after_a_switch():
    growth = MemoryGrowth(limit=4 * GB)

    assert growth.after_switch(7, 9 * GB) is None
    assert growth.after_switch(7, 8 * GB) is None
    assert growth.after_switch(7, 12 * GB) is None
    assert growth.after_switch(7, 12 * GB + GB // 2) == (
        "the engine's memory grew by 4.5 GB to 12.5 GB over 4 checkpoint switches"
        " (MEMORY_GROWTH_LIMIT_GB = 4)"
    )


def test_a_new_process_starts_over():
    growth = MemoryGrowth(limit=GB)
    growth.after_switch(7, GB)

    assert growth.after_switch(8, 30 * GB) is None
    assert growth.after_switch(8, 30 * GB) is None
