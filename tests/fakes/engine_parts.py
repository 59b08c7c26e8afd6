"""The parts that the engine's client uses, in one object and without a process."""

import asyncio
from unittest.mock import Mock

import pytest

from worker.errors import WorkerError
from worker.generation.catalog import Catalog
from worker.generation.payload import Expected, Payload
from worker.generation.picture_answer import PictureAnswer
from worker.stopwatch import Stopwatch
from worker.webui.engine import Engine
from worker.webui.readiness import Ready
from worker.webui.supervisor import EngineProcess
from worker.webui.timing import EngineTiming

UNSEEN = {"sd_models", "loras", "options"}  # they only read


class Fake:
    """The WebUI, start.sh and readiness in one; notes what is asked, or does what `on` has."""

    can_restart = True
    hypertile = False
    checkpoints_limit = 1.0
    checkpoints: tuple[dict[str, str], ...] = ()
    answer = staticmethod(lambda _body: [])

    def __init__(self, folder):
        self.folder, self.catalog = folder, Catalog({}, {})
        self.process, self.asked, self.on = EngineProcess("running", pid=1), [], {}
        self.reasons = []
        timing = EngineTiming(restart_patience=0, route_wait=0)
        self.engine_client = Engine(self, self, self, timing=timing)

    def engine(self):
        return self.process

    def __getattr__(self, name):
        def ask(*_):
            self.asked.append(name)
            self.on.pop(name, lambda: None)()
            return {
                "wait": Ready(self.catalog, self.process, 0.0, "default"),
                "is_idle": True,
                "sd_models": self.checkpoints,
                "options": {
                    "hypertile": self.hypertile,
                    "sd_model_checkpoint": "any",
                    "sd_checkpoints_limit": self.checkpoints_limit,
                },
            }.get(name, [])

        return ask

    def post(self, _route, body, _timeout):
        self.asked.append("post")
        self.on.pop("post", lambda: None)()
        return self.answer(body)

    def draw(self, _route, body, _timeout):
        self.asked.append("hires" if body.get("enable_hr") else "txt2img")
        self.on.pop("txt2img", lambda: None)()
        name = body["override_settings"].get("sd_model_checkpoint", "default")
        return PictureAnswer(["x"], {}, "{}", {"sd_model_name": name})

    def request_restart(self, reason):
        self.asked.append("request_restart")
        self.reasons.append(reason)

    async def generate(
        self,
        arrange=None,
        *,
        checkpoint=None,
        loras=(),
        vae=None,
        settings=(),
        bundle=False,
        **body,
    ):
        settings = dict(settings) | ({"sd_model_checkpoint": checkpoint} if checkpoint else {})
        settings |= {"sd_vae": vae} if vae else {}
        images = None if "script_name" in body else 1
        sent = {"width": 64, "height": 64, "override_settings": settings, **body}
        payload = Payload(sent, Expected(images, checkpoint, frozenset(loras), has_bundle=bundle))
        await self.engine_client.generate(payload, Stopwatch(60), lambda _: None, arrange)

    def fail(self, error, **job):
        """A job whose picture fails; the reasons of the restarts that follow."""
        self.reasons.clear()
        self.on["txt2img"] = Mock(side_effect=error)
        with pytest.raises(WorkerError):
            asyncio.run(self.generate(**job))
        return self.reasons

    def run(self, jobs=1, **job):
        """What the jobs ask for; not the models that are listed after a refresh."""
        self.asked.clear()
        for _ in range(jobs):
            asyncio.run(self.generate(**job))
        return [name for name in self.asked if name not in UNSEEN]
