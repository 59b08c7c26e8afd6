import re
from dataclasses import replace

import pytest

from worker.webui import engine_state
from worker.webui.engine_state import CANNOT_HAPPEN, TABLES, EngineState, Event

Memory, Process = engine_state.Memory, engine_state.Process
Folders, Conditioning = engine_state.Folders, engine_state.Conditioning
Loaded, Embeddings = engine_state.Loaded, engine_state.Embeddings
FIRST = {field: getattr(EngineState(), field) for field in TABLES}


@pytest.mark.parametrize("field", TABLES)
@pytest.mark.parametrize("event", Event)
def test_every_event_has_a_next_state_or_cannot_happen(field, event):
    able = {  # states of the client in which the event can happen
        field: [state for state, row in table.items() if event in row] or list(table)
        for field, table in TABLES.items()
    }
    background = EngineState(**{field: states[0] for field, states in able.items()})
    for state in type(FIRST[field]):
        client, row = replace(background, **{field: state}), TABLES[field][state]
        impossible = (state, event) in CANNOT_HAPPEN
        assert (event in row) + impossible == (event in engine_state.events_of(TABLES[field]))
        if impossible:
            with pytest.raises(ValueError, match=CANNOT_HAPPEN[state, event]):
                client.after(event)
        else:
            assert getattr(client.after(event), field) is row.get(event, state)


def test_every_event_is_in_a_table_and_every_state_can_be_reached():
    assert set(Event) == set().union(*map(engine_state.events_of, TABLES.values()))
    for field, table in TABLES.items():
        reached, before = {FIRST[field]}, set()
        while reached != before:
            before = set(reached)
            reached |= {target for state in before for target in table[state].values()}
        assert reached == set(table) == set(type(FIRST[field]))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("MODELS_CHANGED REFRESH_STARTED REFRESH_DONE", Folders.CURRENT),
        ("MODELS_CHANGED REFRESH_STARTED REFRESH_FAILED", Folders.STALE),
        # A change while the engine reads its folders is not lost.
        ("MODELS_CHANGED REFRESH_STARTED MODELS_CHANGED REFRESH_DONE", Folders.STALE),
        ("MODELS_CHANGED REFRESH_STARTED MODELS_CHANGED REFRESH_FAILED", Folders.STALE),
        # The change may have come after the new process listed its folders.
        ("MODELS_CHANGED FIRST_PICTURE", Folders.STALE),
        ("PROOF_FAILED FIRST_PICTURE", Folders.STALE),
        ("PROOF_FAILED FIRST_PICTURE", Conditioning.STALE),
        ("PROOF_FAILED OTHER_PROMPTS_USED", Conditioning.GOOD),
        # Only a picture with a second pass clears what A1111 keeps of the last second pass.
        ("EMBEDDINGS_CHANGED OTHER_PROMPT_USED", Conditioning.HIRES_STALE),
        ("LORA_REPLACED OTHER_PROMPT_USED OTHER_PROMPTS_USED", Conditioning.GOOD),
        ("LORA_REPLACED", Folders.STALE),
        # A replaced file is not in the engine's lists only: the process must be a new one.
        ("CHECKPOINT_REPLACED FIRST_PICTURE OTHER_PROCESS", Loaded.OUTDATED),
        ("CHECKPOINT_REPLACED RESTART_REQUESTED", Loaded.CURRENT),
        ("CHECKPOINT_REPLACED RESTART_REQUESTED CHECKPOINT_REPLACED", Loaded.OUTDATED),
        ("EMBEDDINGS_CHANGED EMBEDDINGS_READ", Embeddings.CURRENT),
        ("EMBEDDINGS_CHANGED EMBEDDINGS_READ EMBEDDINGS_CHANGED", Embeddings.STALE),
        ("FIRST_PICTURE OTHER_PROCESS", Process.GONE),
        ("FIRST_PICTURE RESTART_REQUESTED FIRST_PICTURE", Process.PROVEN),
        # start.sh could not end the process: it must prove itself again.
        (
            "FIRST_PICTURE RESTART_REQUESTED OTHER_PROCESS SAME_PROCESS",
            Process.DISTRUSTED,
        ),
        (
            "OUT_OF_MEMORY RESTART_REQUESTED FIRST_PICTURE OUT_OF_MEMORY",
            Memory.SHORT_TWICE,
        ),
        ("OUT_OF_MEMORY PICTURE_MADE", Memory.ENOUGH),
    ],
)
def test_a_sequence_of_events_leads_to_a_state(events, expected):
    state = EngineState()
    for event in events.split():
        state = state.after(Event[event])
    assert expected in [getattr(state, field) for field in TABLES]


def test_the_diagram_has_each_change_of_the_tables_and_no_other():
    def name(state):
        return f"{type(state).__name__}_{state.name}"

    drawn = {
        (start, cause, target)
        for start, target, causes in re.findall(r"(\w+) --> (\w+): (.+)", engine_state.diagram())
        for cause in causes.split(", ")
    }
    assert drawn == {
        (name(state), event.value, name(target))
        for table in TABLES.values()
        for state, row in table.items()
        for event, target in row.items()
        if state != target
    }
    assert re.findall(r"\[\*\] --> (\w+)", engine_state.diagram()) == [
        name(state) for state in FIRST.values()
    ]
