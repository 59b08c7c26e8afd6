"""The Python client sd-backend-client, as it is published: it checks the form of each answer."""

import pytest
from fakes.a1111.process import wait_until
from PIL import Image

client = pytest.importorskip("sd_backend_client", reason="it needs Python 3.11")

RED = Image.new("RGB", (64, 64), "red")


@pytest.fixture
def backend(url):
    return client.A1111Webservice(url)


def parameters(**more):
    small = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 1}
    return client.DiffusionParams(**small | more)


LISTS = {
    "list_checkpoints": {"Red foxes", "first.safetensors", "second.safetensors"},
    "list_loras": {"detail"},
    "list_vaes": set(),
    "list_hypernetworks": set(),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_models(backend, name):
    assert {one.name for one in getattr(backend, name)()} == LISTS[name]


def test_names_of_the_engine(backend):
    assert len(backend.list_samplers()) == 19
    assert len(backend.list_schedulers()) == 6
    assert "Lanczos" in {one.name for one in backend.list_upscalers()}
    assert "Latent" in backend.get_latent_upscale_modes()
    assert "x/y/z plot" in backend.get_scripts().txt2img
    assert {one.name for one in backend.get_script_info()} >= {"x/y/z plot"}
    assert backend.get_styles() == []
    capabilities = backend.get_capabilities()
    assert capabilities.interrogate
    assert capabilities.scheduler
    for refresh in (backend.refresh_checkpoints, backend.refresh_vae, backend.refresh_loras):
        assert refresh().json() is None


def test_it_takes_the_server_for_a1111_and_draws(backend, url):
    assert isinstance(client.connect_to_backend(url), client.A1111Webservice)
    assert backend.txt2img(parameters())["images"][0].size == (64, 64)
    assert backend.img2img(RED, request_body=parameters())["images"][0].size == (64, 64)
    assert backend.upscale(RED, 128, 128)["images"][0].size == (128, 128)


def test_a_refusal_is_an_error_with_the_sentence(backend):
    with pytest.raises(client.ServerError, match="sampler"):
        backend.txt2img(parameters(sampler="nope"))


def test_a_job_is_cancelled(backend, worker):
    worker.worker.fault("slow_steps", seconds=0.5)
    try:
        handle = backend.submit_txt2img(parameters(steps=150))
        worker.worker.wait_until_generating()
        handle.cancel()
        wait_until(worker.worker.engine_is_idle, "an idle engine")
        with pytest.raises(client.SDBackendError):
            handle.wait()
    finally:
        worker.worker.no_faults()
