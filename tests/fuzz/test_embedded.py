"""As `test_fuzz`, for what the embedded engine reads; in a file of its own: it needs torch."""

import sys

import pytest

from tests.fuzz.target import TARGETS, load
from tests.fuzz.test_fuzz import FEW, check, check_new, kept_inputs

pytestmark = pytest.mark.filterwarnings("ignore")
if sys.version_info < (3, 11):
    pytest.skip("the embedded engine needs Python 3.11", allow_module_level=True)

NAMES = sorted(load().keys() - {*FEW})
assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_input_breaks_the_engine(name):
    for data in kept_inputs(name):
        check(TARGETS[name], data)
    check_new(TARGETS[name])
