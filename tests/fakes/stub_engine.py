"""An engine without a process, and a handler with a model store around it."""

import base64
import json

import handler
from fakes.a1111.extras import Extras, read_extras
from fakes.a1111.faults import Faults
from fakes.a1111.picture import png
from fakes.a1111.state import Options
from fakes.recorded import recorded
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.generation.picture_answer import PictureAnswer
from worker.job.template_file import Templates
from worker.webui.engine import Engine
from worker.webui.supervisor import Supervisor

PICTURE = base64.b64encode(png(64, 64, b"\x01\x02\x03", "")).decode()


class StubEngine(Engine):
    """An engine whose pictures and memory are these, without a process."""

    catalog, retiring = None, ""

    def __init__(self, catalog, folder):
        super().__init__(self, Supervisor(folder, None), None)
        self.catalog = catalog
        self.extras = Extras(folder / "webui", Options(folder / "config.json"), Faults(""))

    def retire(self, reason):
        self.retiring = reason

    async def generate(self, payload, _stopwatch, report, arrange, next_job):  # noqa: ARG002
        arrange()
        report({"phase": "generate", "step": 1, "steps": 2})
        facts = {"sd_model_name": "base", "extra_generation_params": {}}
        parameters = {name: one for name, one in payload.body.items() if name != "init_images"}
        return PictureAnswer([PICTURE], parameters, json.dumps(facts), facts)

    async def call(self, call, _stopwatch):
        if call.route == "interrogate":
            return call.read({"caption": "a fox"})
        return call.read(self.extras.enlarge(read_extras(call.body)))

    async def listed(self, route):
        return recorded(f"get_{route}")

    def memory(self):
        return {"ram": {"free": 1}, "cuda": {"error": "unavailable"}}

    def sd_models(self):
        return [{"model_name": "base", "sha256": "a" * 64}]


def handler_with(engine, folder, templates=None, **variables):
    """A handler whose model store is in `folder`; for one event loop."""
    folders = {"MODELS_DIR": "models", "BAKED_MODELS_DIR": "baked", "WEBUI_DIR": "webui"}
    environment = {name: str(folder / one) for name, one in folders.items()} | variables
    settings = Settings.from_environ(environment)
    return handler.Handler(settings, engine, ModelManager(settings), Templates(templates))
