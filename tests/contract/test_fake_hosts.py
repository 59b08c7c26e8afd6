"""The fake model hosts answer as the recorded facts say, and each fault is seen on the wire."""

import hashlib
import json
import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import urllib3
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts

HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
DATA = struct.pack("<Q", len(HEADER)) + HEADER + random.Random(1).randbytes(200_000)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
CONTENT_RANGE = "Content-Range"


class Client:
    """urllib3 without its help: no retries, no redirects, no decoding."""

    def __init__(self, **pool):
        self.pool = urllib3.PoolManager(retries=False, timeout=30, maxsize=16, **pool)

    def ask(self, url, *, key=None, method="GET", part=None, **headers):
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if part:
            headers["Range"] = f"bytes={part}"
        return self.pool.request(method, url, headers=headers, redirect=False)


@pytest.fixture
def client():
    made = Client()
    yield made
    made.pool.clear()


@pytest.fixture
def model(hosts):
    return hosts.add_model(version_id=128713, model_id=4384, data=DATA, name="dream.safetensors")


@pytest.fixture
def signed(hosts, client, model):
    """Makes signed URLs of the model."""

    def make():
        answer = client.ask(model.file_url, key=hosts.civitai_key)
        assert answer.status == 307, answer.data
        return answer.headers["Location"]

    return make


def body_of(answer):
    return json.loads(answer.data)


def exchange(url, part=None, seconds=30.0):
    """All bytes of one connection, and whether it ended by "fin", "rst" or "silence"."""
    parts = urlsplit(url)
    asked = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n"
    asked += f"Range: bytes={part}\r\n\r\n" if part else "\r\n"
    got = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as sock:
        sock.sendall(asked.encode())
        try:
            while block := sock.recv(65536):
                got += block
        except ConnectionResetError:
            return got, "rst"
        except TimeoutError:
            return got, "silence"
    return got, "fin"


def body_in(raw):
    return raw.partition(b"\r\n\r\n")[2]


class TestCivitAI:
    def test_a_version_has_the_documented_fields(self, hosts, client):
        fields = {"pickleScanResult": "Danger"}
        model = hosts.add_model(
            version_id=9,
            model_id=8,
            data=DATA,
            version_fields={"usageControl": "Generation"},
            **fields,
        )
        shown = body_of(client.ask(model.api_url))
        assert (shown["id"], shown["modelId"]) == (9, 8)
        assert shown["downloadUrl"] == model.download_url
        assert shown["usageControl"] == "Generation"
        [file] = shown["files"]
        assert file["sizeKB"] * 1024 == SIZE
        assert file["hashes"] == {"SHA256": SHA256.upper(), "AutoV2": SHA256[:10].upper()}
        assert file["metadata"] == {"format": "SafeTensor", "size": "pruned", "fp": "fp16"}
        assert file["primary"] is True
        assert fields.items() <= file.items()

    def test_a_hash_in_any_case_finds_the_oldest_version(self, hosts, client):
        data = b"for its hash"
        model, _ = (hosts.add_model(version_id=id_, data=data) for id_ in (22, 21))
        for digest in (model.sha256, model.sha256.upper()):
            url = f"{hosts.civitai}/api/v1/model-versions/by-hash/{digest}"
            assert body_of(client.ask(url))["id"] == 21

    def test_a_model_lists_its_versions_with_the_default_first(self, hosts, client):
        for id_ in (32, 31):
            hosts.add_model(version_id=id_, model_id=30, data=b"data")
        shown = body_of(client.ask(f"{hosts.civitai}/api/v1/models/30"))
        assert [version["id"] for version in shown["modelVersions"]] == [32, 31]

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("model-versions/404", "Model not found"),
            ("model-versions/by-hash/abc", "Model not found"),
            ("models/404", "No model with id 404"),
        ],
    )
    def test_an_unknown_model_is_404(self, hosts, client, path, error):
        answer = client.ask(f"{hosts.civitai}/api/v1/{path}")
        assert (answer.status, body_of(answer)) == (404, {"error": error})

    def test_some_models_are_only_on_red(self, hosts, client):
        model = hosts.add_model(version_id=7, data=DATA, red_only=True)
        red = model.api_url.replace(hosts.civitai, hosts.civitai_red)
        assert client.ask(model.api_url).status == 404
        assert body_of(client.ask(red))["downloadUrl"].startswith(hosts.civitai_red)

    def test_a_key_leads_to_a_signed_url_and_the_bytes(self, hosts, client, model):
        answer = client.ask(model.file_url, key=hosts.civitai_key)
        location = answer.headers["Location"]
        assert (answer.status, answer.headers["Cache-Control"]) == (307, "no-store")
        assert location.startswith(hosts.storage)
        for name in ("X-Amz-Signature=", "X-Amz-Expires=86400", "response-content-disposition="):
            assert name in location
        file = client.ask(location)
        assert (file.status, file.data) == (200, DATA)
        assert file.headers["Content-Disposition"] == 'attachment; filename="dream.safetensors"'

    @pytest.mark.parametrize("key", [None, "expired"])
    def test_without_a_known_key_a_login_is_required(self, hosts, client, model, key):
        answer = client.ask(model.file_url, key=key)
        assert (answer.status, body_of(answer)["error"]) == (401, "Unauthorized")
        free = hosts.add_model(version_id=40, data=DATA, require_auth=False)
        assert client.ask(free.download_url, key=key).status == 307

    def test_only_get_is_allowed(self, hosts, client, model):
        assert client.ask(model.file_url, key=hosts.civitai_key, method="HEAD").status == 405

    def test_a_file_is_chosen_by_its_id(self, hosts, client):
        hosts.add_model(version_id=5, data=b"first")
        second = hosts.add_model(version_id=5, data=b"second")
        key = hosts.civitai_key
        for url, data in ((second.download_url, b"first"), (second.file_url, b"second")):
            assert client.ask(client.ask(url, key=key).headers["Location"]).data == data
        assert client.ask(f"{second.download_url}?fileId=99", key=key).status == 404


class TestStorage:
    @pytest.mark.parametrize(
        ("part", "start", "stop"),
        [
            ("0-0", 0, 1),
            ("5-9", 5, 10),
            ("100-", 100, SIZE),
            ("-5", SIZE - 5, SIZE),
            (f"10-{10**9}", 10, SIZE),
        ],
    )
    def test_ranges_are_exact(self, client, signed, part, start, stop):
        answer = client.ask(signed(), part=part)
        assert (answer.status, answer.data) == (206, DATA[start:stop])
        assert answer.headers[CONTENT_RANGE] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["Content-Length"] == str(stop - start)
        assert answer.headers["ETag"].startswith('"')

    def test_a_range_after_the_end_is_416(self, client, signed):
        answer = client.ask(signed(), part=f"{SIZE}-")
        assert (answer.status, answer.headers[CONTENT_RANGE]) == (416, f"bytes */{SIZE}")

    def test_if_range_with_another_etag_gives_the_whole_file(self, client, signed):
        url = signed()
        etag = client.ask(url, part="0-0").headers["ETag"]
        assert client.ask(url, part="5-9", **{"If-Range": etag}).status == 206
        assert client.ask(url, part="5-9", **{"If-Range": '"other"'}).data == DATA

    def test_a_key_and_a_head_are_refused(self, hosts, client, signed):
        answer = client.ask(signed(), key=hosts.civitai_key)
        assert (answer.status, b"<Code>InvalidRequest</Code>" in answer.data) == (400, True)
        assert client.ask(signed(), method="HEAD").status == 403

    @pytest.mark.parametrize("change", [("Signature=", "Signature=0"), ("%3B%20", "%3b+")])
    def test_a_changed_url_is_refused(self, signed, change):
        raw, _ = exchange(signed().replace(*change, 1), seconds=0.5)
        assert raw.startswith(b"HTTP/1.1 403")
        assert b"SignatureDoesNotMatch" in body_in(raw)

    def test_each_storage_has_its_own_answer_to_an_expired_url(self, hosts, client, signed):
        hosts.fault("tiering", skip=1)
        urls = [signed(), signed()]
        hosts.expire_urls()
        r2, b2 = (client.ask(url) for url in urls)
        assert (r2.status, b"<Code>ExpiredRequest</Code>" in r2.data) == (400, True)
        assert (b2.status, body_of(b2)["code"]) == (401, "expired_auth_token")

    @pytest.mark.parametrize(
        ("limits", "statuses"), [({"uses": 2}, [206, 206, 400]), ({"seconds": 0}, [400])]
    )
    def test_a_url_may_be_limited(self, hosts, client, signed, limits, statuses):
        hosts.fault("url_limits", **limits)
        url = signed()
        assert [client.ask(url, part="0-0").status for _ in statuses] == statuses

    def test_a_moved_file_has_another_etag_at_the_other_storage(self, hosts, client, signed):
        before = signed()
        hosts.fault("tiering")
        after = signed()
        assert after.startswith(f"{hosts.storage_b}/file/civitai-modelfiles/model/")
        first, second = client.ask(before), client.ask(after)
        assert first.data == second.data == DATA
        assert first.headers["ETag"] != second.headers["ETag"]

    def test_every_signature_is_new_and_a_planted_secret(self, hosts, signed):
        urls = [signed(), signed()]
        hosts.fault("tiering")
        urls.append(signed())
        held = [{one for one in hosts.planted_secrets if one in url} for url in urls]
        assert [len(one) for one in held] == [1, 1, 1]
        assert len(set.union(*held)) == 3
        assert {hosts.civitai_key, hosts.hf_token} <= hosts.planted_secrets

    def test_a_file_on_disk_is_served_like_one_in_memory(self, hosts, client, tmp_path):
        path = tmp_path / "big"
        path.write_bytes(DATA * 5)
        url = hosts.add_web("/big", path)
        assert client.ask(url).data == DATA * 5
        assert client.ask(url, part=f"{SIZE}-{SIZE + 99}").data == DATA[:100]
        hosts.fault("corrupt", offset=3)
        assert client.ask(url).data != DATA * 5


class TestHuggingFace:
    def test_head_has_size_and_hash_and_get_leads_to_the_cdn(self, hosts, client):
        file = hosts.add_hf("org/repo", "sub/x.safetensors", DATA, commit="c" * 40)
        for method in ("HEAD", "GET"):
            for url in (file.url, file.url.replace("/main/", f"/{file.commit}/")):
                answer = client.ask(url, method=method)
                assert answer.status == 302
                assert answer.headers["X-Repo-Commit"] == "c" * 40
                assert answer.headers["X-Linked-Etag"] == f'"{SHA256}"'
                assert answer.headers["X-Linked-Size"] == str(SIZE)
        location = answer.headers["Location"]
        assert location.startswith(hosts.hf_cdn)
        assert client.ask(location).data == DATA
        assert client.ask(location, method="HEAD").status == 200
        assert client.ask(location, key=hosts.hf_token).status == 400

    def test_a_small_file_is_answered_directly(self, hosts, client):
        file = hosts.add_hf("org/small", "config.json", b"{}", lfs=False)
        answer = client.ask(file.url)
        assert (answer.status, answer.data) == (200, b"{}")
        git_hash = hashlib.sha1(b"blob 2" + bytes(1) + b"{}").hexdigest()
        assert answer.headers["ETag"] == f'"{git_hash}"'
        assert client.ask(file.url, method="HEAD").headers["X-Repo-Commit"] == file.commit

    @pytest.mark.parametrize(
        ("path", "token", "expected"),
        [
            ("org/gated/resolve/main/x", None, (401, "GatedRepo")),
            ("org/gated/resolve/main/x", "hf_token_without_grant", (403, "GatedRepo")),
            ("org/gated/resolve/main/x", "hf_token", (302, None)),
            ("org/private/resolve/main/x", None, (401, "RepoNotFound")),
            ("org/private/resolve/main/x", "hf_token_without_grant", (404, "RepoNotFound")),
            ("org/private/resolve/main/x", "hf_token", (302, None)),
            ("org/none/resolve/main/x", None, (401, "RepoNotFound")),
            ("org/none/resolve/main/x", "hf_token", (404, "RepoNotFound")),
            ("org/open/resolve/main/y", None, (404, "EntryNotFound")),
            ("org/open/resolve/v2/x", None, (404, "RevisionNotFound")),
            ("org/open/resolve/main/x", "civitai_key", (401, None)),
            ("org/open/blob/main/x", None, (200, None)),
        ],
    )
    def test_a_token_decides_which_files_are_visible(self, hosts, client, path, token, expected):
        hosts.add_hf("org/open", "x", DATA)
        hosts.add_hf("org/gated", "x", DATA, gated=True)
        hosts.add_hf("org/private", "x", DATA, private=True)
        key = token and getattr(hosts, token)
        answer = client.ask(f"{hosts.huggingface}/{path}", method="HEAD", key=key)
        assert (answer.status, answer.headers.get("X-Error-Code")) == expected


def test_a_plain_host_has_files_with_and_without_ranges_and_redirects(hosts, client):
    url = hosts.add_web("/a b.bin", DATA, content_disposition='attachment; filename="../x"')
    answer = client.ask(url.replace(" ", "%20"), part="1-2")
    assert (answer.status, answer.data) == (206, DATA[1:3])
    assert answer.headers["Content-Disposition"] == 'attachment; filename="../x"'
    answer = client.ask(hosts.add_web("/x", DATA, ranges=False), part="1-2")
    assert (answer.status, answer.data) == (200, DATA)
    answer = client.ask(hosts.add_redirect("/go", "http://169.254.169.254/latest", status=301))
    assert (answer.status, answer.headers["Location"]) == (301, "http://169.254.169.254/latest")
    assert client.ask(f"{hosts.web}/none").status == 404


class TestAnswerFaults:
    @pytest.mark.parametrize(
        ("name", "params", "status", "text"),
        [
            ("login_required", {}, 401, "requires you to be logged in"),
            ("downloads_disabled", {}, 401, "has disabled downloads on this file"),
            ("early_access", {}, 403, '"deadline": "2099'),
            ("early_access", {"deadline": None}, 403, '"deadline": null'),
            ("no_access", {}, 403, "You do not have access to download this file"),
            ("forbidden", {}, 403, '{"error": "Forbidden"}'),
            ("cloudflare_challenge", {}, 403, "Just a moment"),
            ("not_found", {}, 404, '{"error": "File not found"}'),
            ("archived", {}, 410, "Model archived, not available for download"),
            ("rate_limited", {}, 429, "unusual amount of downloading"),
            ("rate_limited", {"html": True, "retry_after": "Wed, 21"}, 429, "<html>"),
            ("region_blocked", {}, 451, '"code": "REGION_BLOCKED"'),
            ("server_error", {"status": 503, "retry_after": 2}, 503, "error"),
            ("status", {"status": 520, "body": "odd"}, 520, "odd"),
            ("login_page", {}, 200, "<html>"),
            ("redirect_to", {"url": "http://10.0.0.1/x"}, 307, "http://10.0.0.1/x"),
            ("redirect_loop", {}, 307, "/api/download/models/128713?fileId="),
        ],
    )
    def test_civitai_answers_as_the_site_does(
        self, hosts, client, model, name, params, status, text
    ):
        fault = hosts.fault(name, times=1, **params)
        answer = client.ask(model.file_url, key=hosts.civitai_key)
        assert (answer.status, text in answer.data.decode()) == (status, True)
        expected = str(params["retry_after"]) if "retry_after" in params else None
        assert answer.headers.get("Retry-After") == expected
        assert (fault.hits, hosts.requests[-1].status) == (1, status)
        assert client.ask(model.file_url, key=hosts.civitai_key).status == 307

    def test_a_fault_has_a_place_and_a_number_of_times(self, hosts, client, model, signed):
        url = signed()
        hosts.fault("server_error", role="storage", status=503, skip=1, times=1)
        assert [client.ask(url, part="0-0").status for _ in range(3)] == [206, 503, 206]
        hosts.fault("not_found", path="/api/v1/model-versions/128713")
        assert client.ask(model.api_url).status == 404
        hosts.no_faults()
        odd = hosts.fault("drop", when=lambda request: request.range == (7, None))
        assert client.ask(url, part="8-").status == 206
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.ask(url, part="7-")
        odd.end()
        assert client.ask(url, part="7-").status == 206

    @pytest.mark.parametrize(
        ("name", "params"), [("nonsense", {}), ("cut", {"by": 1}), ("cut", {"role": "moon"})]
    )
    def test_a_mistake_in_a_test_is_an_error(self, hosts, name, params):
        with pytest.raises((ValueError, TypeError)):
            hosts.fault(name, **params)


class TestDataFaults:
    @pytest.mark.parametrize(("reset", "end"), [(False, "fin"), (True, "rst")])
    def test_the_connection_is_cut(self, hosts, client, signed, reset, end):
        fault = hosts.fault("cut", reset=reset)
        assert client.ask(signed(), part="0-0").status == 206
        assert fault.hits == 0  # there is nothing after the first byte
        hosts.no_faults()
        hosts.fault("cut", after=1000, reset=reset)
        raw, how = exchange(signed())
        assert (body_in(raw), how) == (DATA[:1000], end)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.ask(signed())
        hosts.no_faults()
        hosts.fault("drop", reset=reset)
        assert exchange(signed()) == (b"", end)

    def test_a_stall_sends_nothing_more_or_continues(self, hosts, client, signed):
        hosts.fault("stall", times=1, after=500)
        raw, how = exchange(signed(), seconds=0.5)
        assert (body_in(raw), how) == (DATA[:500], "silence")
        hosts.settle()  # the client's leaving ended it
        hosts.fault("stall", after=500, seconds=0.1)
        assert client.ask(signed()).data == DATA

    @pytest.mark.parametrize(
        ("fault", "status", "shown", "data"),
        [
            ({"name": "wrong_range_start"}, 206, f"bytes 11-20/{SIZE}", DATA[10:20]),
            ({"name": "wrong_range_start", "by": -10}, 206, f"bytes 0-9/{SIZE}", DATA[10:20]),
            ({"name": "wrong_range_total", "by": 5}, 206, f"bytes 10-19/{SIZE + 5}", DATA[10:20]),
            ({"name": "whole"}, 200, None, DATA),
            ({"name": "short_range", "by": 3}, 206, f"bytes 10-19/{SIZE}", DATA[10:17]),
            ({"name": "long_range", "by": 3}, 206, f"bytes 10-19/{SIZE}", DATA[10:20] + bytes(3)),
            ({"name": "trickle", "rate": 10_000}, 206, f"bytes 10-19/{SIZE}", DATA[10:20]),
            ({"name": "chunked"}, 206, f"bytes 10-19/{SIZE}", DATA[10:20]),
        ],
    )
    def test_a_range_is_wrong(self, hosts, client, signed, fault, status, shown, data):
        hosts.fault(**fault)
        answer = client.ask(signed(), part="10-19")
        assert (answer.status, answer.headers.get(CONTENT_RANGE)) == (status, shown)
        assert answer.data == data
        assert ("Transfer-Encoding" in answer.headers) is (fault["name"] == "chunked")

    @pytest.mark.parametrize("by", [3, -3])
    def test_the_content_length_is_wrong(self, hosts, signed, by):
        hosts.fault("wrong_length", by=by)
        raw, how = exchange(signed(), part="10-19")
        assert b"Content-Length: %d\r\n" % (10 + by) in raw
        assert (body_in(raw), how) == (DATA[10:20], "fin")

    def test_a_bit_is_flipped(self, hosts, client, signed):
        hosts.fault("corrupt", offset=1000, bits=0x80)
        url = signed()
        assert client.ask(url, part="0-999").data == DATA[:1000]
        flipped = bytes([DATA[1000] ^ 0x80])
        assert client.ask(url, part="1000-1001").data == flipped + DATA[1001:1002]
        assert client.ask(url).data == DATA[:1000] + flipped + DATA[1001:]

    def test_the_etag_changes(self, hosts, client, signed):
        hosts.fault("etag_changes")
        url = signed()
        first, second = client.ask(url, part="0-0"), client.ask(url, part="0-0")
        assert first.headers["ETag"] != second.headers["ETag"]
        whole = client.ask(url, part="5-9", **{"If-Range": second.headers["ETag"]})
        assert (whole.status, whole.data) == (200, DATA)

    def test_a_page_or_garbage_instead_of_data(self, hosts, client, signed):
        url = signed()
        hosts.fault("html", times=1)
        answer = client.ask(url, part="0-9")
        assert (answer.status, answer.headers["Content-Type"][:9]) == (200, "text/html")
        hosts.fault("garbage")
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.ask(url)

    def test_connections_are_refused_and_accepted_again(self, hosts, client, signed):
        url = signed()
        for _ in range(2):
            hosts.refuse("storage")
        with pytest.raises((urllib3.exceptions.NewConnectionError, ConnectionError)):
            client.ask(url, part="0-0")
        for _ in range(2):
            hosts.accept("storage")
        assert client.ask(url, part="0-0").status == 206

    def test_a_bug_in_the_fake_is_not_taken_for_a_fault(self, client, monkeypatch):
        def broken(_):
            raise KeyError("bug")

        hosts = ModelHosts().__enter__()
        monkeypatch.setattr(hosts._sites, "answer", broken)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.ask(hosts.web)
        with pytest.raises(KeyError, match="bug"):
            hosts.__exit__(None, None, None)

    def test_it_stops_in_the_middle_of_everything(self, client):
        with ModelHosts() as hosts, ThreadPoolExecutor(3) as clients:
            urls = [hosts.add_web(f"/{name}", DATA) for name in ("stall", "slow", "trickle")]
            hosts.fault("stall", path="/stall", role="web")
            hosts.fault("slow", seconds=60, path="/slow")
            hosts.fault("trickle", rate=10, path="/trickle")
            waiting = [clients.submit(client.ask, url) for url in urls]
            wait_until(lambda: hosts.count("web") == 3, "the requests")
            hosts.refuse("web")
            for one in waiting:
                assert isinstance(one.exception(timeout=30), urllib3.exceptions.HTTPError)


class TestThrottle:
    """A machine can only be slower than the throttle, so only the least times are checked."""

    @pytest.fixture
    def seconds_of(self, client):
        def measure(url, *parts):
            start = time.monotonic()
            for part in parts:
                client.ask(url, part=part)
            return time.monotonic() - start

        return measure

    def test_the_rate_is_the_connections_and_survives_keep_alive(self, hosts, seconds_of):
        url = hosts.add_web("/x", DATA)
        hosts.throttle(10**6, ttfb=0)
        parts = [f"{first}-{first + 49_999}" for first in range(0, 200_000, 50_000)]
        assert seconds_of(url, *parts) >= 0.19
        time.sleep(0.15)  # idling earns nothing
        assert seconds_of(url, "0-99999") >= 0.095
        assert len({one.connection for one in hosts.requests}) == 1

    def test_every_answer_begins_late(self, hosts, seconds_of):
        url = hosts.add_web("/x", DATA)
        hosts.throttle(None, ttfb=0.1)
        assert seconds_of(url, "0-0", "0-0") >= 0.2
        hosts.no_throttle()
        hosts.fault("slow", seconds=0.1, role="web")
        assert seconds_of(url, "0-0") >= 0.1


class TestLog:
    def test_a_record_has_the_request_and_its_answer(self, hosts, client, model):
        url = f"{model.file_url}&token=x"
        location = client.ask(url, key=hosts.civitai_key).headers["Location"]
        client.ask(location, part="5-9", **{"If-Range": '"x"'})
        client.ask(location, part="5-9")
        hosts.settle()
        resolve, whole, part = hosts.requests
        path = "/api/download/models/128713"
        assert (resolve.role, resolve.method, resolve.path) == ("civitai", "GET", path)
        assert resolve.query == {"fileId": str(model.id), "token": "x"}
        assert (resolve.range, resolve.authorized) == (None, True)
        assert (whole.status, whole.range, whole.if_range) == (200, (5, 9), '"x"')
        assert (part.status, part.sent) == (206, 5)
        assert resolve.time <= whole.time <= part.time <= part.ended
        assert whole.connection == part.connection != resolve.connection
        assert (hosts.count(), hosts.count("civitai", "/api/download")) == (3, 1)
        assert hosts.bytes_sent("storage") == SIZE + 5
        hosts.forget_requests()
        assert hosts.count() == 0

    def test_many_clients_are_served_at_once(self, hosts, client, signed):
        url = signed()
        with ThreadPoolExecutor(16) as clients:
            parts = [f"{first}-{first + 999}" for first in range(0, 200_000, 1000)]
            answers = list(clients.map(lambda part: client.ask(url, part=part), parts))
        assert b"".join(answer.data for answer in answers) == DATA[:200_000]
        hosts.settle()
        assert (hosts.count("storage"), hosts.bytes_sent("storage")) == (200, 200_000)


def test_with_tls_everything_is_https_and_the_wire_has_the_same_faults(tmp_path):
    with ModelHosts(tls=True) as hosts:
        client = Client(ca_certs=str(hosts.ca_file))
        path = tmp_path / "big"
        path.write_bytes(DATA * 5)
        url = hosts.add_web("/big", path)
        assert url.startswith("https://127.0.0.1:")
        assert client.ask(url).data == DATA * 5
        assert client.ask(url.replace("127.0.0.1", "localhost"), part="0-9").data == DATA[:10]
        with pytest.raises(urllib3.exceptions.SSLError):
            Client(ca_certs=None, cert_reqs="REQUIRED").ask(url)
        for reset in (False, True):
            hosts.fault("cut", after=1000, reset=reset, times=1)
            with pytest.raises(urllib3.exceptions.HTTPError):
                client.ask(url)
        client.pool.clear()
