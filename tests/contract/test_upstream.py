"""Our job against A1111's sources, where a checkout of them is at hand (A1111_CHECKOUT).

The rest of the tests relies on answers that v1.9.3 gave. This shows whether they are still those of
that version, and what another version knows that our jobs do not.
"""

import ast
import os
from pathlib import Path

import pytest
from fakes.recorded import recorded

CHECKOUT = os.environ.get("A1111_CHECKOUT")
RECORDED = recorded("openapi")["components"]["schemas"]["StableDiffusionProcessingTxt2Img"]

if not CHECKOUT:
    pytest.skip("A1111_CHECKOUT is not set", allow_module_level=True)


def parsed(name):
    return ast.parse((Path(CHECKOUT) / "modules" / name).read_text(encoding="utf-8"))


def dataclass_fields(name):
    """What the constructor of a dataclass in processing.py takes."""
    (found,) = [
        node
        for node in parsed("processing.py").body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    inherited = set().union(*(dataclass_fields(base.id) for base in found.bases))
    return inherited | {
        node.target.id
        for node in found.body
        if isinstance(node, ast.AnnAssign) and "init=False" not in ast.unparse(node)
    }


def additions():
    """The fields that api/models.py adds to those of the dataclass, and those that it hides."""
    assigned = {
        node.targets[0].id: node.value
        for node in parsed("api/models.py").body
        if isinstance(node, ast.Assign)
    }
    generator = assigned["StableDiffusionTxt2ImgProcessingAPI"].func.value
    rows = generator.args[2].elts
    added = {row.values[[key.value for key in row.keys].index("key")].value for row in rows}
    return added, set(ast.literal_eval(assigned["API_NOT_ALLOWED"]))


def test_it_knows_the_fields_that_we_know():
    added, hidden = additions()
    fields = (dataclass_fields("StableDiffusionProcessingTxt2Img") - hidden) | added
    ours = set(RECORDED["properties"])

    assert (fields - ours, ours - fields) == (set(), set())
