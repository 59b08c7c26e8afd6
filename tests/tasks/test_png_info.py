import asyncio
import base64
import threading

from fakes.a1111.picture import png
from fakes.stub_engine import StubEngine, handler_with

from worker.images.png_info import describe
from worker.tasks import png_info


def test_an_infotext_is_read_beside_the_event_loop(tmp_path, catalog, monkeypatch):
    """Reading a long one takes seconds, in which other jobs must go on."""
    threads = set()

    def noted(image):
        threads.add(threading.current_thread())
        return describe(image)

    monkeypatch.setattr(png_info, "describe", noted)
    built = handler_with(StubEngine(catalog, tmp_path), tmp_path)
    image = base64.b64encode(png(8, 8, b"\1\2\3", "a fox\nSteps: 2, Seed: 5, Size: 8x8")).decode()
    answer = asyncio.run(built({"id": "a", "input": {"task": "png_info", "image": image}}))
    assert answer["parameters"]["Seed"] == "5"
    assert len(threads - {threading.main_thread()}) == 1
