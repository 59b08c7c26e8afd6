import pytest

from worker import errors
from worker.webui.engine_state import Memory
from worker.webui.recovery import MAX_ATTEMPTS, PLANS, Action, Consequence, MemoryGrowth, decide

FAIL = Action.FAIL
KEEP, RESTART, RETIRE = Consequence
GB = 10**9

PLANNED = [
    # the failure, what precedes a replay, how many replays, what follows the last one
    (errors.EngineRefused, FAIL, 0, KEEP),  # a misspelt name never retires a worker
    (errors.EngineFault, FAIL, 0, KEEP),
    (errors.JobTimeout, FAIL, 0, KEEP),
    (errors.EngineNotReady, FAIL, 0, RETIRE),
    (errors.RouteMissing, Action.AWAIT_ROUTE, 2, RETIRE),
    (errors.ConnectionLost, Action.AWAIT_ENGINE, 1, RETIRE),
    (errors.EnginePoisoned, Action.RESTART, 1, RETIRE),
    (errors.CacheDamaged, Action.RESTART_WITHOUT_CACHE, 1, RETIRE),
    (errors.NoCheckpoint, Action.REFRESH, 1, KEEP),
    (errors.ModelNotListed, Action.REFRESH, 1, KEEP),
    (errors.LoraNotApplied, Action.REFRESH, 1, KEEP),
    (errors.IncompleteAnswer, Action.REFRESH, 1, KEEP),
]


def decided(error, *earlier, **state):
    decision = decide(error("x"), [kind("x") for kind in earlier], **state)
    return decision.action, decision.consequence


@pytest.mark.parametrize(("kind", "action", "replays", "consequence"), PLANNED)
def test_each_failure_is_replayed_as_planned(kind, action, replays, consequence):
    for tried in range(replays):
        assert decided(kind, *[kind] * tried) == (action, KEEP)
    assert decided(kind, *[kind] * replays) == (FAIL, consequence)


def test_failures_of_different_kinds_share_the_attempts_of_a_job():
    assert decided(errors.EnginePoisoned, errors.ConnectionLost) == (Action.RESTART, KEEP)
    assert decided(errors.WrongVae, errors.ConnectionLost, errors.EnginePoisoned) == (FAIL, KEEP)
    assert decided(errors.LoraNotApplied, errors.WrongCheckpoint) == (FAIL, KEEP)  # both: the proof


def test_repeated_out_of_memory_has_consequences():
    after = [decided(errors.OutOfMemory, memory=memory) for memory in Memory]
    assert after == [(FAIL, KEEP), (FAIL, KEEP), (FAIL, RESTART), (FAIL, RETIRE)]
    after = [decided(errors.OutOfMemory, memory=memory, switching=True) for memory in Memory]
    assert after == [(FAIL, RESTART), (FAIL, RESTART), (FAIL, RESTART), (FAIL, RETIRE)]


@pytest.mark.parametrize(
    ("kind", "switching", "loras", "consequence"),
    [
        (errors.EngineFault, True, False, RESTART),
        (errors.EngineFault, False, True, RESTART),
        (errors.EngineFault, False, False, KEEP),
        (errors.EnginePoisoned, True, False, RESTART),  # the job's model is bad, not the worker
        (errors.EnginePoisoned, False, True, RETIRE),
        (errors.OutOfMemory, False, True, KEEP),  # A1111 catches it where it applies a LoRA
        (errors.EngineRefused, True, True, KEEP),
        (errors.WrongVae, True, True, KEEP),
        (errors.JobTimeout, True, True, KEEP),
    ],
)
def test_an_engine_that_may_hold_half_a_model_gets_no_other_job(
    kind, switching, loras, consequence
):
    earlier = [kind] * 2
    assert decided(kind, *earlier, switching=switching, loras=loras) == (FAIL, consequence)


def leaves(kind):
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [kind]


def test_every_error_of_a_generation_has_a_plan_within_the_attempts_of_a_job():
    for kind in leaves(errors.EngineError) + leaves(errors.ProofError) + leaves(errors.JobError):
        assert any(issubclass(kind, planned) for planned in PLANS), kind
    assert all(plan.replays < MAX_ATTEMPTS for plan in PLANS.values())


def test_memory_growth_counts_from_the_least_after_a_switch_of_the_same_process():
    growth = MemoryGrowth(limit=4 * GB)
    assert [growth.after_switch(7, used * GB) for used in (9, 8, 12)] == [None] * 3
    assert growth.after_switch(7, 12 * GB + GB // 2) == (
        "the engine's memory grew by 4.5 GB to 12.5 GB over 4 checkpoint switches"
        " (MEMORY_GROWTH_LIMIT_GB = 4)"
    )
    assert [growth.after_switch(8, 30 * GB) for _ in range(2)] == [None] * 2
