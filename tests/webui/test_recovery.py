import pytest

from worker import errors
from worker.webui.engine_state import Memory
from worker.webui.recovery import MAX_ATTEMPTS, PLANS, Action, After, Decision, decide

RAISED = [
    # the failure, failures before it -> next step
    (errors.InvalidInput, [], Action.FAIL, After.KEEP),
    (errors.EngineRefused, [], Action.FAIL, After.KEEP),  # a misspelt name never retires a worker
    (errors.ModelNotFound, [], Action.FAIL, After.KEEP),
    (errors.ModelFileInvalid, [], Action.FAIL, After.KEEP),
    (errors.RouteMissing, [], Action.AWAIT_ROUTE, After.KEEP),
    (errors.RouteMissing, [errors.RouteMissing], Action.AWAIT_ROUTE, After.KEEP),
    (errors.RouteMissing, [errors.RouteMissing] * 2, Action.FAIL, After.RETIRE),
    (errors.ConnectionLost, [], Action.AWAIT_ENGINE, After.KEEP),
    (errors.ConnectionLost, [errors.ConnectionLost], Action.FAIL, After.RETIRE),
    (errors.EnginePoisoned, [], Action.RESTART, After.KEEP),
    (errors.EnginePoisoned, [errors.EnginePoisoned], Action.FAIL, After.RETIRE),
    (errors.CacheDamaged, [], Action.RESTART_WITHOUT_CACHE, After.KEEP),
    (errors.CacheDamaged, [errors.CacheDamaged], Action.FAIL, After.RETIRE),
    (errors.NoCheckpoint, [], Action.REFRESH, After.KEEP),
    (errors.NoCheckpoint, [errors.NoCheckpoint], Action.FAIL, After.KEEP),
    (errors.WrongCheckpoint, [], Action.REFRESH, After.KEEP),
    (errors.WrongCheckpoint, [errors.WrongCheckpoint], Action.FAIL, After.KEEP),
    (errors.LoraNotApplied, [], Action.REFRESH, After.KEEP),
    (errors.LoraNotApplied, [errors.WrongCheckpoint], Action.FAIL, After.KEEP),  # one kind: proof
    (errors.WrongVae, [], Action.REFRESH, After.KEEP),
    (errors.IncompleteAnswer, [], Action.REFRESH, After.KEEP),
    (errors.EngineFault, [], Action.FAIL, After.KEEP),
    (errors.EngineNotReady, [], Action.FAIL, After.RETIRE),
    (errors.JobTimeout, [], Action.FAIL, After.KEEP),
    # Different failures one after the other: three attempts are the end.
    (errors.EnginePoisoned, [errors.ConnectionLost], Action.RESTART, After.KEEP),
    (errors.WrongVae, [errors.ConnectionLost, errors.EnginePoisoned], Action.FAIL, After.KEEP),
]


@pytest.mark.parametrize(("kind", "earlier", "action", "after"), RAISED)
def test_each_failure_has_its_next_step(kind, earlier, action, after):
    decision = decide(kind("x"), [before("x") for before in earlier])

    assert decision == Decision(action, after)


@pytest.mark.parametrize(
    ("memory", "after"),
    [
        (Memory.SHORT_ONCE, After.KEEP),
        (Memory.SHORT_TWICE, After.RESTART),
        (Memory.SHORT_OFTEN, After.RETIRE),
    ],
)
def test_out_of_memory_is_reported_and_grave_when_repeated(memory, after):
    decision = decide(errors.OutOfMemory("x"), memory=memory)

    assert decision == Decision(Action.FAIL, after)


def test_an_engine_whose_switch_failed_gets_no_other_job():
    assert decide(errors.EngineFault("x"), switching=True) == Decision(Action.FAIL, After.RESTART)


def leaves(kind):
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [kind]


def test_every_engine_and_proof_error_is_in_the_table():
    for kind in leaves(errors.EngineError) + leaves(errors.ProofError) + leaves(errors.JobError):
        assert any(issubclass(kind, planned) for planned in PLANS), kind


def test_no_plan_allows_more_than_the_attempts_of_a_job():
    assert all(plan.replays < MAX_ATTEMPTS for plan in PLANS.values())
