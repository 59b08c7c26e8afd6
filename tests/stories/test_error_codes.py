"""Each error code through the real handler: log and `health` show what docs/errors.md says."""

import json

import pytest
from fakes.error_codes import CODES, OTHERS, PRINTED, RECORDED, SCENARIOS, record_any, world

PAGE = json.loads(RECORDED.read_text())


@pytest.fixture(scope="module")
def shared():
    with world() as it:
        yield it


def test_the_page_has_every_code():
    assert sorted(PAGE) == sorted({*OTHERS, *PRINTED, *SCENARIOS}) == CODES


@pytest.mark.parametrize("code", [*OTHERS, *SCENARIOS])
def test_log_and_health_show_of_a_code_what_the_page_says(shared, code):
    """`python -m fakes.error_codes` records it again, and `make docs` writes the page."""
    found = record_any(shared, code)
    assert found == PAGE[code]
    is_counted = f"worker.jobs.failures.{code} = 1" in found["health"]
    assert is_counted == (code not in {"BAD_CONFIGURATION", "RESULT_REFUSED"})
    names = {"WORKER_ENDING": "cancelled", "INTERNAL_ERROR": "internal error"}
    names["MACHINE_EXHAUSTED"] = "the machine is exhausted"
    assert names.get(code, code) in found["log"][-1]
