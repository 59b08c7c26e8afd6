"""What most tests share: the recorded catalog and a clean environment."""

import logging
import os
import signal
from pathlib import Path

import hypothesis
import pytest
from fakes.a1111.process import free_port
from fakes.recorded import recorded
from fakes.supervised import LASTING_ENGINE, LASTING_HANDLER, REAL, Worker

from worker.config.credentials import SECRET_NAME
from worker.config.settings import Settings
from worker.webui.catalog import Catalog

# On a loaded machine an example may take long; that is no fault of what is tested.
hypothesis.settings.register_profile(
    "loaded", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loaded")

# A shell starts what runs behind it with Ctrl-C ignored, and nohup ignores SIGHUP: every process
# started here would inherit that, and some are to be stopped by them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """No test depends on what the developer's shell or CI happens to export."""
    for name in list(os.environ):
        is_setting = name.lower() in Settings.model_fields
        if is_setting or name.startswith("RUNPOD_") or SECRET_NAME.search(name):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """What runs a front door in this process configures the log for good, into its own stderr."""
    logger = logging.getLogger("worker")
    before = (logger.level, logger.propagate, logger.handlers[:])
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The names that A1111 v1.9.3 knows."""
    return Catalog.from_answers(
        samplers=recorded("get_samplers"),
        schedulers=recorded("get_schedulers"),
        upscalers=recorded("get_upscalers"),
        latent_modes=recorded("get_latent-upscale-modes"),
        scripts=recorded("get_scripts"),
        styles=recorded("get_prompt-styles"),
    )


@pytest.fixture
def new_worker(tmp_path):
    """Make workers; nothing of them outlives the test."""
    workers = []

    def make(engine=LASTING_ENGINE, handler=LASTING_HANDLER, **environ):
        folder = tmp_path / str(len(workers))
        folder.mkdir()
        workers.append(Worker(folder, free_port(), engine, handler, **environ))
        if handler != REAL:
            workers[-1].replace_model_manager("")  # the real one takes its time
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def running(new_worker):
    """Start workers and wait for both of their programs."""

    def run(*programs, **environ):
        worker = new_worker(*programs, **environ)
        worker.start()
        worker.await_both()
        return worker

    return run
