"""The state of the engine's client, as tables: from state and event to the next state.

The client tracks seven facts independently, and each has its own table below:

- `Process`: may the engine's process be given a job?
- `Loaded`: may the engine hold a model file that was replaced?
- `Folders`: does the engine know the newest model files?
- `Embeddings`: has the engine read the embeddings that are linked now?
- `Conditioning`: may the engine reuse what it computed from the last prompt?
- `Options`: may a script have changed the engine's options?
- `Memory`: how often in a row did a picture not fit into the GPU's memory?

`EngineState` holds one state of each, and its method `after` is the only way to the next one. An
event changes only the facts whose tables contain it. For each of its events, a table has for each
state either the next state or an entry in `CANNOT_HAPPEN`.

Pure: no IO, no clock, no thread. `worker.webui.lifecycle` reports the events, under a lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar


class Event(Enum):
    """What happens to the engine or to its client."""

    FIRST_PICTURE = "first picture made"
    SAME_PROCESS = "same process reported"  # as the one of the first picture, by start.sh
    OTHER_PROCESS = "other process reported"  # or that it ended, or is being restarted
    RESTART_REQUESTED = "restart requested"
    MODELS_CHANGED = "model files added"
    LORA_REPLACED = "LoRA or embedding file replaced"
    CHECKPOINT_REPLACED = "checkpoint or VAE file replaced"
    REFRESH_STARTED = "refresh started"  # the engine reads its model folders
    REFRESH_DONE = "refresh done"
    REFRESH_FAILED = "refresh failed"
    EMBEDDINGS_CHANGED = "embeddings linked or unlinked"  # for one job
    BUNDLE_USED = "LoRA with embeddings used"  # they lie in the LoRA's own file
    PADDING_CHANGED = "other comma padding asked"
    SCRIPT_USED = "script used"
    OPTIONS_RESTORED = "options restored"
    EMBEDDINGS_READ = "embeddings read again"
    PROOF_FAILED = "model missing or picture wrong"  # as the proof found
    OTHER_PROMPT_USED = "other prompt used"
    OTHER_PROMPTS_USED = "other prompts used in both passes"
    PICTURE_MADE = "job's picture made"
    OUT_OF_MEMORY = "out of memory"


class Process(Enum):
    """May the engine's process be given a job?"""

    UNPROVEN = "no process has made a picture yet"
    PROVEN = "the process has made a first picture"
    GONE = "the proven process has ended, or another one took its place"
    DISTRUSTED = "the process must make another first picture before it gets a job"


class Loaded(Enum):
    """May the engine hold a model file that was replaced?"""

    CURRENT = "what the process has loaded is what the files contain"
    OUTDATED = "a checkpoint or VAE was replaced: a new process must load it"


class Folders(Enum):
    """Does the engine know the newest model files?"""

    CURRENT = "the engine has read its model folders since the last change"
    STALE = "the engine must read its model folders before the next picture"
    REFRESHING = "the engine is reading its model folders"


class Embeddings(Enum):
    """Has the engine read the embeddings that are linked now?"""

    CURRENT = "the engine has read the linked embeddings"
    STALE = "the engine must read the linked embeddings before the next picture"


class Conditioning(Enum):
    """May the engine reuse what it computed from the last prompts?"""

    GOOD = "the same prompts again give the right picture"
    HIRES_STALE = "before a second pass, a picture with another prompt must come first"
    STALE = "a picture with another prompt must come first"


class Options(Enum):
    """May a script have changed the engine's options?"""

    OWN = "the engine's options are those of its first picture"
    CHANGED = "the engine's options must be compared before the next picture"


class Memory(Enum):
    """How often in a row did a picture not fit into the GPU's memory?"""

    ENOUGH = "the last picture fitted"
    SHORT_ONCE = "one picture did not fit"
    SHORT_TWICE = "two in a row did not fit"
    SHORT_OFTEN = "three or more in a row did not fit"


S = TypeVar("S", bound=Enum)
Table = dict[S, dict[Event, S]]

PROCESS: Table[Process] = {
    Process.UNPROVEN: {
        Event.FIRST_PICTURE: Process.PROVEN,
        Event.OTHER_PROCESS: Process.UNPROVEN,
        Event.RESTART_REQUESTED: Process.UNPROVEN,  # a damaged cache, found while booting
    },
    Process.PROVEN: {
        Event.FIRST_PICTURE: Process.PROVEN,  # readiness is checked again for a missing route
        Event.SAME_PROCESS: Process.PROVEN,
        Event.OTHER_PROCESS: Process.GONE,
        Event.RESTART_REQUESTED: Process.DISTRUSTED,
    },
    Process.GONE: {
        Event.FIRST_PICTURE: Process.PROVEN,
        Event.SAME_PROCESS: Process.PROVEN,  # start.sh's file could not be read for a moment
        Event.OTHER_PROCESS: Process.GONE,
        Event.RESTART_REQUESTED: Process.DISTRUSTED,
    },
    # Even if start.sh could not end the process, it must make another first picture.
    Process.DISTRUSTED: {
        Event.FIRST_PICTURE: Process.PROVEN,
        Event.SAME_PROCESS: Process.DISTRUSTED,
        Event.OTHER_PROCESS: Process.DISTRUSTED,
        Event.RESTART_REQUESTED: Process.DISTRUSTED,
    },
}

# A1111 compares the paths of checkpoints and VAEs, not their contents, and no route of it loads a
# file again. Only a request for a restart makes sure that the process is newer than the file.
LOADED: Table[Loaded] = {
    Loaded.CURRENT: {
        Event.CHECKPOINT_REPLACED: Loaded.OUTDATED,
        Event.RESTART_REQUESTED: Loaded.CURRENT,
    },
    Loaded.OUTDATED: {
        Event.CHECKPOINT_REPLACED: Loaded.OUTDATED,
        Event.RESTART_REQUESTED: Loaded.CURRENT,
    },
}

# A first picture changes nothing here: files may have been added since the process listed them.
FOLDERS: Table[Folders] = {
    Folders.CURRENT: {
        Event.MODELS_CHANGED: Folders.STALE,
        Event.LORA_REPLACED: Folders.STALE,
        Event.PROOF_FAILED: Folders.STALE,
    },
    # A refresh that ends here may have missed files that were added while it ran.
    Folders.STALE: {
        Event.MODELS_CHANGED: Folders.STALE,
        Event.LORA_REPLACED: Folders.STALE,
        Event.PROOF_FAILED: Folders.STALE,
        Event.REFRESH_STARTED: Folders.REFRESHING,
        Event.REFRESH_DONE: Folders.STALE,
        Event.REFRESH_FAILED: Folders.STALE,
    },
    Folders.REFRESHING: {
        Event.MODELS_CHANGED: Folders.STALE,
        Event.LORA_REPLACED: Folders.STALE,
        Event.REFRESH_DONE: Folders.CURRENT,
        Event.REFRESH_FAILED: Folders.STALE,
    },
}

# One job generates at a time, and only its own links change in between. The embeddings inside a
# LoRA's file take the place of others with their names. When A1111 unloads that LoRA, it forgets
# the name, so the folder is read again after that.
_UNREAD = dict.fromkeys((Event.EMBEDDINGS_CHANGED, Event.BUNDLE_USED), Embeddings.STALE)
EMBEDDINGS: Table[Embeddings] = {
    Embeddings.CURRENT: {**_UNREAD},
    Embeddings.STALE: {**_UNREAD, Event.EMBEDDINGS_READ: Embeddings.CURRENT},
}

# A1111 keeps the conditioning of the last prompts, one of each pass, and reuses it for the same
# text although a LoRA failed, another embedding has that name now, or the job asks for another
# comma_padding_backtrack. Another prompt in between clears it, and unloads a LoRA; that of the
# second pass only a picture with a second pass.
_STALE = dict.fromkeys(
    (
        Event.PROOF_FAILED,
        Event.LORA_REPLACED,
        Event.EMBEDDINGS_CHANGED,
        Event.BUNDLE_USED,
        Event.PADDING_CHANGED,
    ),
    Conditioning.STALE,
)
CONDITIONING: Table[Conditioning] = {
    Conditioning.GOOD: {**_STALE},
    Conditioning.HIRES_STALE: {**_STALE, Event.OTHER_PROMPTS_USED: Conditioning.GOOD},
    Conditioning.STALE: {
        **_STALE,
        Event.OTHER_PROMPT_USED: Conditioning.HIRES_STALE,
        Event.OTHER_PROMPTS_USED: Conditioning.GOOD,
    },
}

# A1111 v1.9.3 restores what a job overrides; "x/y/z plot" also sets options for good, such as those
# of Hypertile.
OPTIONS: Table[Options] = {
    Options.OWN: {Event.SCRIPT_USED: Options.CHANGED, Event.OPTIONS_RESTORED: Options.OWN},
    Options.CHANGED: {Event.SCRIPT_USED: Options.CHANGED, Event.OPTIONS_RESTORED: Options.OWN},
}

# A new process does not reset this: if pictures do not fit there either, another worker may help.
MEMORY: Table[Memory] = {
    Memory.ENOUGH: {Event.OUT_OF_MEMORY: Memory.SHORT_ONCE, Event.PICTURE_MADE: Memory.ENOUGH},
    Memory.SHORT_ONCE: {Event.OUT_OF_MEMORY: Memory.SHORT_TWICE, Event.PICTURE_MADE: Memory.ENOUGH},
    Memory.SHORT_TWICE: {
        Event.OUT_OF_MEMORY: Memory.SHORT_OFTEN,
        Event.PICTURE_MADE: Memory.ENOUGH,
    },
    Memory.SHORT_OFTEN: {
        Event.OUT_OF_MEMORY: Memory.SHORT_OFTEN,
        Event.PICTURE_MADE: Memory.ENOUGH,
    },
}

# By the name of the field of `EngineState`.
TABLES: dict[str, Table[Any]] = {
    "process": PROCESS,
    "loaded": LOADED,
    "folders": FOLDERS,
    "embeddings": EMBEDDINGS,
    "conditioning": CONDITIONING,
    "options": OPTIONS,
    "memory": MEMORY,
}

# Only the job that has the engine causes these events, and it checks the state before.
CANNOT_HAPPEN: dict[tuple[Enum, Event], str] = {
    (Process.UNPROVEN, Event.SAME_PROCESS): "there is no process to compare with",
    (Folders.CURRENT, Event.REFRESH_STARTED): "only stale folders are read again",
    (Folders.CURRENT, Event.REFRESH_DONE): "no refresh is running",
    (Folders.CURRENT, Event.REFRESH_FAILED): "no refresh is running",
    (Folders.REFRESHING, Event.REFRESH_STARTED): "only stale folders are read again",
    (Folders.REFRESHING, Event.PROOF_FAILED): "a proof follows the end of the refresh",
    (Embeddings.CURRENT, Event.EMBEDDINGS_READ): "only stale embeddings are read again",
    (Conditioning.GOOD, Event.OTHER_PROMPT_USED): "only stale conditioning is cleared",
    (Conditioning.GOOD, Event.OTHER_PROMPTS_USED): "only stale conditioning is cleared",
    (Conditioning.HIRES_STALE, Event.OTHER_PROMPT_USED): "only a second pass clears the rest",
}


@dataclass(frozen=True)
class EngineState:
    """One state of each of the seven; the defaults are where a client begins."""

    process: Process = Process.UNPROVEN
    loaded: Loaded = Loaded.CURRENT
    folders: Folders = Folders.CURRENT
    embeddings: Embeddings = Embeddings.CURRENT
    conditioning: Conditioning = Conditioning.GOOD
    options: Options = Options.OWN
    memory: Memory = Memory.ENOUGH

    def after(self, event: Event) -> EngineState:
        """Look up the state that follows.

        Raises:
            ValueError: the event cannot happen in this state.
        """
        return EngineState(
            process=_after(PROCESS, self.process, event),
            loaded=_after(LOADED, self.loaded, event),
            folders=_after(FOLDERS, self.folders, event),
            embeddings=_after(EMBEDDINGS, self.embeddings, event),
            conditioning=_after(CONDITIONING, self.conditioning, event),
            options=_after(OPTIONS, self.options, event),
            memory=_after(MEMORY, self.memory, event),
        )


def events_of(table: Table[Any]) -> set[Event]:
    """The events that a table contains."""
    return {event for row in table.values() for event in row}


def _after(table: Table[S], state: S, event: Event) -> S:
    if event in table[state]:
        return table[state][event]
    if event in events_of(table):
        reason = CANNOT_HAPPEN[state, event]
        raise ValueError(f"{event} cannot happen in {state}: {reason}")
    return state


def diagram() -> str:
    """The tables as a Mermaid diagram; an event that changes nothing is left out."""
    return "\n".join(["stateDiagram-v2", *_lines(EngineState())]) + "\n"


def _lines(first: EngineState) -> Iterator[str]:
    for field in fields(EngineState):
        table = TABLES[field.name]
        yield f"    state {field.name} {{"
        yield f"        [*] --> {_id(getattr(first, field.name))}"
        for state, row in table.items():
            yield f"        {_id(state)}: {state.name} - {state.value}"
            targets = {target: _causes(row, target) for target in row.values() if target != state}
            for target, causes in targets.items():
                yield f"        {_id(state)} --> {_id(target)}: {causes}"
        yield "    }"


def _id(state: Enum) -> str:
    return f"{type(state).__name__}_{state.name}"


def _causes(row: dict[Event, S], target: S) -> str:
    return ", ".join(event.value for event, next_ in row.items() if next_ == target)
