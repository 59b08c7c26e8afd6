"""A hint for another program's name is right, or there is none: a wrong one changes the picture.

The table has the reviewed hint for each name; null where ours mean something else.
"""

import json
import re
from pathlib import Path

import pytest

from worker.clients.foreign_fields import FOREIGN_NAMES
from worker.errors import InvalidInput
from worker.job.txt2img import parse

TABLE = json.loads(Path(__file__).with_name("foreign_names.json").read_text())
HINTS = {name: hint for names in TABLE.values() for name, hint in names.items()}


@pytest.mark.parametrize("name", HINTS)
def test_the_hint_for_a_foreign_name_is_the_reviewed_one(name):
    with pytest.raises(InvalidInput) as raised:
        parse({name: 5})
    found = re.search(r"did you mean `(\w+)`", str(raised.value))
    assert (found and found[1]) == HINTS[name]
    assert name in str(raised.value)


def test_every_name_of_our_tables_was_reviewed():
    assert FOREIGN_NAMES.items() <= HINTS.items()
