from dataclasses import replace
from pathlib import Path

from worker.formats.model_file import ModelFile
from worker.job.models import Models


def test_models_get_the_names_that_the_engine_sees():
    base, fox = (ModelFile("lora", Path(name), name, 1) for name in ("base", "fox"))
    seen = replace(fox, stem="fox-0123456789")
    models = Models(checkpoint=base, loras=((fox, None),), written_loras={"Fox": fox})
    renamed = models.renamed({base: base, fox: seen})
    assert renamed == Models(checkpoint=base, loras=((seen, None),), written_loras={"Fox": seen})
