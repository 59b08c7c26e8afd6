import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from pydantic import Field

from worker import log
from worker.answer import Answer, Failure
from worker.clients.foreign_fields import TASKS_OF_OTHERS
from worker.errors import InvalidInput
from worker.job.model_fields import Strict
from worker.job.txt2img import Txt2ImgRequest
from worker.service.task import Job, Task, Tasks
from worker.service.threads import Threads
from worker.stopwatch import Stopwatch
from worker.tasks.schema import Row, document, rows
from worker.tasks.table import TASKS


class CountRequest(Strict):
    task: str = "count"
    number: int = Field(description="How far to count.", ge=1, le=9)


class Count(Answer):
    numbers: list[int] = Field(description="The numbers.")


async def count(_worker, _job, wanted):
    return Count.model_construct(numbers=list(range(wanted.number)))


async def rest(_worker, job, _wanted):
    return Count.model_construct(numbers=[len(job.id)])


TABLE = Tasks(
    Task("count", "Counts.", count, Count, fields=CountRequest),
    Task("rest", "Rests.", rest, Count),
)


WORKER = SimpleNamespace(threads=Threads())


def answer(job_input):
    return asyncio.run(TABLE.of(job_input)(WORKER, Job("id-1", job_input, Stopwatch(60), None)))


def test_a_job_gets_the_task_that_it_names_or_the_first_one():
    unasked = {"task": "rest", "prompt": None}
    jobs = [{"number": 2}, {"task": "count", "number": 1}, {"task": "rest"}, unasked]
    assert [answer(job).numbers for job in jobs] == [[0, 1], [0], [4], [4]]
    assert TABLE.of({"task": None}).name == TABLE.of({"task": ""}).name == "count"


def test_an_input_is_read_in_a_thread_so_that_other_jobs_go_on():
    def read(_worker, _job):
        return CountRequest(number=2 if threading.current_thread() is not main else 1)

    main = threading.current_thread()
    task = Task("count", "Counts.", count, Count, fields=CountRequest, read=read)
    counted = asyncio.run(task(WORKER, Job("id-1", {}, Stopwatch(60), None)))
    assert counted.numbers == [0, 1]


@pytest.mark.parametrize(
    ("job_input", "message"),
    [
        ({"task": "coumt"}, "INVALID_INPUT: task = 'coumt' is not known. Did you mean 'count'?"),
        ({"task": "xyz"}, "task = 'xyz' is not known. This worker has the tasks 'count', 'rest'."),
        ({"task": ["rest"]}, "task = ['rest'] is not known."),
        ({"number": 0}, "number = 0: must be at least 1."),
        ({"numbre": 1}, "numbre is not a known field (did you mean `number`?)."),
        ({"task": "rest", "number": 1}, "the task takes no further fields, but got 'number'."),
        (None, "the job's input is None, not an object."),
    ],
    ids=str,
)
def test_an_unknown_task_or_field_is_refused(job_input, message):
    with pytest.raises(InvalidInput) as raised:
        answer(job_input)
    assert message in str(raised.value)


def test_the_schema_has_the_input_and_the_answer_of_every_task():
    schema = json.loads(json.dumps(document(TABLE), allow_nan=False))

    def resolved(part):
        return schema["$defs"][part["$ref"].rpartition("/")[2]]

    assert list(schema["tasks"]) == ["count", "rest"]
    count, rest = schema["tasks"].values()
    assert count["description"] == "Counts."
    assert resolved(count["input"])["properties"]["number"]["maximum"] == 9
    wanted, numbers = resolved(rest["input"]), resolved(count["output"])
    assert (wanted["properties"]["task"]["const"], wanted["required"]) == ("rest", ["task"])
    assert numbers["required"] == ["numbers"]
    assert numbers["properties"]["refresh_worker"]["const"] is True
    assert resolved(schema["failure"])["required"] == ["error", "message", "code", "detail"]
    assert "phase" in resolved(schema["progress"])["properties"]
    txt2img = document(TASKS)["$defs"]
    assert set(txt2img["Txt2ImgRequest"]["properties"]) == set(Txt2ImgRequest.model_fields)
    assert txt2img["LoraReference"]["anyOf"][0]["type"] == "string"


def test_rows_name_each_field_with_its_type_and_description():
    count = rows(TABLE["count"].input, "validation", nested=False)
    assert count[1] == Row("number", "integer, 1 to 9", "How far to count.")
    all_rows = [*rows(Failure), *(row for task in TASKS for row in rows(task.output))]
    types = {row.name: row.type for row in all_rows}
    assert types["models[].sha256"] == "string or null"
    assert types["delivery.method"] == "base64 | s3 | put | stream"
    assert {"models[].merged_from[].te", "models.stored.*.count"} < types.keys()
    described = [*TASKS, *all_rows]
    assert [one for one in described if not one.description.endswith(".")] == []


@pytest.mark.parametrize(
    ("job_input", "hint"),
    [
        ({"task": "extra-single-image"}, "Did you mean 'upscale'?"),
        ({"task": "PNG Info"}, "Did you mean 'png_info'?"),
        ({"task": "sd_models"}, "Did you mean 'models'?"),
        ({"task": "train"}, "This worker does not train models."),
        ({"task": "Options"}, "A job sends the options for its own picture in"),
        ({"task": "two words"}, "This worker has the tasks 'txt2img', "),
        (
            {"api": {"method": "POST", "endpoint": "/sdapi/v1/extra-batch-images"}, "payload": {}},
            'Send "task": "upscale", and beside it the fields of `payload`.',
        ),
        (
            {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": {}},
            'Send "task": "txt2img", and beside it',
        ),
        ({"api": {"endpoint": "/sdapi/v1/refresh-loras"}}, "The worker lets the engine read new"),
        ({"api": {"endpoint": "/sdapi/v1/loras?x=1"}}, 'Send "task": "loras"'),
    ],
    ids=str,
)
def test_the_hint_for_another_programs_task_or_route_names_ours(job_input, hint):
    with pytest.raises(InvalidInput) as raised:
        TASKS.of(job_input)
    assert hint in raised.value.hint


def test_every_hint_names_a_task_or_is_a_sentence():
    known = {task.name for task in TASKS} | {"img2img"}
    assert [one for one in TASKS_OF_OTHERS.values() if one not in known and " " not in one] == []


def test_the_log_names_the_phase_in_which_an_input_is_refused():
    def read(_worker, _job):
        raise InvalidInput("no.")

    async def story():
        task = Task("read", "Reads.", count, Count, read=read)
        with pytest.raises(InvalidInput):
            await task(WORKER, Job("id-1", {}, Stopwatch(60), None))
        return log.phase.get()

    assert asyncio.run(story()) == "validate"
