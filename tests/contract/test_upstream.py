"""The fields of our jobs compared with A1111's sources, if A1111_CHECKOUT names a checkout.

The other tests rely on answers recorded from v1.9.3. This shows whether they agree with the
sources, and which fields another version has that our jobs do not have.
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
    """The parameters of a dataclass's constructor in processing.py."""
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


def test_a1111_has_the_fields_of_our_jobs():
    added, hidden = additions()
    fields = (dataclass_fields("StableDiffusionProcessingTxt2Img") - hidden) | added
    ours = set(RECORDED["properties"])

    assert (fields - ours, ours - fields) == (set(), set())
