"""The engine's state across threads and jobs; whole workers are in tests/stories/test_job.py."""

import asyncio
import threading
from unittest.mock import Mock

import pytest
from fakes.a1111.extras import Extras, read_extras
from fakes.a1111.faults import Faults
from fakes.engine_parts import UNSEEN, Fake

from worker.errors import (
    ConnectionLost,
    EngineFault,
    EngineModelMissing,
    EnginePoisoned,
    EngineRefused,
    JobTimeout,
    OutOfMemory,
    RouteMissing,
    WorkerError,
    WrongVae,
)
from worker.generation.call import Call
from worker.generation.catalog import Catalog
from worker.stopwatch import Stopwatch
from worker.webui.supervisor import EngineProcess


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def test_an_engine_makes_its_first_picture_once(fake):
    assert fake.run(jobs=2) == ["wait", "txt2img", "txt2img"]
    assert fake.engine_client.health()["restarts"] == 0
    fake.process = EngineProcess("running", pid=2)
    assert fake.run() == ["wait", "txt2img"]
    assert fake.engine_client.health()["restarts"] == 1


def test_files_that_come_while_the_engine_reads_its_folders_are_not_lost(fake):
    fake.engine_client.models_changed()
    fake.on["refresh"] = fake.engine_client.models_changed
    assert fake.run(jobs=3) == ["wait", "refresh", "txt2img", "refresh", "txt2img", "txt2img"]


def test_an_engine_that_cannot_list_its_loras_still_makes_pictures(fake):
    fake.engine_client.models_changed()
    fake.on["loras"] = Mock(side_effect=EngineFault("not JSON compliant"))
    assert fake.run() == ["wait", "refresh", "txt2img"]


def test_the_next_job_waits_for_the_refresh_of_a_cancelled_one_and_needs_no_other(fake):
    started, ended = threading.Event(), threading.Event()

    def refresh():
        started.set()
        ended.wait(60)

    async def cancelled():
        job = asyncio.create_task(fake.generate())
        await asyncio.to_thread(started.wait, 60)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        following = asyncio.create_task(fake.generate())
        for _ in range(50):  # turns in which it would draw, if it did not wait
            await asyncio.to_thread(lambda: None)
        assert fake.asked[-1] == "refresh"
        ended.set()
        await following

    fake.engine_client.models_changed()
    fake.on["refresh"] = refresh
    asyncio.run(cancelled())
    assert [name for name in fake.asked if name in {"refresh", "txt2img"}] == ["refresh", "txt2img"]
    assert fake.run() == ["txt2img"]


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (EnginePoisoned("x"), ["request_restart", "wait"]),  # even if start.sh does not end it
        (RouteMissing("x"), ["wait"]),
        (ConnectionLost("x"), ["is_idle"]),
        (WrongVae("x"), ["refresh", "txt2img"]),  # with another prompt
    ],
)
def test_the_engine_is_made_ready_before_a_failed_job_is_sent_again(fake, error, calls):
    fake.run()
    fake.on["txt2img"] = Mock(side_effect=error)
    assert fake.run() == ["txt2img", *calls, "txt2img"]
    assert fake.run() == ["txt2img"]


# A job's own models --------------------------------------------------------------------------

FAULT, BAD_MODEL = EngineFault("size mismatch"), ["bad-model"]


@pytest.mark.parametrize(
    ("before", "job", "error", "reasons"),
    [
        ([], {}, FAULT, []),
        ([], {"checkpoint": "default"}, FAULT, []),
        ([], {"checkpoint": "other"}, FAULT, BAD_MODEL),
        ([{"checkpoint": "other"}], {"checkpoint": "other"}, FAULT, []),
        ([{"checkpoint": "other"}], {}, FAULT, BAD_MODEL),  # back to the default
        ([], {"vae": "v.safetensors"}, FAULT, BAD_MODEL),
        ([{"vae": "v.safetensors"}], {"vae": "v.safetensors"}, FAULT, BAD_MODEL),
        ([{"vae": "v.safetensors"}], {"vae": "Automatic"}, FAULT, BAD_MODEL),
        ([], {"refiner_checkpoint": "other"}, FAULT, BAD_MODEL),
        ([], {"refiner_checkpoint": "None"}, FAULT, []),
        ([], {"enable_hr": True, "hr_checkpoint_name": "other"}, FAULT, BAD_MODEL),
        ([], {"enable_hr": False, "hr_checkpoint_name": "other"}, FAULT, []),
        ([], {"enable_hr": True, "hr_checkpoint_name": "Use same checkpoint"}, FAULT, []),
        ([], {"script_name": "X/Y/Z plot"}, FAULT, BAD_MODEL),
        ([], {"script_name": "Prompt matrix"}, FAULT, []),
        ([], {"loras": ["odd"]}, FAULT, BAD_MODEL),
        ([], {"loras": ["good"]}, OutOfMemory("x"), []),
        ([], {"checkpoint": "other"}, OutOfMemory("x"), ["out-of-memory"]),
        ([], {"checkpoint": "other"}, EngineRefused("x"), []),
    ],
)
def test_the_engine_is_restarted_if_a_failed_job_may_have_left_half_a_model(
    fake, before, job, error, reasons
):
    for earlier in [{}, *before]:
        fake.run(**earlier)
    assert fake.fail(error, **job) == reasons


def test_after_a_job_that_was_stopped_while_it_switched_any_failure_restarts_the_engine(fake):
    fake.run()
    assert fake.fail(EngineRefused("x"), checkpoint="other") == []
    assert fake.fail(FAULT) == BAD_MODEL


def test_a_new_process_has_loaded_the_default_and_not_what_the_old_one_had(fake):
    fake.run(checkpoint="other")
    fake.process = EngineProcess("running", pid=2)
    assert fake.fail(FAULT, checkpoint="other") == BAD_MODEL


def test_a_model_that_breaks_a_fresh_engine_too_does_not_cost_the_worker(fake):
    fake.run()
    fake.on["wait"] = lambda: fake.on.update(txt2img=Mock(side_effect=EnginePoisoned("x")))
    assert fake.fail(EnginePoisoned("x"), checkpoint="other") == ["poisoned", "bad-model"]
    assert fake.engine_client.retiring == ""


# Files that change under the engine ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "calls"),
    [
        ({"lora"}, ["refresh", "txt2img", "txt2img"]),  # the first one with another prompt
        ({"embedding"}, ["refresh", "txt2img", "txt2img"]),
        ({"checkpoint"}, ["request_restart", "wait", "txt2img"]),
        ({"vae", "lora"}, ["request_restart", "wait", "refresh", "txt2img", "txt2img"]),
        (set(), ["txt2img"]),
    ],
)
def test_a_file_that_was_replaced_is_loaded_anew_before_the_next_job(fake, kinds, calls):
    fake.run()
    fake.engine_client.files_replaced(kinds)
    assert fake.run() == calls
    assert fake.reasons == ["replaced-model"] * bool(kinds & {"checkpoint", "vae"})
    assert fake.run() == ["txt2img"]


def test_a_checkpoint_that_was_replaced_has_the_hash_of_its_new_file(fake):
    def sha256():
        return asyncio.run(fake.engine_client.checkpoint_sha256("mine"))

    fake.run()
    fake.checkpoints = ({"model_name": "mine", "sha256": "old"},)
    assert sha256() == "old"
    fake.engine_client.files_replaced({"checkpoint"})
    assert sha256() == "old"  # of a job that was running
    fake.checkpoints = ({"model_name": "mine", "sha256": "new"},)
    fake.run()
    assert sha256() == "new"


@pytest.mark.parametrize(("limit", "reasons"), [(1.0, []), (2.0, ["replaced-model"])])
def test_a_replaced_lora_costs_a_restart_if_a_cancelled_job_may_have_left_a_checkpoint_with_it(
    fake, limit, reasons
):
    fake.checkpoints_limit = limit
    fake.run()
    fake.fail(JobTimeout("x"), checkpoint="other")
    fake.engine_client.files_replaced({"lora"})
    fake.run()
    assert fake.reasons == reasons


def test_an_external_engine_with_a_replaced_checkpoint_is_named_in_the_log(fake, caplog):
    fake.run()
    fake.can_restart = False
    fake.engine_client.files_replaced({"checkpoint"})
    assert fake.run() == ["wait", "txt2img"]
    assert "restart the engine, it has the old one" in caplog.text


def test_embeddings_are_arranged_before_each_attempt_and_read_only_if_they_changed(fake):
    changes = iter([False, True, False, True])
    arrange = lambda: next(changes)  # noqa: E731 - it counts its calls
    assert fake.run(arrange=arrange) == ["wait", "txt2img"]
    assert fake.run(arrange=arrange) == ["txt2img", "refresh_embeddings", "txt2img"]
    fake.on["txt2img"] = Mock(side_effect=EnginePoisoned("x"))  # a new process: arranged again
    again = ["txt2img", "request_restart", "wait", "txt2img", "refresh_embeddings", "txt2img"]
    assert fake.run(arrange=arrange) == again


def test_what_the_engine_kept_of_a_second_pass_is_cleared_by_the_next_job_that_has_one(fake):
    fake.run()
    assert fake.run(arrange=lambda: True) == ["txt2img", "refresh_embeddings", "txt2img"]
    assert fake.run() == ["txt2img"]
    assert fake.run(enable_hr=True) == ["hires", "hires"]
    assert fake.run(enable_hr=True) == ["hires"]


def test_prompts_that_are_cut_otherwise_are_read_again(fake):
    """A1111 reuses what it has of the same prompt, although comma_padding_backtrack differs."""
    fake.run()
    other = {"settings": {"comma_padding_backtrack": 0}}
    for job in (other, {}):
        assert fake.run(**job) == ["txt2img", "txt2img"]
        assert fake.run(**job) == ["txt2img"]


def test_embeddings_inside_a_lora_are_forgotten_before_the_next_job(fake):
    """First another picture, which unloads the LoRA: its names would be missing in the folder."""
    fake.run()
    assert fake.run(bundle=True) == ["txt2img"]
    again = ["txt2img", "refresh_embeddings", "txt2img"]
    assert fake.run(bundle=True) == fake.run() == again
    assert fake.run() == ["txt2img"]


def test_options_that_a_script_has_changed_are_set_back(fake):
    fake.run()
    script = {"script_name": "X/Y/Z plot"}
    again = ["txt2img", "refresh_embeddings", "txt2img"]  # its arguments may name any LoRA
    assert fake.run(jobs=2, **script) == ["txt2img", *again]
    fake.hypertile = True
    assert fake.run() == ["set_options", *again]
    assert fake.run() == ["txt2img"]  # without a script they are not compared
    fake.hypertile = False
    fake.run(**script)
    fake.hypertile = True
    fake.on["set_options"] = Mock(side_effect=EngineFault("frozen"))
    assert fake.run()[:3] == ["set_options", "request_restart", "wait"]


def test_a_cancelled_job_leaves_no_embedding_unread(fake):
    """Its thread ends before the next job begins, and what it changed is not forgotten."""
    started, ended = threading.Event(), threading.Event()

    def arrange():
        started.set()
        return ended.wait(60)

    async def cancelled():
        job = asyncio.create_task(fake.generate(arrange))
        await asyncio.to_thread(started.wait, 60)
        job.cancel()
        await asyncio.sleep(0)
        assert not job.done()
        ended.set()
        with pytest.raises(asyncio.CancelledError):
            await job

    fake.run()
    asyncio.run(cancelled())
    assert fake.run(arrange=lambda: False) == ["txt2img", "refresh_embeddings", "txt2img"]


def test_a_failed_arrangement_counts_as_a_change(fake):
    fake.run()
    arrange = Mock(side_effect=EngineFault("no space"))
    with pytest.raises(EngineFault):
        asyncio.run(fake.generate(arrange))
    assert fake.run() == ["txt2img", "refresh_embeddings", "txt2img"]


# Calls other than pictures ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "asked", "ends"),
    [
        (None, ["wait", "post"], "answer"),
        (ConnectionLost("gone."), ["wait", "post", "is_idle", "post"], "answer"),
        (EnginePoisoned("bad."), ["wait", "post", "request_restart", "wait", "post"], "answer"),
        (EngineFault("odd."), ["wait", "post"], "ENGINE_ERROR: odd"),
        (RouteMissing("no route."), ["wait", "post"], "REQUEST_REFUSED: no route. Use an A1111"),
        (OutOfMemory("full."), ["wait", "post"], "OUT_OF_MEMORY: full. Send less."),
    ],
)
def test_a_call_is_recovered_as_a_picture_is(fake, error, asked, ends):
    fake.on["post"] = Mock(side_effect=error)
    call = Call("interrogate", {}, lambda _: "answer", smaller="Send less.")
    try:
        found = asyncio.run(fake.engine_client.call(call, Stopwatch(60)))
    except WorkerError as raised:
        found = str(raised)
    assert found.startswith(ends)
    assert [name for name in fake.asked if name not in UNSEEN] == asked


def test_a_call_whose_answer_has_another_shape_is_a_fault_of_the_engine(fake):
    call = Call("interrogate", {}, lambda answer: answer["caption"], smaller="")
    with pytest.raises(EngineFault, match="interrogate: the engine answered 200, but not as A1111"):
        asyncio.run(fake.engine_client.call(call, Stopwatch(60)))


def test_a_call_at_the_deadline_stops_the_engine(fake):
    stopped = threading.Event()
    fake.on |= {"post": lambda: stopped.wait(60), "interrupt": stopped.set}
    call = Call("extra-single-image", {}, lambda _: None, smaller="")
    with pytest.raises(JobTimeout, match="no result within"):
        asyncio.run(fake.engine_client.call(call, Stopwatch(0.3)))
    assert "interrupt" in fake.asked


def test_the_model_of_the_second_passs_upscaler_is_proven_once_for_each_process(fake):
    extras = Extras(fake.folder, {"upscaling_max_images_in_cache": 0}, Faults(""))
    fake.answer = lambda body: extras.enlarge(read_extras(body))
    fake.catalog = Catalog({}, {}, enlargers={"Lanczos": 4.0, "R-ESRGAN 4x+": 4.0})
    hires = {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}
    assert fake.run(**hires | {"hr_upscaler": "Lanczos"}) == ["wait", "hires"]
    assert fake.run(**hires | {"enable_hr": False}) == ["txt2img"]
    with pytest.raises(EngineModelMissing, match="'R-ESRGAN 4x\\+' was not used"):
        fake.run(**hires)
    assert fake.asked == ["post"]
    (fake.folder / "models/RealESRGAN").mkdir(parents=True)
    (fake.folder / "models/RealESRGAN/RealESRGAN_x4plus.pth").touch()
    assert fake.run(jobs=2, **hires) == ["post", "hires", "hires"]
    fake.process = EngineProcess("running", pid=2)
    assert fake.run(**hires) == ["wait", "post", "hires"]
