"""Every state of the engine's client with every event, and the diagram drawn from the tables."""

import re
from dataclasses import replace

import pytest

from worker.webui.engine_state import (
    CANNOT_HAPPEN,
    TABLES,
    Conditioning,
    EngineState,
    Event,
    Folders,
    Memory,
    Process,
    diagram,
    events_of,
)

EVERY_STATE_AND_EVENT = [
    (field, state, event)
    for field, table in TABLES.items()
    for state in type(getattr(EngineState(), field))
    for event in Event
]


@pytest.mark.parametrize(("field", "state", "event"), EVERY_STATE_AND_EVENT)
def test_every_event_has_a_next_state_or_cannot_happen(field, state, event):
    client = replace(in_which_it_can_happen(event), **{field: state})
    row = TABLES[field][state]

    assert (event in row) + ((state, event) in CANNOT_HAPPEN) == (event in events_of(TABLES[field]))
    if (state, event) in CANNOT_HAPPEN:
        with pytest.raises(ValueError, match=CANNOT_HAPPEN[state, event]):
            client.after(event)
    else:
        assert getattr(client.after(event), field) is row.get(event, state)


def in_which_it_can_happen(event):
    """A state of the client, as the background of a test of one field."""
    able = {
        field: [state for state, row in table.items() if event in row] or list(table)
        for field, table in TABLES.items()
    }
    return EngineState(**{field: states[0] for field, states in able.items()})


def test_every_event_is_in_a_table_and_every_state_can_be_reached():
    assert set(Event) == set().union(*map(events_of, TABLES.values()))
    for field, table in TABLES.items():
        reached, before = {getattr(EngineState(), field)}, set()
        while reached != before:
            before = set(reached)
            reached |= {target for state in before for target in table[state].values()}
        assert reached == set(table) == set(type(getattr(EngineState(), field)))


E = Event
STORIES = {
    "a file that comes while the engine reads its folders is not lost": (
        [E.MODELS_CHANGED, E.REFRESH_STARTED, E.MODELS_CHANGED, E.REFRESH_DONE],
        Folders.STALE,
    ),
    "a failed refresh is repeated": (
        [E.MODELS_CHANGED, E.REFRESH_STARTED, E.REFRESH_FAILED],
        Folders.STALE,
    ),
    "a refresh is done once": (
        [E.MODELS_CHANGED, E.REFRESH_STARTED, E.REFRESH_DONE],
        Folders.CURRENT,
    ),
    "a new process has perhaps not listed the newest files": (
        [E.MODELS_CHANGED, E.FIRST_PICTURE],
        Folders.STALE,
    ),
    "after a failed proof the folders are read": ([E.PROOF_FAILED], Folders.STALE),
    "after a failed proof the same prompt waits for another one": (
        [E.PROOF_FAILED, E.FIRST_PICTURE],
        Conditioning.STALE,
    ),
    "another prompt clears the conditioning": (
        [E.PROOF_FAILED, E.OTHER_PROMPT_USED],
        Conditioning.GOOD,
    ),
    "a process that a restart did not end proves itself again": (
        [E.FIRST_PICTURE, E.RESTART_REQUESTED, E.OTHER_PROCESS, E.SAME_PROCESS],
        Process.DISTRUSTED,
    ),
    "a proven process that crashed is not used": (
        [E.FIRST_PICTURE, E.OTHER_PROCESS],
        Process.GONE,
    ),
    "a first picture makes a restarted engine ready": (
        [E.FIRST_PICTURE, E.RESTART_REQUESTED, E.FIRST_PICTURE],
        Process.PROVEN,
    ),
    "only a picture ends a row of failures": (
        [E.OUT_OF_MEMORY, E.RESTART_REQUESTED, E.FIRST_PICTURE, E.OUT_OF_MEMORY],
        Memory.SHORT_TWICE,
    ),
    "a picture ends a row of failures": ([E.OUT_OF_MEMORY, E.PICTURE_MADE], Memory.ENOUGH),
}


@pytest.mark.parametrize(("events", "expected"), STORIES.values(), ids=STORIES)
def test_events_in_a_row_lead_to(events, expected):
    state = EngineState()
    for event in events:
        state = state.after(event)

    assert expected in (state.process, state.folders, state.conditioning, state.memory)


def test_the_diagram_has_each_change_of_the_tables_and_no_other():
    drawn = set()
    for start, target, causes in re.findall(r"(\w+) --> (\w+): (.+)", diagram()):
        drawn |= {(start, cause, target) for cause in causes.split(", ")}

    assert drawn == {
        (name(state), event.value, name(target))
        for table in TABLES.values()
        for state, row in table.items()
        for event, target in row.items()
        if state != target
    }
    assert re.findall(r"\[\*\] --> (\w+)", diagram()) == [
        name(getattr(EngineState(), field)) for field in TABLES
    ]


def name(state):
    return f"{type(state).__name__}_{state.name}"
