import asyncio
from contextlib import nullcontext

import pytest

from worker.errors import InvalidInput, JobTimeout
from worker.service.waiting import BatchTurn, Turns, give_turns, together
from worker.stopwatch import Stopwatch


@pytest.mark.parametrize("end", ["late", "cancelled", "cancelled at its turn"])
def test_a_job_that_gives_up_its_turn_lets_the_next_one_in(end):
    async def story():
        turns = Turns()

        async def take(timeout=30.0):
            async with turns.next(Stopwatch(timeout)):
                return "done"

        async with turns.next(Stopwatch(30)):
            waiting = asyncio.create_task(take(0.01 if end == "late" else 30.0))
            after = asyncio.create_task(take())
            await asyncio.sleep(0)
            if end == "cancelled":
                waiting.cancel()
            if end != "cancelled at its turn":
                await asyncio.wait({waiting}, timeout=30)
            assert not after.done()
        if end == "cancelled at its turn":
            waiting.cancel()
        return await asyncio.gather(waiting, asyncio.wait_for(after, 30), return_exceptions=True)

    ended, after = asyncio.run(story())
    assert after == "done"
    assert isinstance(ended, JobTimeout if end == "late" else asyncio.CancelledError)
    if end == "late":
        assert "the engine was busy with other jobs; no result within 0.01 s" in str(ended)


def test_a_job_knows_that_another_one_waits_even_if_both_came_at_the_same_time():
    async def story():
        turns, drawn = Turns(), []

        async def draw(name):
            async with turns.next(Stopwatch(30)) as next_job:
                if name == "first":
                    await asyncio.wait_for(next_job.is_there(), 30)
                    next_job.may_start()
                    await second
                drawn.append(name)

        first, second = (asyncio.ensure_future(draw(name)) for name in ("first", "second"))
        await asyncio.gather(first, second)
        assert not turns._engine.locked()
        return drawn

    assert asyncio.run(story()) == ["second", "first"]


@pytest.mark.parametrize(
    ("failing", "undone"),
    [("neither", []), ("first", []), ("second", ["models"]), ("cancelled", ["models"])],
)
def test_two_works_at_the_same_time_end_together(failing, undone):
    """The failure of one ends the other; models that nobody gets are released."""

    async def story():
        released, are_found = [], asyncio.Event()

        async def find_models():
            are_found.set()
            if failing == "first":
                raise InvalidInput("first")
            return "models"

        async def read_pictures():
            await are_found.wait()
            if failing == "second":
                raise InvalidInput("second")
            if failing != "neither":
                await asyncio.sleep(30)
            return "pictures"

        both = asyncio.create_task(together(find_models(), read_pictures(), released.append))
        await are_found.wait()
        await asyncio.sleep(0)
        if failing == "cancelled":
            both.cancel()
        (ended,) = await asyncio.gather(both, return_exceptions=True)
        return ended, released

    ended, released = asyncio.run(story())
    assert released == undone
    expected = {"neither": tuple, "cancelled": asyncio.CancelledError}.get(failing, InvalidInput)
    assert isinstance(ended, expected)


def drawn_by_a_batch(inputs, stopwatch, loads=""):
    """The checkpoints in the order of their turns.

    Args:
        inputs: checkpoint of each input -> the checkpoint whose turn it waits for, or None.
        stopwatch: of the batch.
        loads: what another job loads while the inputs wait for the engine; empty: there is none.
    """

    async def story():
        drawn = {checkpoint: asyncio.Event() for checkpoint in inputs}
        order, loaded, engine, turns = [], "", Turns(), [BatchTurn() for _ in inputs]

        async def draw(turn, checkpoint):
            if first := inputs[checkpoint]:
                await drawn[first].wait()
            async with turn.next(Stopwatch(60), checkpoint):
                order.append(checkpoint)
                drawn[checkpoint].set()

        async with engine.next(Stopwatch(60)) if loads else nullcontext():
            leading = asyncio.ensure_future(give_turns(turns, engine, stopwatch, lambda: loaded))
            drawing = [asyncio.ensure_future(draw(*one)) for one in zip(turns, inputs, strict=True)]
            await asyncio.wait([turn.asked for turn in turns if loads] or drawing)
            loaded = loads
        await asyncio.wait_for(asyncio.gather(leading, *drawing), 60)
        return order

    return asyncio.run(story())


def test_of_a_batch_the_checkpoint_that_is_loaded_at_its_turn_comes_first():
    assert drawn_by_a_batch(dict.fromkeys("bca"), Stopwatch(60), loads="c") == ["c", "a", "b"]


def test_a_slow_input_does_not_keep_the_others_of_its_batch_waiting_until_the_deadline():
    always_in_time = Stopwatch(0.02, clock=lambda: 0)
    inputs = {"a": "b", "b": None, "c": "a"}
    assert drawn_by_a_batch(inputs, always_in_time) == ["b", "a", "c"]


def test_a_batch_draws_no_further_input_while_four_wait_for_their_delivery():
    drawn = []

    async def story():
        turns, uploaded = [BatchTurn() for _ in range(6)], [asyncio.Event() for _ in range(6)]

        async def run(number):
            async with turns[number].next(Stopwatch(30)):
                drawn.append(number)
            await uploaded[number].wait()
            turns[number].end()

        running = [asyncio.create_task(run(number)) for number in range(6)]
        leading = asyncio.create_task(give_turns(turns, Turns(), Stopwatch(30), str))
        seen = []
        for number in (2, 0, 1, 3, 4, 5):
            for _ in range(50):
                await asyncio.sleep(0)
            seen.append(len(drawn))
            uploaded[number].set()
        await asyncio.wait_for(asyncio.gather(leading, *running), 30)
        return seen

    assert asyncio.run(story()) == [4, 5, 6, 6, 6, 6]
    assert drawn == [*range(6)]
