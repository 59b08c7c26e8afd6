"""The campaign: step after step of drawn jobs and faults, until enough of both have been."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from campaign.catalogue import Fault, Heal, catalogue
from campaign.jobs import Draw, Job, brief
from campaign.judge import Judge, Sent, Struck, Violation
from campaign.pictures import Calm
from campaign.world import PATIENCE, TICK, Patience, Worker, World

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
SETTLED_TRIES = 4  # plain jobs after a step, until one is right
FETCHING = 0.25  # of the other steps have jobs that fetch their models
LOG_TAIL = 12_000  # characters


@dataclass(frozen=True)
class Options:
    """What to run; it ends when both numbers are reached, or the time is over."""

    seed: int
    engine: str = "fake"
    jobs: int = 2000
    faults: int = 600
    minutes: float = 600.0
    short: bool = False
    first_step: int = 0
    only: str = ""  # faults whose name contains this


@dataclass
class Report:
    """What has been."""

    options: Options
    steps: int = 0
    jobs: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    left_out: str = ""

    @property
    def struck(self) -> int:
        """The number of faults that were made."""
        return self.faults.total()


@dataclass(frozen=True)
class Plan:
    """A step: jobs and faults with the seconds after its begin, and how long each fault stays."""

    jobs: list[tuple[float, Job]]
    faults: list[tuple[float, float, Fault]]
    rng: random.Random


class Campaign:
    """Runs it; `say` gets a line for each step."""

    def __init__(self, folder: Path, options: Options, say: Callable[[str], object]) -> None:
        self.report = Report(options)
        self._options, self._say, self._folder = options, say, folder
        self._story: list[str] = []
        self._began = time.monotonic()
        self._started = 0

    def run(self) -> Report:
        """All of it."""
        with ExitStack() as stack:
            self._world = stack.enter_context(World(self._folder / "world", self._options.engine))
            calm = stack.enter_context(Calm(self._folder / "calm", self._world))
            self._judge = Judge(self._world, calm)
            self.report.left_out = self._world.left_out
            put_url = self._world.put.url
            self._draw = Draw(self._world.scenery, self._world.s3.endpoint, put_url)
            step = self._options.first_step
            while not self._is_done():
                self._run_step(step)
                step += 1
                self.report.steps += 1
            self._guarded(step, self._end)
        self.report.seconds = time.monotonic() - self._began
        self.report.counts = self._judge.counts
        return self.report

    def _is_done(self) -> bool:
        options, report = self._options, self.report
        if time.monotonic() - self._began > options.minutes * 60 or len(report.violations) > 9:
            return True
        return report.jobs >= options.jobs and report.struck >= options.faults

    # A step --------------------------------------------------------------------------------------

    def plan(self, step: int) -> Plan:
        """What the seed draws for a step; in each round every kind of fault has its turn."""
        options = self._options
        kinds = [one for one in catalogue() if one.fits(self._world, short=options.short)]
        kinds = [one for one in kinds if options.only in one.name]
        deck = [one for one in kinds for _ in range(max(1, round(one.weight)))]
        random.Random(f"{options.seed} round {step // len(deck)}").shuffle(deck)
        rng = random.Random(f"{options.seed} step {step}")
        drawn = [deck[step % len(deck)]]
        if rng.random() < 0.35:
            drawn.append(rng.choice(kinds))
        jobs = [(rng.uniform(0, 1.5), self._draw.job(rng)) for _ in range(rng.randint(2, 6))]
        faults = [
            (-1.0 if one.early else rng.uniform(0, 1.2), rng.uniform(*one.hold), one)
            for one in drawn
        ]
        return Plan(jobs, faults, rng)

    def _run_step(self, step: int) -> None:
        began = time.monotonic()
        self._story = []
        plan = self.plan(step)
        names = ", ".join(fault.name for _, _, fault in plan.faults)
        self._guarded(step, lambda: self._try_step(plan))
        self._say(f"step {step}: {len(plan.jobs)} jobs, {names}: {time.monotonic() - began:.1f} s")

    def _guarded(self, step: int, work: Callable[[], None]) -> None:
        """A violation is kept with all that is known, and the next step gets a new worker."""
        try:
            work()
        except (Violation, TimeoutError, AssertionError) as problem:
            self._keep(step, problem)
            self._world.hosts.no_faults()
            self._world.plane.no_faults()
            for worker in list(self._world.workers):
                worker.signal_all(signal.SIGCONT)
                worker.signal_all(signal.SIGKILL)
                worker.process.wait()
                self._world.plane.lose(worker.name)
                self._world.forget(worker)

    def _keep(self, step: int, problem: BaseException) -> None:
        options = self._options
        logs = "\n".join(f"--- {it.name}\n{it.log()[-LOG_TAIL:]}" for it in self._world.workers)
        again = f"make campaign SEED={options.seed} STEP={step} ENGINE={options.engine}"
        story = "\n".join(self._story)
        text = f"seed {options.seed}, step {step} ({again}): {problem}\n{story}\n{logs}"
        self.report.violations.append(text)
        self._say(f"VIOLATION {text}")

    def _try_step(self, plan: Plan) -> None:
        self._world.forget_seen()
        self._ready(plan.rng)
        if any(fault.fetches for _, _, fault in plan.faults) or plan.rng.random() < FETCHING:
            self._world.forget_models()
            self._world.hosts.throttle(plan.rng.choice([1e6, 1e7, None]), ttfb=0.02)
        sent: list[Sent] = []
        struck = self._play(plan, sent)
        self._await_ends(sent, struck)
        for one in sent:
            self._judge.job(one, struck)
        self._settle(struck)

    def _play(self, plan: Plan, sent: list[Sent]) -> list[Struck]:
        """Send the jobs, and make and heal the faults, each at its time."""
        struck: list[Struck] = []
        heals: list[tuple[float, Struck, Heal]] = []
        todo = [(at, "job", job, 0.0) for at, job in plan.jobs]
        todo += [(at, "fault", fault, hold) for at, hold, fault in plan.faults]
        todo.sort(key=lambda one: one[0])
        began = time.monotonic()
        try:
            while todo or heals:
                now = time.monotonic() - began
                if todo and todo[0][0] <= now:
                    _, _, what, hold = todo.pop(0)
                    if isinstance(what, Job):
                        sent.append(self._send(what))
                    else:
                        heals += self._strike(what, plan.rng, struck, hold - began)
                for one in [one for one in heals if one[0] <= now]:
                    self._heal(*one[1:])
                    heals.remove(one)
                self._note_ends(sent)
                time.sleep(TICK)
        finally:
            for one in heals:
                self._heal(*one[1:])
        return struck

    def _send(self, job: Job) -> Sent:
        job_id = self._world.plane.submit(job.input, **job.request)
        self._tell(f"job {job_id} sent: {job.kind} {brief(job.input)}")
        self.report.jobs += 1
        return Sent(job_id, job, time.monotonic())

    def _strike(
        self, fault: Fault, rng: random.Random, struck: list[Struck], hold: float
    ) -> list[tuple[float, Struck, Heal]]:
        self._tell(f"fault made: {fault.name}")
        one = Struck(fault, time.monotonic())
        struck.append(one)
        heal = fault.inject(self._world, rng)
        self.report.faults[fault.name] += 1
        return [(time.monotonic() + hold, one, heal)] if heal else []

    def _heal(self, struck: Struck, heal: Heal) -> None:
        heal()
        struck.healed = time.monotonic()
        self._tell(f"fault healed: {struck.fault.name}")

    def _note_ends(self, sent: list[Sent]) -> None:
        for one in sent:
            if not one.ended and self._world.plane.status(one.id)["status"] in ENDED:
                one.ended = time.monotonic()
                status = self._world.plane.status(one.id)
                self._tell(f"job {one.id} ended: {status['status']} {status.get('error', '')}")
        asked = {
            one["id"]
            for kind in ("cancelled", "timed_out")
            for one in self._world.plane.events(kind)
        }
        for one in sent:
            one.is_ended_by_us = one.is_ended_by_us or one.id in asked

    def _tell(self, line: str) -> None:
        self._story.append(f"{time.monotonic() - self._began:9.2f} s {line}")

    # Workers -------------------------------------------------------------------------------------

    def _ready(self, rng: random.Random) -> None:
        """A step begins with a worker that takes jobs."""
        world = self._world
        if world.lead is None or world.lead.has_ended or world.lead.is_stopping:
            worker = self._start(rng)
            world.wait_until_taking(worker)
            if worker.has_ended:
                raise Violation(f"a new worker ended at once:\n{worker.log()[-LOG_TAIL:]}")

    def _start(self, rng: random.Random) -> Worker:
        self._started += 1
        concurrency = rng.choice(["1", "2"])
        worker = self._world.start(
            quick=self._started % 3 != 0, leads=True, JOB_CONCURRENCY=concurrency
        )
        self._tell(f"{worker.name} started, JOB_CONCURRENCY={concurrency}")
        return worker

    def _await_ends(self, sent: list[Sent], struck: list[Struck]) -> None:
        """Wait for the end of all jobs; a worker that has ended gets a successor."""
        waited = Patience(PATIENCE)
        while True:
            self._note_ends(sent)
            if all(one.ended for one in sent):
                break
            self._bury(struck)
            lead = self._world.lead
            if lead is None:
                self._start(random.Random(self._started))
            if waited.is_over():
                waiting = [
                    f"{one.id}: {self._world.plane.status(one.id)}" for one in sent if not one.ended
                ]
                raise Violation(f"jobs have no end: {waiting}")
            time.sleep(TICK)
        if self._world.lead:
            self._world.lead.jobs_done += len(sent)

    def _bury(self, struck: list[Struck]) -> None:
        """Check and forget the workers that have ended; their running jobs go to the next one."""
        world = self._world
        for worker in [one for one in world.workers if one.has_ended]:
            status = worker.process.returncode
            self._tell(f"{worker.name} ended with status {status}")
            self.report.ends[str(status)] += 1
            self._judge.ended_worker(worker, struck)
            lost = world.plane.lose(worker.name)
            if lost and not any(one.fault.loses for one in struck):
                raise Violation(f"{worker.name} ended with status {status} and left jobs: {lost}")
            world.forget(worker)

    def _settle(self, struck: list[Struck]) -> None:
        """After a step a plain job is right, and nothing is left of the others."""
        world = self._world
        self._tell("the step's jobs have ended; now a plain one")
        world.forget_seen()
        for _ in range(SETTLED_TRIES):
            sent = [self._send(self._draw.plain())]
            self._await_ends(sent, struck)
            self._judge.job(sent[0], struck)
            if world.plane.status(sent[0].id)["status"] == "COMPLETED":
                break
        else:
            raise Violation(f"after the faults, {SETTLED_TRIES} plain jobs have failed")
        others = [one for one in world.workers if one is not world.lead]
        world.wait_until(lambda: all(one.has_ended for one in others), "the end of other workers")
        self._bury(struck)
        if world.lead and not world.lead.is_stopping:
            self._judge.idle(world.lead)
        if any(one.fault.fetches for one in struck):
            world.forget_models()  # a host's refusal, such as 404, is stored for a minute
        world.plane.forget()
        world.hosts.no_throttle()
        world.hosts.forget_requests()

    def _end(self) -> None:
        """At last the worker ends in order, and leaves nothing behind."""
        world = self._world
        self._story = []
        for worker in world.workers:
            worker.is_stopping = True
            worker.signal(signal.SIGTERM)
        world.wait_until(lambda: all(one.has_ended for one in world.workers), "the end")
        self._bury([])
        with suppress(FileNotFoundError):
            leases = [path.name for path in (world.fetched / "leases").iterdir()]
            if leases:
                raise Violation(f"leases are left: {leases}")
        world.wait_until(lambda: not world.open_connections(), "the end of all connections", 60)


def remove(folder: Path) -> None:
    """Remove what a campaign has written."""
    shutil.rmtree(folder, ignore_errors=True)
