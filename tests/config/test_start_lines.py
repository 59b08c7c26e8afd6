"""The first lines of the log, and the time for the start, which follows RunPod's."""

import pytest

from worker import VERSION
from worker.config.preflight import introduction, warnings
from worker.config.settings import PROJECT, Settings

SERVERLESS = {"RUNPOD_POD_ID": "pod1", "RUNPOD_ENDPOINT_ID": "ep0"}


@pytest.mark.parametrize(
    ("given", "ready", "warned"),
    [
        *((None, 390, ""), ("", 390, ""), ("420", 390, ""), ("800", 770, ""), ("'800'", 770, "")),
        *(("450.5", 420.5, ""), ("999999999", 86_400, ""), ("90", 60, "")),
        ("20", 60, "READY_TIMEOUT is 60 s, and RunPod ends a worker that is not ready after 20 s"),
        *(
            (wrong, 390, "is no number of seconds above 0")
            for wrong in (
                *("600s", "0", "0.0", "-5", "1e3", "nan", "inf", "soon", "7 min", "9" * 5000),
                *("\u0663\u0664\u0665", "4\n20", "600,5", "None", "12.", "0x10"),
            )
        ),
    ],
)
def test_the_time_for_the_start_follows_runpods_and_no_value_of_it_ends_the_worker(
    given, ready, warned
):
    environ = {} if given is None else {"RUNPOD_INIT_TIMEOUT": given}
    settings = Settings.from_environ(environ | SERVERLESS)
    assert settings.ready_timeout == ready
    found = list(warnings(settings))
    assert len(found) == bool(warned)
    assert all(warned in one and len(one) < 500 and one.isprintable() for one in found)


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        *(({}, ""), ({"RUNPOD_INIT_TIMEOUT": "630"}, ""), (SERVERLESS, "=630")),
        ({"RUNPOD_INIT_TIMEOUT": "629"}, "set RUNPOD_INIT_TIMEOUT=630 on the endpoint"),
        ({"RUNPOD_ENDPOINT_ID": "ep0"}, ""),  # of a caller of an endpoint
    ],
)
def test_a_longer_time_of_the_operator_is_kept_with_a_warning_where_runpod_is_shorter(
    environ, remedy
):
    settings = Settings.from_environ(environ | {"READY_TIMEOUT": "600"})
    assert settings.ready_timeout == 600
    found = list(warnings(settings))
    assert (len(found), remedy in "".join(found)) == (bool(remedy), True)


def test_the_first_line_names_the_worker_its_place_its_engine_and_its_gpu():
    gpu = {"ENGINE_GPU": "NVIDIA L4", "ENGINE_DRIVER": "570.86.16", "REVISION": "abc"}
    runpod = {"RUNPOD_DC_ID": "EU-RO-1", "RUNPOD_VOLUME_ID": "vol1", "MODELS_DIR": "/m"}
    assert introduction(Settings.from_environ(SERVERLESS | gpu | runpod)) == (
        f"worker {VERSION} (abc) on pod pod1 of endpoint ep0 in EU-RO-1 with volume vol1;"
        " engine embedded; models in /m; GPU NVIDIA L4, driver 570.86.16; ready within 390 s"
    )
    assert introduction(Settings.from_environ({"MODELS_DIR": "/m"})) == (
        f"worker {VERSION}; engine embedded; models in /m; ready within 390 s"
    )


def test_values_of_the_environment_are_shown_short_and_on_one_line():
    names = ("POD_ID", "ENDPOINT_ID", "DC_ID", "VOLUME_ID")
    values = {f"RUNPOD_{name}": f"a\n\u202e{'b' * 9999}" for name in names}
    of_gpu = {"ENGINE_GPU": "\x1b[2J" * 9999, "ENGINE_DRIVER": "\r5", "REVISION": "\n"}
    settings = Settings.from_environ(values | of_gpu)
    line = introduction(settings)
    assert line.isprintable()
    assert len(line) < 1500
    assert settings.place["pod"].startswith("a\\n\\u202eb")


def test_the_version_is_that_of_the_project():
    assert f'version = "{VERSION}"' in (PROJECT / "pyproject.toml").read_text()
