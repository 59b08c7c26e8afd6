"""The lists of a back: when they are read, and what is answered meanwhile."""

import asyncio
import json
import stat

import pytest
from fakes.stub_engine import StubEngine, handler_with

import client
from gateway.catalog.catalog import TASKS, Catalog, CatalogTiming
from gateway.catalog.kept_file import cache_file
from gateway.jobs import EndpointFailed
from gateway.local.jobs import LocalJobs
from worker.tasks.lists import LISTS
from worker.tasks.table import TASKS as TABLE

TIMING = CatalogTiming(fresh=100, patience=30, pause=10)


class Back(LocalJobs):
    """A queue with the real handler, which counts the jobs and may sleep."""

    def __init__(self, handler):
        super().__init__(handler, is_quick=TABLE.is_quick)
        self.jobs, self.looks, self.sleeps, self.broken = [], 0, False, False
        self.begin()

    async def submit(self, request):
        if self.broken:
            raise EndpointFailed("RunPod does not answer.")
        self.jobs.append(request["input"])
        return await super().submit(request)

    async def is_awake(self):
        self.looks += 1
        return not self.sleeps


class World:
    """A back, a clock, and a catalog that can be started again."""

    def __init__(self, folder, catalog):
        self.folder, self.time = folder, 1000.0
        engine = StubEngine(catalog, folder)
        self.back = Back(handler_with(engine, folder))
        self.catalog = self.start()

    def start(self, timing=TIMING):
        self.catalog = Catalog(
            self.back, self.folder / "kept/lists.json", timing, lambda: self.time
        )
        return self.catalog

    def add(self, name):
        path = self.folder / "models/Lora" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.fixture
def story(tmp_path, catalog):
    """Run a story with a world; the loop is the story's."""

    def run(tell):
        async def told():
            world = World(tmp_path, catalog)
            await tell(world)
            await world.catalog.close()

        asyncio.run(told())

    return run


async def idle():
    """Let the tasks in the background end."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def test_the_gateway_and_the_client_know_each_list_of_the_worker():
    assert {*TASKS} == {*client.LISTS} == {"templates", *(one.name for one in LISTS)}


def test_one_job_reads_all_lists_and_later_calls_cost_none(story):
    async def tell(world):
        first = await asyncio.gather(*(world.catalog.lists() for _ in range(10)))
        assert {one.time for one in first} == {1000.0}
        assert len(first[0].samplers) == 19
        assert first[0].schema["tasks"].keys() >= set(TASKS)
        assert [one["task"] for one in world.back.jobs] == ["batch"]

    story(tell)


def test_old_lists_are_answered_at_once_and_read_again_only_while_a_worker_runs(story):
    async def tell(world):
        old = await world.catalog.lists()
        world.back.sleeps, world.time = True, 2000.0
        for _ in range(5):
            assert await world.catalog.lists() is old
            await idle()
        assert (len(world.back.jobs), world.back.looks) == (1, 1)
        world.back.sleeps, world.time = False, 2011.0
        assert await world.catalog.lists() is old
        await idle()
        assert (await world.catalog.lists()).time == 2011.0
        assert (len(world.back.jobs), world.back.looks) == (2, 2)

    story(tell)


def test_the_file_keeps_the_lists_for_the_next_start_and_only_for_this_user(story):
    async def tell(world):
        known = await world.catalog.lists()
        file = world.folder / "kept/lists.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert await world.start().lists() == known
        world.back.sleeps = True  # it is not started for a look
        for content in ("", "[]", '{"time": 1}', '{"time": "x"}', "[" * 100_000, "\x00"):
            file.write_text(content)
            assert (await world.start().lists(may_start=False)).models == ()
        kept = json.loads(json.dumps(vars(known)))
        file.write_text(json.dumps(kept | {"samplers": [{"name": 3}], "models": "x", "more": 1}))
        assert (await world.start().lists()).samplers == known.samplers  # A1111's own
        assert len(world.back.jobs) == 1

    story(tell)


def test_a_refresh_and_a_job_with_a_new_model_read_the_lists_again(story):
    async def tell(world):
        await world.catalog.lists()
        world.add("fox")
        assert (await world.catalog.lists()).loras == ()
        assert [one["name"] for one in (await world.catalog.refresh()).loras] == ["fox.safetensors"]
        for name, source, jobs in (("fox", "web", 2), ("cat", "job", 2), ("cat", "web", 3)):
            world.catalog.learn({"models": [{"name": name, "source": source}, None]})
            await idle()
            assert len(world.back.jobs) == jobs
        world.catalog.learn({"models": None})

    story(tell)


def test_without_an_answer_in_time_the_lists_are_those_of_a1111_and_come_later(story):
    async def tell(world):
        world.back._ready.clear()
        world.start(CatalogTiming(patience=0, pause=10))
        lists = await world.catalog.lists()
        assert (lists.is_known, len(lists.samplers), len(lists.schedulers)) == (False, 19, 6)
        assert await world.catalog.lists() == lists
        assert len(world.back.jobs) == 1
        world.back.begin()
        await idle()
        assert (await world.catalog.lists()).is_known

    story(tell)


def test_a_back_that_fails_is_asked_again_after_a_pause(story, caplog):
    async def tell(world):
        world.back.broken = True
        for time in (1000.0, 1009.0):
            world.time = time
            assert not (await world.catalog.lists()).is_known
        assert caplog.text.count("RunPod does not answer") == 1
        world.back.broken, world.time = False, 1011.0
        assert (await world.catalog.lists()).is_known

    story(tell)


def test_closing_cancels_the_job_for_the_lists(story):
    async def tell(world):
        world.back._ready.clear()
        waiting = asyncio.create_task(world.catalog.lists())
        await asyncio.wait({waiting}, timeout=0.1)
        await world.catalog.close()
        await waiting
        (state,) = [await world.back.state(one) for one in world.back._jobs]
        assert state.status == "CANCELLED"

    story(tell)


def test_each_endpoint_has_a_file_of_its_own_in_the_user_s_cache_folder():
    files = {cache_file(one, environ={"XDG_CACHE_HOME": "/cache"}) for one in ("a", "b")}
    assert len(files) == 2
    assert {str(file.parent) for file in files} == {"/cache/a1111-worker"}
