"""How long this room waits for the engine, as one value that tests replace with their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineTiming:
    """Every wait of the engine's client; seconds unless the name says otherwise.

    Attributes:
        connect_timeout: for a connection; the engine is on this machine or near.
        quick_timeout: for the answer to a call that only reads or sets state.
        refresh_timeout: for one model folder to be read again; a large one takes minutes.
        port_timeout: for one check whether the engine's port is open.
        quiet: between the port opening and the first HTTP request, for an engine that start.sh did
            not start. In UI mode A1111 v1.9.3 dies of any request that arrives after its port
            opened and before its API is mounted (0.2 to 0.5 s were measured). start.sh uses
            --nowebui, which has no such window.
        ready_poll: between two attempts at a first picture; an engine's end is noticed within it.
        port_poll: between two looks at the engine's closed port, each of which takes 0.05 ms.
        ready_log_every: before the first log line of the wait for a first picture; the time between
            two lines doubles each time.
        route_patience: for a missing route to appear, on an engine that mounts all at once.
        first_picture_attempts: a count; the engine counts as broken after so many error answers.
        first_picture_checkpoints: a count; so many checkpoints are tried after the default.
        watch_every: between two checks, while no job runs, for a restarted engine; and whether
            start.sh still runs.
        progress_every: between two requests for the progress of a picture.
        progress_per_log_line: a count; one in so many of these answers is logged.
        end_poll: between two looks at a request that is nearly done; later a 64th of the time so
            far.
        end_poll_longest: the same for a request whose end is far away or unknown; later an eighth.
        stop_patience: for an interrupted job to end, before the engine counts as hung. The same for
            a cancelled one that is nearly done, before it is interrupted together with the next.
        stop_poll: between two interrupts, or two checks whether the engine has stopped.
        arrange_patience: for links in the engine's folders to be made, at least; seconds are usual
            where many jobs share a slow volume.
        restart_patience: for start.sh to report that the old process is gone.
        restart_limit: how long a process counts as gone after its restart was requested, although
            start.sh still reports it. start.sh takes about 10 s to end one that ignores SIGTERM.
        route_wait: before a route that was missing during a job is tried again.
        route_recheck: for the readiness check that follows this wait.
        orphan_grace: for the handler to end after start.sh has ended.
    """

    connect_timeout: float = 3.0
    quick_timeout: float = 10.0
    refresh_timeout: float = 120.0
    port_timeout: float = 1.0
    quiet: float = 5.0
    ready_poll: float = 0.2
    port_poll: float = 0.03
    ready_log_every: float = 15.0
    route_patience: float = 10.0
    first_picture_attempts: int = 3
    first_picture_checkpoints: int = 8
    watch_every: float = 1.0
    progress_every: float = 1.0
    progress_per_log_line: int = 10
    end_poll: float = 0.02
    end_poll_longest: float = 0.1
    stop_patience: float = 10.0
    stop_poll: float = 0.3
    arrange_patience: float = 60.0
    restart_patience: float = 20.0
    restart_limit: float = 60.0
    route_wait: float = 5.0
    route_recheck: float = 3.0
    orphan_grace: float = 10.0


DEFAULT_TIMING = EngineTiming()
