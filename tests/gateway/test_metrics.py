"""`/metrics`: what a scrape waits for, and Prometheus' own rules for names."""

import asyncio
import re
import shutil
import subprocess
import threading

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from docs import metric_tables
from gateway.local.metrics import Metrics, of_engine
from worker.service.counters import BOUNDS, Counters, Ended


def metrics_with(measure, counters=None, **how):
    counters = counters or Counters()
    return Metrics(counters, lambda: metric_tables.worker(counters), measure, **how)


def scraped(metrics):
    """Sample with its labels -> value."""
    text = TestClient(Starlette(routes=[metrics.route()])).get("/metrics").text
    families = text_string_to_metric_families(text)
    return {(s.name, *s.labels.values()): s.value for one in families for s in one.samples}


def test_a_scrape_does_not_wait_for_an_engine_that_hangs_and_asks_it_only_once():
    hangs, asked = threading.Event(), []

    def measure():
        asked.append(1)
        assert hangs.wait(60)
        return metric_tables.measured()

    async def story():
        metrics = metrics_with(measure, patience=0.01, fresh=0)
        for _ in range(20):
            await metrics.refresh()
        while_it_hangs = {metric.name for metric in metrics.collect()}
        hangs.set()
        while "a1111_worker_engine_ready" not in {metric.name for metric in metrics.collect()}:
            await metrics.refresh()
        return while_it_hangs

    names = asyncio.run(story())
    assert "a1111_worker_jobs" in names
    assert "a1111_worker_engine_ready" not in names
    assert len(asked) < 20


@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError])
def test_a_measurement_that_fails_leaves_the_numbers_of_the_last_one(error, caplog):
    now, answers = 0.0, iter([metric_tables.measured()])

    def measure():
        try:
            return next(answers)
        except StopIteration:
            raise error("no") from None

    metrics = metrics_with(measure, clock=lambda: now)
    for now in (0.0, 4.9, 100.0, 200.0):
        found = scraped(metrics)
        assert found["a1111_worker_store_free_bytes",] == 50
        assert found["a1111_worker_measurement_age_seconds",] == now
    assert caplog.text.count("the engine and the store could not be measured") == 1


@pytest.mark.parametrize("memory", [None, {}, {"cuda": 1, "ram": []}, {"ram": {"used": "x"}}])
def test_an_engine_without_numbers_of_its_memory_has_no_metric_of_it(memory):
    engine, _ = metric_tables.measured()
    found = of_engine(
        engine.model_copy(update={"memory": memory}), metric_tables.worker(Counters())
    )
    assert not [metric.name for metric in found if metric.name.endswith("_bytes")]


def test_a_histogram_is_prometheus_own():
    counters = Counters()
    for seconds in (0.02, 7.0, 1000.0):
        counters.phases["generate"].observe(seconds)
    found = scraped(metrics_with(metric_tables.measured, counters))
    name = "a1111_worker_phase_seconds"
    buckets = [found[f"{name}_bucket", str(bound), "generate"] for bound in (*BOUNDS, "+Inf")]
    assert buckets == [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3]
    assert found[f"{name}_count", "generate"] == 3
    assert found[f"{name}_sum", "generate"] == 1007.02


class All:
    """A registry of the documented metrics."""

    collect = staticmethod(metric_tables.metrics)


def test_names_follow_prometheus_rules():
    text = generate_latest(All()).decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) > 25
    for one in families:
        assert re.fullmatch(r"a1111_worker_[a-z0-9_]+", one.name)
        assert one.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|kb|mb|gb|minutes|percent|total)$", one.name)
    if promtool := shutil.which("promtool"):
        command = [promtool, "check", "metrics"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_labels_have_few_values():
    """Tasks, outcomes, codes, phases, kinds and states are the worker's own words."""
    labels = {
        label
        for metric in metric_tables.metrics()
        for one in metric.samples
        for label in one.labels
    }
    assert labels == {
        *("task", "outcome", "code", "phase", "part", "state", "kind", "le"),
        *("version", "revision", "device", "gpu", "driver", "data_center"),
    }
    assert Ended._fields == ("task", "outcome", "code")
