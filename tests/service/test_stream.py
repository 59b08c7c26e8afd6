"""The stream of a job: pieces, order, and what happens to chunks that RunPod does not take."""

import asyncio
import base64
import json
import random
from contextlib import closing

import pytest

from worker.service.stream import NO_STREAM, PIECE, JobStream, StreamTiming

RUNPODS_LIMIT = 1_000_000  # bytes of a chunk
FACTS = {"number": 1, "pictures": 64, "format": "jpeg", "seed": 2**63, "input": 64, "inputs": 64}


class RunPod:
    """Takes chunks; refuses those that `refused` names, and blocks while `gate` is closed."""

    def __init__(self, refused=lambda _chunk: False):
        self.chunks, self.once = [], []
        self.gate = asyncio.Event()
        self.gate.set()
        self._refused = refused

    async def __call__(self, chunk, *, again):
        await self.gate.wait()
        self.chunks.append(chunk)
        self.once += [] if again else [chunk]
        return not self._refused(chunk)


def run(story):
    asyncio.run(asyncio.wait_for(story, 30))


@pytest.mark.parametrize(
    ("size", "parts"),
    [(4, 1), (PIECE - 4, 1), (PIECE, 1), (PIECE + 4, 2), (2 * PIECE, 2), (2 * PIECE + 4, 3)],
)
def test_pieces_of_a_picture_are_its_base64_and_each_fits_into_a_chunk(size, parts):
    data = base64.b64encode(random.Random(size).randbytes(size // 4 * 3)).decode()
    assert len(data) == size

    async def story():
        async with JobStream(runpod := RunPod()) as stream:
            stream.open()
            stream.picture(FACTS, data)
            assert await stream.lost() == []
        assert "".join(chunk["data"] for chunk in runpod.chunks) == data
        places = [(chunk["part"], chunk["parts"]) for chunk in runpod.chunks]
        assert places == [(number + 1, parts) for number in range(parts)]
        assert all(base64.b64decode(chunk["data"], validate=True) for chunk in runpod.chunks)
        assert max(len(json.dumps({"output": c}).encode()) for c in runpod.chunks) <= RUNPODS_LIMIT
        assert all(FACTS.items() <= chunk.items() for chunk in runpod.chunks)

    run(story())


def test_pictures_wait_for_a_slow_runpod_but_a_report_is_replaced_or_left_out():
    async def story():
        async with JobStream(runpod := RunPod()) as stream:
            stream.progress({"phase": "load"})  # not open yet
            stream.open()
            runpod.gate.clear()
            stream.progress({"step": 1})
            await asyncio.sleep(0)  # it is being posted
            for step in range(2, 100):
                stream.progress({"step": step})
            for number in range(1, 4):
                stream.picture({"number": number, "url": f"https://x/{number}"})
                stream.progress({"step": 100 + number})
            runpod.gate.set()
            assert await stream.lost() == []
        seen = [chunk.get("step") or chunk["number"] for chunk in runpod.chunks]
        assert seen == [1, 99, 1, 2, 3]
        assert [chunk["type"] for chunk in runpod.once] == ["progress"] * 2

    run(story())


def test_a_picture_with_a_refused_piece_is_lost_and_the_next_one_is_not():
    async def story():
        runpod = RunPod(lambda chunk: chunk["number"] == 2 and chunk["part"] == 1)
        async with JobStream(runpod) as stream:
            stream.open()
            for number in (1, 2, 3):
                stream.picture({"number": number}, "A" * (PIECE + 4))
            assert await stream.lost() == [2]
            assert "picture 2" in (await stream.warnings())[0]
        sent = [(chunk["number"], chunk["part"]) for chunk in runpod.chunks]
        assert sent == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]

    run(story())


def test_the_end_of_a_job_waits_for_its_pictures_but_not_for_ever():
    async def story():
        runpod, timing = RunPod(), StreamTiming(patience=0.01, last=0.01)
        async with JobStream(runpod, timing) as stream:
            stream.open()
            runpod.gate.clear()
            stream.picture({"number": 1}, "AAAA")
            stream.picture({"number": 2}, "AAAA")
            assert await stream.lost() == [1, 2]
        runpod.gate.set()
        await asyncio.sleep(0)
        assert runpod.chunks == []  # nothing is posted after the job's result

    run(story())


class NoWaiting(asyncio.SelectorEventLoop):
    """Its clock goes to the next planned call at once."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


@pytest.mark.parametrize("of", [lambda stream: stream, lambda stream: stream.part(1, 1)])
def test_a_runpod_that_needs_longer_than_the_patience_for_all_pictures_gets_all(of):
    async def slow(_chunk, *, again):
        await asyncio.sleep(90)
        return again

    async def story():
        async with JobStream(slow, StreamTiming(patience=120)) as whole:
            stream = of(whole)
            stream.open()
            for number in range(10):
                stream.picture({"number": number}, "A" * 2 * PIECE)
            assert await stream.lost() == []
        assert asyncio.get_running_loop().time() == 20 * 90

    with closing(NoWaiting()) as loop:
        loop.run_until_complete(story())


async def drawing(runpod):
    async with JobStream(runpod) as stream:
        stream.open()
        stream.picture({"number": 1}, "AAAA")
        await asyncio.Future()


def test_a_cancelled_job_sends_nothing_more():
    async def story():
        runpod = RunPod()
        runpod.gate.clear()
        job = asyncio.create_task(drawing(runpod))
        await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait({job})
        assert job.cancelled()
        runpod.gate.set()
        await asyncio.sleep(0)
        assert runpod.chunks == []

    run(story())


def test_inputs_of_a_batch_share_one_order_and_know_their_own_losses():
    async def story():
        runpod = RunPod(lambda chunk: chunk.get("input") == 2)
        async with JobStream(runpod) as stream:
            parts = [stream.part(number, 2) for number in (1, 2)]
            for number in (1, 2):
                for part in parts:
                    part.open()
                    part.picture({"number": number}, "AAAA")
            stream.progress({"step": 1})
            assert [await part.lost() for part in parts] == [[], [1, 2]]
        seen = [(chunk["number"], chunk["input"], chunk["inputs"]) for chunk in runpod.chunks]
        assert seen == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]

    run(story())


def test_without_an_address_nothing_is_sent_and_the_answer_has_one_warning():
    async def story():
        async with JobStream(None) as stream:
            assert await stream.warnings() == []  # the job does not ask for it
            stream.open()
            stream.progress({"step": 1})
            assert not stream.is_open
            assert await stream.warnings() == [NO_STREAM]

    run(story())
