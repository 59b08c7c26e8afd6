"""The limits of the place where the worker serves HTTP."""

import pytest

from gateway.local.place import for_http, place_of
from worker.config.settings import Settings

ON_RUNPOD = {"RUNPOD_POD_ID": "pod0", "RUNPOD_ENDPOINT_ID": "ep0"}


@pytest.mark.parametrize(
    ("environ", "result_limit", "job_timeout"),
    [
        ({}, 0, 540),
        ({"RESULT_LIMIT_MB": "5"}, 5, 540),
        ({"RUNPOD_ENDPOINT_ID": "ep0"}, 0, 540),
        (ON_RUNPOD, 29, 315),
        (ON_RUNPOD | {"RESULT_LIMIT_MB": "0", "JOB_TIMEOUT": "900"}, 29, 315),
        (ON_RUNPOD | {"RESULT_LIMIT_MB": "5", "JOB_TIMEOUT": "100"}, 5, 100),
    ],
)
def test_runpods_limits_hold_only_behind_its_load_balancer(environ, result_limit, job_timeout):
    settings = for_http(Settings.from_environ(environ))
    assert (settings.result_limit_mb, settings.job_timeout) == (result_limit, job_timeout)
    longest = place_of(settings, "0.0.0.0", 80).longest_request
    assert longest is None or job_timeout < longest < 330
    assert (longest is None) == (not settings.is_load_balanced)


@pytest.mark.parametrize("grace", ["1", "5", "20", "60", "600"])
def test_the_handlers_part_of_the_grace_is_enough_for_all_that_it_does(grace):
    settings = Settings.from_environ({"SHUTDOWN_GRACE": grace})
    place = place_of(settings, "0.0.0.0", 80)
    of_handler = float(grace) - min(float(grace) / 2, 5)  # start.sh keeps the rest for the engine
    assert 0 < place.grace < place.grace + place.patience < of_handler


def test_a_health_port_that_is_the_same_port_is_none():
    settings = Settings.from_environ({"PORT_HEALTH": "80"})
    assert place_of(settings, "0.0.0.0", 80).health_port is None
    assert place_of(settings, "0.0.0.0", 8080).health_port == 80
