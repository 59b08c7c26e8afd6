"""Which parts are on, and what the log says of them."""

import copy
import sys

import pytest
import torch
import uvicorn
from a1111_worker import parts

from .conftest import UNet

NAMES = [part.name for part in parts.ALWAYS + parts.SPEEDUPS]
ALWAYS = [part.name for part in parts.ALWAYS]


@pytest.fixture(autouse=True)
def log(monkeypatch, caplog):
    monkeypatch.setattr(parts, "_asked", set())
    monkeypatch.setattr(parts.log, "propagate", True)
    logging_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    monkeypatch.setattr(uvicorn.config, "LOGGING_CONFIG", logging_config)
    return caplog


@pytest.mark.usefixtures("a1111")
@pytest.mark.parametrize("value", [None, "true", "1", ""])
def test_all_parts_are_on_by_default_and_the_log_names_them(log, value):
    made = parts.switch_on({} if value is None else {"A1111_SPEEDUPS": value})
    assert made == [*NAMES, parts.CHECKPOINTING]
    assert all(name in log.text for name in made)
    assert "WARNING" not in log.text


@pytest.mark.parametrize("value", ["false", "0", " No ", "OFF"])
def test_without_the_speedups_the_other_parts_are_on(a1111, log, value):
    assert parts.switch_on({"A1111_SPEEDUPS": value}) == ALWAYS
    assert "A1111_SPEEDUPS=false" in log.text
    model = a1111.diffusion.DiffusionEngine(UNet())
    parts.prepare_model(model)
    assert model.model.diffusion_model.use_checkpoint is True


@pytest.mark.parametrize("missing", ["networks", "k_diffusion.sampling", "modules.safe"])
def test_a_part_whose_module_is_missing_is_left_out_with_a_warning(
    a1111, log, missing, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    off = [part.name for part in parts.ALWAYS + parts.SPEEDUPS if missing in part.modules]
    made = parts.switch_on({})
    assert set(made) == {*NAMES, parts.CHECKPOINTING} - {*off}
    warnings = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    assert [name for name in off if any(name in warning for warning in warnings)] == off


@pytest.mark.usefixtures("a1111")
def test_loading_the_extensions_again_changes_nothing_twice():
    parts.switch_on({})
    assert parts.switch_on({}) == [parts.CHECKPOINTING]


@pytest.mark.usefixtures("a1111")
def test_a_loaded_model_loses_its_checkpointing(a1111):
    parts.switch_on({})
    model = a1111.diffusion.DiffusionEngine(UNet())
    parts.prepare_model(model)
    assert model.model.diffusion_model.use_checkpoint is False


@pytest.mark.usefixtures("a1111")
def test_a_model_of_another_shape_is_left_alone_with_a_warning(log):
    parts.switch_on({})
    parts.prepare_model(torch.nn.Linear(1, 1))
    assert f"{parts.CHECKPOINTING!r} is off" in log.text
