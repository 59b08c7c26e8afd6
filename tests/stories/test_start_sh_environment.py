"""What start.sh makes of its environment for its two programs: variables."""

from worker.config.settings import Settings

# Those that start.sh itself sets.
SET_BY_START_SH = {
    *("supervisor_pid", "read_only_models_dir"),
    *("engine_device", "engine_gpu", "engine_driver", "engine_attention"),
}
OF_OPERATOR = {
    "RUNPOD_POD_ID": "pod1",
    "RUNPOD_ENDPOINT_ID": "end1",
    "RUNPOD_DC_ID": "EU-1",
    "RUNPOD_VOLUME_ID": "vol1",
    "RUNPOD_GPU_COUNT": "1",
    "RUNPOD_INIT_TIMEOUT": "300",
    "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/take",
    "REVISION": "c0ffee",
    "PORT": "7860",
    "PORT_HEALTH": "7861",
    "GATEWAY_HOSTS": "gpu.example, other.example",
    "GATEWAY_ORIGINS": "http://localhost:5173",
    "GATEWAY_LOGIN": "me:swordfish",
    "GATEWAY_TOKEN": "swordfish",
    "HUB_CACHE_DIR": "/nowhere/hub",
    "MODELS_BUDGET_GB": "12.5",
    "ALLOW_PICKLES": "yes",
    "DEVICE": "CPU",
    "WEBUI_ARGS": "--ckpt-dir '/a b' --api-auth \"me:it's $HOME\"",
    "A1111_SPEEDUPS": "off",
    "CIVITAI_API_KEY": "key1",
    "HF_TOKEN": "key2",
    "CIVITAI_URL": "https://civitai.example/",
    "HF_ENDPOINT": "https://hub.example",
    "TRUSTED_HOSTS": "Mirror.example:8080, other.example",
    "TEMPLATES_FILE": "my templates.json",
    "DEFAULT_TEMPLATE": "none",
    "READY_TIMEOUT": "1e2",
    "JOB_TIMEOUT": "77",
    "JOB_CONCURRENCY": "2",
    "SHUTDOWN_GRACE": "2.5",
    "MAX_ENGINE_RESTARTS": "5",
    "ENGINE_RESTART_WINDOW": "60.25",
    "CHECKPOINTS_IN_MEMORY": "2",
    "MEMORY_GROWTH_LIMIT_GB": "1.5",
    "OUTPUT_DIR": "out put",
    "RESULT_LIMIT_MB": "4",
    "BUCKET_ENDPOINT_URL": "https://s3.example/bucket",
    "BUCKET_NAME": "bucket",
    "BUCKET_ACCESS_KEY_ID": "key3",
    "BUCKET_SECRET_ACCESS_KEY": "key4",
    "BUCKET_REGION": "mars-1",
    "BUCKET_PUBLIC_URL": "https://cdn.example/pics",
    "LOG_LEVEL": "'warn'",
    "LOG_FORMAT": "JSON",
}
# Variables that are no settings, but that the worker, its libraries or the engine read.
OTHERS = {
    "COMMANDLINE_ARGS": "--medvram",
    "CUDA_VISIBLE_DEVICES": "0",
    "https_proxy": "http://proxy.example",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "2",
    "USER": "me",
    "HOME": "/home/me",
}


def settings(environ):
    return Settings.from_environ(environ).model_dump(exclude=SET_BY_START_SH)


def test_both_programs_get_every_variable_as_the_operator_meant_it(new_worker):
    """The shell assigns some of them again: it must leave their meaning, and export them."""
    worker = new_worker(**OF_OPERATOR, **OTHERS)
    given = worker.environ
    fields = {name.lower() for name in given} & Settings.model_fields.keys()
    assert fields | SET_BY_START_SH == Settings.model_fields.keys(), "set a value for each"
    worker.start()
    engine, handler = (worker.await_event(f"{it} started") for it in ("engine", "handler"))

    assert given.keys() <= handler["environ"].keys()
    for program in (engine, handler):
        got = {name: value for name, value in program["environ"].items() if name in given}
        assert settings(given | got) == settings(given)
        assert {name: got[name] for name in OTHERS.keys() & got.keys()}.items() <= given.items()
    assert OTHERS.keys() - engine["environ"].keys() == {"COMMANDLINE_ARGS"}
    # A1111 adds the flags of COMMANDLINE_ARGS by itself.
    assert not {"COMMANDLINE_ARGS", "WEBUI_ARGS"} & engine["environ"].keys()
    flags = ["--ckpt-dir", "/a b", "--api-auth", "me:it's $HOME", "--medvram"]
    assert [word for word in engine["arguments"] if word in flags] == flags
