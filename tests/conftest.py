"""What most tests share: the recorded catalog and a clean environment."""

import logging
import os
import signal
from pathlib import Path

import hypothesis
import pytest
from fakes.a1111.process import free_port
from fakes.recorded import recorded
from fakes.supervised import Worker

from worker.config.credentials import SECRET_NAME
from worker.config.settings import Settings
from worker.generation.catalog import Catalog
from worker.log import LOGGERS

# On a busy machine an example may take long, which is not a fault of the tested code.
hypothesis.settings.register_profile(
    "loaded", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loaded")

# A shell starts background programs with SIGINT ignored, and nohup ignores SIGHUP. The processes
# that tests start would inherit this, and some tests stop them by these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

PROJECT = Path(__file__).resolve().parents[1]


# Whole workers, and the tests that compute: their files take long, so they start first.
LONGEST = (
    *("test_job.py", "test_docs_commands.py", "test_entry_points.py", "test_contract.py"),
    *("test_page.py", "test_drawing.py"),
)


def pytest_configure(config):
    """Let xdist keep our order; it would start the files with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Put the files that take longest first, so that no core waits for one of them at the end."""

    def rank(item):
        first = item.path.name in LONGEST
        return 0 if first else 1 if item.path.parent.name == "stories" else 2

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """Remove our settings and all secrets that the developer's shell or CI exports."""
    for name in list(os.environ):
        is_setting = name.lower() in Settings.model_fields
        if is_setting or name.startswith("RUNPOD_") or SECRET_NAME.search(name):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Restore the log, which a front door that runs in this process configures for good."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The names that A1111 v1.9.3 knows."""
    return Catalog.from_answers(
        samplers=recorded("get_samplers"),
        schedulers=recorded("get_schedulers"),
        upscalers=recorded("get_upscalers"),
        latent_modes=recorded("get_latent-upscale-modes"),
        scripts=recorded("get_scripts"),
        script_info=recorded("get_script-info"),
        styles=recorded("get_prompt-styles"),
    )


@pytest.fixture
def folders(tmp_path):
    """The model folders of the engine, of the writable store and of the baked, read-only one."""
    return tmp_path / "webui" / "models", tmp_path / "store", tmp_path / "baked"


@pytest.fixture
def new_worker(tmp_path):
    """Make workers; all of their processes are killed after the test."""
    workers = []

    def make(*programs, **environ):
        folder = tmp_path / str(len(workers))
        folder.mkdir()
        workers.append(Worker(folder, free_port(), *programs, **environ))
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
