"""JSON from outside has a limited number of levels, however its text is written."""

import pytest

from worker.json_text import MOST_LEVELS, loads


@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-16"])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_only_so_many_levels_are_read(begin, end, encoding):
    for levels in (1, MOST_LEVELS, MOST_LEVELS + 1, 2 * MOST_LEVELS, 900, 100_000):
        text = begin * levels + "1" + end * levels
        text = text.encode(encoding) if encoding else text
        if levels <= MOST_LEVELS:
            assert loads(text)
        else:
            with pytest.raises(ValueError, match="nested too deep"):
                loads(text)


def test_many_values_on_one_level_are_read():
    assert len(loads(f"[{'[],' * 5_000}{{}}]")) == 5_001


@pytest.mark.parametrize("text", ["", "[", "x", b"\xff", "9" * 5_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - json's own texts
        loads(text)
