"""The short form of `make campaign`, and that its judge finds what must never happen."""

import base64
import random
from types import SimpleNamespace

import pytest
import requests
from fakes.a1111.picture import png
from fakes.runpod_plane import RunPodPlane

from campaign.catalogue import Fault, catalogue
from campaign.jobs import Job
from campaign.judge import Judge, Sent, Struck, Violation
from campaign.pictures import pixels
from campaign.run import Campaign, Options

MINUTES = 0.4  # for the steps of one run; the last step goes on to its end
PATIENCE = 1800  # seconds


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("seed", [7, random.SystemRandom().randrange(10**6)], ids=["fixed", "new"])
def test_no_job_is_lost_or_wrong_whatever_fails(tmp_path, seed):
    report = Campaign(tmp_path, Options(seed, minutes=MINUTES, short=True), print).run()
    assert report.violations == []
    assert report.jobs > 0 < report.struck


def test_the_catalogue_has_at_least_forty_kinds_of_faults():
    assert len({fault.name for fault in catalogue()}) >= 40


# The judge ---------------------------------------------------------------------------------------

RIGHT, WRONG = (png(8, 8, colour, "") for colour in (b"\1\2\3", b"\3\2\1"))
DRAWS = Job("txt2img", {"prompt": "a fox"}, {"prompt": "a fox"}, frozenset({"engine"}))
LISTS = Job("list", {"task": "models"})
MUST_FAIL = Job("wrong", {"stepz": 1}, code="INVALID_INPUT")
KILLED = Fault("engine: killed", lambda *_: None, codes=frozenset({"ENGINE_NOT_READY"}))


def drawn(picture):
    image = base64.b64encode(picture).decode()
    return {"output": {"images": [image], "delivery": {"method": "base64"}}}


def failing(error):
    return {"error": error, "output": {"code": error.partition(":")[0]}}


@pytest.fixture(scope="module")
def plane():
    with RunPodPlane() as running:
        yield running


@pytest.fixture
def judge(plane):
    calm = SimpleNamespace(right=lambda _: {(pixels(RIGHT),)})
    return Judge(SimpleNamespace(plane=plane), calm)


@pytest.mark.parametrize(
    ("job", "posts", "faults", "violation"),
    [
        (DRAWS, [drawn(RIGHT)], [], ""),
        (DRAWS, [drawn(WRONG)], [], "a wrong picture"),
        (DRAWS, [], [], "no end"),
        (DRAWS, [drawn(RIGHT)] * 2, [], "posted again"),
        (DRAWS, [failing("ENGINE_NOT_READY: gone.")], [KILLED], ""),
        (DRAWS, [failing("ENGINE_NOT_READY: gone.")], [], "no fault of its time explains"),
        (DRAWS, [failing("OUT_OF_MEMORY: gone.")], [KILLED], "no fault of its time explains"),
        (LISTS, [failing("ENGINE_NOT_READY: gone.")], [KILLED], "no fault of its time explains"),
        (DRAWS, [failing("it broke")], [KILLED], "no code of the catalogue"),
        (MUST_FAIL, [failing("INVALID_INPUT: stepz.")], [], ""),
        (MUST_FAIL, [drawn(RIGHT)], [], "expected INVALID_INPUT"),
    ],
)
def test_the_judge_finds_every_job_that_ends_otherwise(plane, judge, job, posts, faults, violation):
    job_id = plane.submit(job.input)
    requests.get(f"{plane.url}/job-take/w", timeout=10).raise_for_status()
    for post in posts:
        requests.post(f"{plane.url}/job-done/w/{job_id}", json=post, timeout=10).raise_for_status()
    sent, struck = Sent(job_id, job, 0.0), [Struck(fault, 0.0) for fault in faults]
    if violation:
        with pytest.raises(Violation, match=violation):
            judge.job(sent, struck)
    else:
        judge.job(sent, struck)


def test_a_cancelled_job_is_a_violation_unless_the_campaign_has_cancelled_it(plane, judge):
    job_id = plane.submit(DRAWS.input)
    plane.cancel(job_id)
    judge.job(Sent(job_id, DRAWS, 0.0, is_ended_by_us=True), [])
    with pytest.raises(Violation, match="nobody asked for it"):
        judge.job(Sent(job_id, DRAWS, 0.0), [])
