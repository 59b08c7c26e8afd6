import http.server
import socket
import threading
from contextlib import contextmanager, suppress

import pytest
from fakes.a1111.process import SMALL, free_port, running_a1111, write_safetensors
from fakes.recorded import recorded

from worker import errors
from worker.webui import connection
from worker.webui.client import WebUI, error_from_answer

ANSWERS = [
    (recorded("err_missing_route"), errors.RouteMissing, ""),
    (recorded("err_bad_sampler"), errors.EngineRefused, "Sampler not found"),
    (recorded("err_bad_type"), errors.EngineRefused, "value is not a valid integer"),
    (recorded("err_no_checkpoint_loaded"), errors.NoCheckpoint, "No checkpoints found"),
    (recorded("err_options_unknown_checkpoint"), errors.EngineFault, "'nope.safetensors' not f"),
]
EXCEPTIONS = [
    (errors.OutOfMemory, "CUDA out of memory. Tried to"),
    (errors.OutOfMemory, "CUDA error: out of memory"),
    (errors.EnginePoisoned, "CUDA error: an illegal memory access"),
    (errors.EnginePoisoned, "Expected all tensors to be on the same device"),
    (errors.EnginePoisoned, "Found no NVIDIA driver on your system"),
    (errors.EnginePoisoned, "'NoneType' object has no attribute 'lowvram'"),
    (errors.EnginePoisoned, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    (errors.CacheDamaged, "unable to open database file"),
    (errors.CacheDamaged, "file is not a database"),
    (errors.EngineFault, "A tensor with all NaNs was produced."),
]


def exception(text):
    """A 500 as A1111 reports an exception."""
    return {"status": 500, "response": {"error": "E", "detail": "", "errors": text}}


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [*ANSWERS, *((exception(text), kind, text) for kind, text in EXCEPTIONS)],
)
def test_each_error_of_a1111_has_its_kind(answer, kind, message):
    error = error_from_answer("txt2img", answer["status"], answer["response"], "")
    assert type(error) is kind
    assert message in error.message
    assert "/x/webui" not in error.message  # the engine's folders are not for callers


def test_the_engines_text_is_one_short_line_and_a_sentence_before_the_hint():
    sentences = {"no such sampler": "no such sampler. ", "Really?": "Really? ", "a. b.": "a. b. "}
    for text, sentence in sentences.items():
        answer = {"error": "HTTPException", "detail": text}
        assert sentence in str(error_from_answer("txt2img", 404, answer, ""))
    error = error_from_answer("txt2img", 500, None, "<html>\n" + "x " * 5000)
    assert len(error.message) < 500
    assert "\n" not in error.message


def test_the_engine_is_used_through_its_api(tmp_path):
    write_safetensors(tmp_path / "models/Stable-diffusion/tiny.safetensors")
    write_safetensors(tmp_path / "models/Lora/x.safetensors")
    with running_a1111(tmp_path) as engine:
        webui = WebUI(engine.url)
        answer = webui.draw("txt2img", SMALL, timeout=60)
        assert (len(answer.images), answer.facts["sd_model_name"]) == (1, "tiny")
        assert answer.parameters["prompt"] == SMALL["prompt"]
        brings = {"init_images": answer.images, "include_init_images": True}
        again = webui.draw("img2img", SMALL | brings, timeout=60)
        assert not {"init_images", "mask"} & again.parameters.keys()
        assert webui.is_idle()
        assert [model["model_name"] for model in webui.sd_models()] == ["tiny"]
        assert [lora["name"] for lora in webui.loras()] == ["x"]
        assert webui.embeddings() == {"loaded": {}, "skipped": {}}
        assert "samples_format" in webui.options()
        assert "ram" in webui.memory()
        assert webui.catalog().sampler("DPM++ 2M Karras", None) == ("DPM++ 2M", "Karras")
        webui.set_options({"CLIP_stop_at_last_layers": 1})
        webui.refresh()
        webui.interrupt()


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with the server's next answer and notes the request."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.headers["Accept-Encoding"]))
        status, body, self.close_connection = self.server.answers.pop(0)
        if status:
            self.send_response(status)
            claimed = {CUT_OFF[1]: len(body) + 9, ENDLESS[1]: 10**30}.get(body, len(body))
            self.send_header("Content-Length", str(claimed))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

    def log_message(self, *_):
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.closed.set()


@contextmanager
def scripted(*answers):
    with Server(("127.0.0.1", 0), Scripted) as server:
        server.answers, server.requests, server.closed = list(answers), [], threading.Event()
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server, WebUI(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


CUT_OFF = (200, b'{"images": ["iVBO', True)
ENDLESS = (200, b'{"images": ["iVB', True)
OK, BUSY, SILENT = (200, b"[]", False), (503, b"", False), (0, b"", True)


def test_a_get_is_repeated_and_not_compressed():
    with scripted(BUSY, BUSY, OK, SILENT, SILENT, OK) as (server, webui):
        assert webui.sd_models() == webui.sd_models() == []
    assert server.requests == [("GET", "identity")] * 6


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (BUSY, errors.EngineFault),
        (SILENT, errors.ConnectionLost),
        (CUT_OFF, errors.ConnectionLost),
        (ENDLESS, errors.ConnectionLost),
        ((404, b'{"detail": "Not Found"}', False), errors.RouteMissing),
        ((500, b'{"error": "OperationalError"}', False), errors.CacheDamaged),
        ((200, b"<html>", False), errors.EngineFault),
        ((200, b'{"parameters": {}}', False), errors.IncompleteAnswer),
    ],
)
def test_a_post_is_never_repeated_and_has_its_error(answer, kind):
    with scripted(answer, OK) as (server, webui), pytest.raises(kind):
        webui.draw("txt2img", {}, timeout=60)
    assert len(server.requests) == 1


def test_a_connection_that_the_engine_closed_while_idle_is_not_used_again():
    """A1111 closes a connection after 30 s without a request."""
    with scripted((200, b"[]", True), (200, b"{}", False)) as (server, webui):
        webui.sd_models()
        server.closed.wait(60)
        webui.interrupt()
    assert [method for method, _ in server.requests] == ["GET", "POST"]


@pytest.mark.parametrize("where", ["between two answers", "in the header", "in the body"])
def test_an_answer_that_comes_in_single_bytes_is_given_up_in_time(monkeypatch, where):
    """Each read gets something, so a limit for one read would never be reached."""
    monkeypatch.setattr(connection, "LEAST", 0.5)
    is_over = threading.Event()
    begin = {
        "between two answers": b"HTTP/1.1 100 Continue\r\n\r\n",
        "in the header": b"HTTP/1.1 200 OK\r\nX: ",
        "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    }[where]

    def answer(server):
        accepted, _ = server.accept()
        with accepted, suppress(OSError):
            accepted.sendall(begin)
            while not is_over.wait(0.02):
                accepted.sendall(begin if where == "between two answers" else b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=[server])
        thread.start()
        webui = WebUI(f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(errors.ConnectionLost):
            webui.post("refresh-checkpoints", None, 0.5)
        is_over.set()
        thread.join()


def test_without_an_engine_the_connection_is_lost_and_the_password_not_shown():
    with pytest.raises(errors.ConnectionLost) as raised:
        WebUI(f"http://user:hunter2@127.0.0.1:{free_port()}").sd_models()
    assert "127.0.0.1" in raised.value.message
    assert "hunter2" not in raised.value.message
