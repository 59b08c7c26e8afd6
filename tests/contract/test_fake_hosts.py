"""The fake model hosts behave as the recorded facts say, each fault is seen on the wire."""

import hashlib
import json
import random
import socket
import struct
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests
import urllib3
from fakes.hosts.model_hosts import ModelHosts

AGENT = "runpod-worker-a1111/test"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64)"
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
DATA = struct.pack("<Q", len(HEADER)) + HEADER + random.Random(1).randbytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
CONTENT_RANGE = "Content-Range"


class Client:
    """urllib3 without its help: no retries, no redirects, no decoding."""

    def __init__(self, **pool):
        self.pool = urllib3.PoolManager(retries=False, timeout=5, **pool)

    def ask(self, url, *, key=None, method="GET", agent=AGENT, part=None, **headers):
        headers = {"User-Agent": agent} | headers
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if part:
            headers["Range"] = f"bytes={part}"
        return self.pool.request(method, url, headers=headers, redirect=False)


@pytest.fixture
def hosts():
    with ModelHosts() as running:
        yield running


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
    """A signed URL of the model."""

    def make():
        answer = client.ask(model.file_url, key=hosts.civitai_key)
        assert answer.status == 307, answer.data
        return answer.headers["Location"]

    return make


def body_of(answer):
    return json.loads(answer.data)


def exchange(url, part=None, seconds=5.0):
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


class TestMetadata:
    def test_a_version_has_the_documented_fields(self, client, model):
        shown = body_of(client.ask(model.api_url))
        assert (shown["id"], shown["modelId"]) == (128713, 4384)
        assert shown["air"] == model.air == "urn:air:sd1:checkpoint:civitai:4384@128713"
        assert shown["downloadUrl"] == model.download_url
        assert shown["usageControl"] == "Download"
        [file] = shown["files"]
        assert file["sizeKB"] * 1024 == len(DATA)
        assert file["hashes"]["SHA256"] == SHA256.upper() == model.sha256.upper()
        assert file["hashes"]["AutoV2"] == SHA256[:10].upper()
        after_header = hashlib.sha256(DATA[8 + len(HEADER) :]).hexdigest()[:12]
        assert file["hashes"]["AutoV3"] == after_header.upper()
        assert file["metadata"] == {"format": "SafeTensor", "size": "pruned", "fp": "fp16"}
        assert file["primary"] is True

    def test_the_file_has_what_the_test_says(self, hosts, client):
        fields = {"hashes": {}, "sizeKB": 1, "pickleScanResult": "Danger"}
        model = hosts.add_model(
            version_id=1, data=DATA, version_fields={"usageControl": "Generation"}, **fields
        )
        shown = body_of(client.ask(model.api_url))
        assert shown["usageControl"] == "Generation"
        assert fields.items() <= shown["files"][0].items()

    def test_mini_describes_the_primary_or_the_asked_file(self, hosts, client, model):
        other = hosts.add_model(version_id=128713, data=b"vae", name="x.pt", type="VAE")
        mini = f"{hosts.civitai}/api/v1/model-versions/mini/128713"
        primary, asked = (body_of(client.ask(mini + q)) for q in ("", f"?modelFileId={other.id}"))
        assert (primary["fileName"], primary["air"]) == ("dream.safetensors", model.air)
        assert primary["downloadUrls"] == [model.download_url]
        assert primary["requireAuth"] is True
        assert (asked["fileName"], asked["air"]) == ("x.pt", other.file_air)
        assert asked["downloadUrls"] == [other.file_url]
        assert client.ask(f"{mini}?modelFileId=1").status == 404

    @pytest.mark.parametrize("name", ["SHA256", "AutoV1", "AutoV2", "AutoV3", "CRC32"])
    @pytest.mark.parametrize("case", [str.lower, str.upper])
    def test_any_hash_in_any_case_finds_the_oldest_version(self, hosts, client, name, case):
        model, _ = (hosts.add_model(version_id=id_, data=DATA) for id_ in (2, 1))
        url = f"{hosts.civitai}/api/v1/model-versions/by-hash/{case(model.hashes[name])}"
        assert body_of(client.ask(url))["id"] == 1

    def test_a_model_lists_its_versions_the_default_first(self, hosts, client):
        for id_ in (2, 1):
            hosts.add_model(version_id=id_, model_id=4384, data=b"data")
        shown = body_of(client.ask(f"{hosts.civitai}/api/v1/models/4384"))
        assert [version["id"] for version in shown["modelVersions"]] == [2, 1]

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("model-versions/1", "Model not found"),
            ("model-versions/by-hash/abc", "Model not found"),
            ("models/1", "No model with id 1"),
        ],
    )
    def test_what_is_unknown_is_404(self, hosts, client, path, error):
        answer = client.ask(f"{hosts.civitai}/api/v1/{path}")
        assert (answer.status, body_of(answer)) == (404, {"error": error})

    def test_some_models_are_only_on_red(self, hosts, client):
        model = hosts.add_model(version_id=7, data=DATA, red_only=True)
        red = model.api_url.replace(hosts.civitai, hosts.civitai_red)
        assert client.ask(model.api_url).status == 404
        assert body_of(client.ask(red))["downloadUrl"].startswith(hosts.civitai_red)


class TestDownload:
    def test_a_key_leads_to_a_signed_url_and_the_bytes(self, hosts, client, model):
        answer = client.ask(model.file_url, key=hosts.civitai_key)
        location = answer.headers["Location"]
        assert (answer.status, answer.headers["Cache-Control"]) == (307, "no-store")
        assert location.startswith(hosts.storage)
        assert answer.data.decode() == location
        for name in ("X-Amz-Signature=", "X-Amz-Expires=86400", "response-content-disposition="):
            assert name in location
        file = client.ask(location)
        assert (file.status, file.data) == (200, DATA)
        assert file.headers["Content-Disposition"] == 'attachment; filename="dream.safetensors"'

    def test_the_token_may_be_in_the_query(self, hosts, client, model):
        assert client.ask(f"{model.file_url}&token={hosts.civitai_key}").status == 307

    @pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer", "Basic x"])
    def test_a_header_hides_the_query_token(self, hosts, client, model, header):
        url = f"{model.file_url}&token={hosts.civitai_key}"
        assert client.ask(url, Authorization=header).status == 401

    @pytest.mark.parametrize("key", [None, "expired"])
    def test_without_a_known_key_it_says_login(self, client, model, key):
        answer = client.ask(model.file_url, key=key)
        assert answer.status == 401
        assert body_of(answer) == {
            "error": "Unauthorized",
            "message": "The creator of this asset requires you to be logged in to download it",
        }

    def test_a_file_may_need_no_key(self, hosts, client):
        free = hosts.add_model(version_id=1, data=DATA, require_auth=False)
        assert client.ask(free.download_url).status == 307

    def test_a_browser_ends_on_a_html_page(self, model):
        with requests.Session() as session:
            answer = session.get(model.file_url, headers={"User-Agent": BROWSER})
        assert (answer.status_code, answer.history[0].status_code) == (200, 307)
        assert "/login?returnUrl=" in answer.url
        assert "reason=download-auth" in answer.url
        assert answer.headers["Content-Type"].startswith("text/html")

    def test_cloudflare_refuses_python_urllib(self, model):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(model.api_url)
        with refused.value as error:
            assert (error.code, b"<html>" in error.read()) == (403, True)

    def test_only_get(self, hosts, client, model):
        assert client.ask(model.file_url, key=hosts.civitai_key, method="HEAD").status == 405

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", b"pruned"),
            ("?size=full", b"full"),
            ("?format=PickleTensor", b"pickle"),
            ("?type=VAE", None),
            ("?fp=int8", None),
            ("?fileId=13", b"full"),
            ("?fileId=13&fp=int8", b"full"),
            ("?fileId=99", None),
        ],
    )
    def test_the_host_scores_files_unless_told_which(self, hosts, client, query, expected):
        pruned = {"format": "SafeTensor", "size": "pruned", "fp": "fp16"}
        for file_id, data, change in (
            (11, b"pickle", {"format": "PickleTensor"}),
            (12, b"pruned", {}),
            (13, b"full", {"size": "full"}),
        ):
            hosts.add_model(version_id=5, data=data, file_id=file_id, metadata=pruned | change)
        url = f"{hosts.civitai}/api/download/models/5{query}"
        answer = client.ask(url, key=hosts.civitai_key)
        if expected is None:
            assert (answer.status, body_of(answer)) == (404, {"error": "File not found"})
        else:
            assert client.ask(answer.headers["Location"]).data == expected

    def test_requests_follows_it_without_taking_the_key_along(self, hosts, model):
        headers = {"User-Agent": AGENT, "Authorization": f"Bearer {hosts.civitai_key}"}
        with requests.Session() as session:
            session.trust_env = False
            assert session.get(model.file_url, headers=headers).content == DATA
        assert [one.authorized for one in hosts.requests] == [True, False]

    def test_urllib3_follows_it_without_taking_the_key_along(self, hosts, client, model):
        headers = {"User-Agent": AGENT, "Authorization": f"Bearer {hosts.civitai_key}"}
        answer = client.pool.request("GET", model.file_url, headers=headers, retries=3)
        assert answer.data == DATA


class TestStorage:
    @pytest.mark.parametrize(
        ("part", "start", "stop"),
        [
            ("0-0", 0, 1),
            ("5-9", 5, 10),
            ("100-", 100, len(DATA)),
            ("-5", len(DATA) - 5, len(DATA)),
            (f"10-{10**9}", 10, len(DATA)),
        ],
    )
    def test_ranges_are_exact(self, client, signed, part, start, stop):
        answer = client.ask(signed(), part=part)
        assert (answer.status, answer.data) == (206, DATA[start:stop])
        assert answer.headers[CONTENT_RANGE] == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert answer.headers["Content-Length"] == str(stop - start)
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["ETag"].startswith('"')

    def test_a_range_behind_the_end_is_416(self, client, signed):
        answer = client.ask(signed(), part=f"{len(DATA)}-")
        assert (answer.status, answer.headers[CONTENT_RANGE]) == (416, f"bytes */{len(DATA)}")

    def test_if_range_with_another_etag_gives_the_whole(self, client, signed):
        url = signed()
        etag = client.ask(url, part="0-0").headers["ETag"]
        assert client.ask(url, part="5-9", **{"If-Range": etag}).status == 206
        assert client.ask(url, part="5-9", **{"If-Range": '"other"'}).data == DATA

    def test_a_key_that_comes_along_is_refused(self, hosts, client, signed):
        answer = client.ask(signed(), key=hosts.civitai_key)
        assert (answer.status, b"<Code>InvalidRequest</Code>" in answer.data) == (400, True)

    def test_head_on_a_signed_url_is_refused(self, client, signed):
        assert client.ask(signed(), method="HEAD").status == 403

    @pytest.mark.parametrize("change", [("Signature=", "Signature=0"), ("%3B%20", "%3b+")])
    def test_a_url_that_was_touched_does_not_match(self, signed, change):
        raw, _ = exchange(signed().replace(*change, 1), seconds=0.2)
        assert raw.startswith(b"HTTP/1.1 403")
        assert b"SignatureDoesNotMatch" in body_in(raw)

    def test_each_backend_tells_expiry_its_own_way(self, hosts, client, signed):
        hosts.fault("url_limits", seconds=0.05)
        hosts.fault("tiering", skip=1)
        urls = [signed(), signed()]
        time.sleep(0.06)
        r2, b2 = (client.ask(url) for url in urls)
        assert (r2.status, b"<Code>ExpiredRequest</Code>" in r2.data) == (400, True)
        assert (b2.status, body_of(b2)["code"]) == (401, "expired_auth_token")

    def test_a_url_may_last_for_some_requests(self, hosts, client, signed):
        hosts.fault("url_limits", uses=2)
        url = signed()
        assert [client.ask(url, part="0-0").status for _ in range(3)] == [206, 206, 400]

    def test_all_urls_can_be_ended(self, hosts, client, signed):
        url = signed()
        hosts.expire_urls()
        assert client.ask(url).status == 400
        assert client.ask(signed()).status == 200

    def test_a_moved_file_is_on_the_other_backend_with_another_etag(self, hosts, client, signed):
        before = signed()
        hosts.fault("tiering")
        after = signed()
        assert after.startswith(f"{hosts.storage_b}/file/civitai-modelfiles/model/")
        assert "b2ContentDisposition=" in after
        first, second = client.ask(before), client.ask(after)
        assert first.data == second.data == DATA
        assert first.headers["ETag"] != second.headers["ETag"]

    def test_every_signature_is_fresh_and_a_planted_secret(self, hosts, signed):
        urls = [signed(), signed()]
        hosts.fault("tiering")
        urls.append(signed())
        held = [{one for one in hosts.planted_secrets if one in url} for url in urls]
        assert [len(one) for one in held] == [1, 1, 1]
        assert len(set.union(*held)) == 3
        assert {hosts.civitai_key, hosts.hf_token} <= hosts.planted_secrets

    def test_a_file_on_disk_is_served_like_one_in_memory(self, hosts, client, tmp_path):
        path = tmp_path / "big"
        path.write_bytes(DATA * 20)
        url = hosts.add_web("/big", path)
        assert client.ask(url).data == DATA * 20
        middle = len(DATA) * 10
        answer = client.ask(url, part=f"{middle}-{middle + 99}")
        assert answer.data == (DATA * 20)[middle : middle + 100]
        hosts.fault("corrupt", offset=3)
        assert hashlib.sha256(client.ask(url).data).digest() != hashlib.sha256(DATA * 20).digest()


class TestHuggingFace:
    def test_head_knows_size_and_hash_and_get_leads_to_the_cdn(self, hosts, client):
        file = hosts.add_hf("org/repo", "sub/x.safetensors", DATA, commit="c" * 40)
        for method in ("HEAD", "GET"):
            answer = client.ask(file.url, method=method)
            assert answer.status == 302
            assert answer.headers["X-Repo-Commit"] == "c" * 40
            assert answer.headers["X-Linked-Etag"] == f'"{SHA256}"'
            assert answer.headers["X-Linked-Size"] == str(len(DATA))
        location = answer.headers["Location"]
        assert location.startswith(hosts.hf_cdn)
        assert client.ask(location).data == DATA
        assert client.ask(location, method="HEAD").status == 200
        assert client.ask(location, key=hosts.hf_token).status == 400

    def test_a_commit_is_a_revision(self, hosts, client):
        file = hosts.add_hf("org/repo", "x", DATA)
        assert client.ask(file.url.replace("/main/", f"/{file.commit}/")).status == 302

    def test_a_small_file_is_answered_directly(self, hosts, client):
        file = hosts.add_hf("org/repo", "config.json", b"{}", lfs=False)
        answer = client.ask(file.url)
        assert (answer.status, answer.data) == (200, b"{}")
        assert (
            answer.headers["ETag"] == f'"{hashlib.sha1(b"blob 2" + bytes(1) + b"{}").hexdigest()}"'
        )
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
    def test_who_may_see_what(self, hosts, client, path, token, expected):
        hosts.add_hf("org/open", "x", DATA)
        hosts.add_hf("org/gated", "x", DATA, gated=True)
        hosts.add_hf("org/private", "x", DATA, private=True)
        key = token and getattr(hosts, token)
        answer = client.ask(f"{hosts.huggingface}/{path}", method="HEAD", key=key)
        assert (answer.status, answer.headers.get("X-Error-Code")) == expected


class TestWeb:
    def test_a_plain_file(self, hosts, client):
        url = hosts.add_web("/a b.bin", DATA, content_disposition='attachment; filename="../x"')
        answer = client.ask(url.replace(" ", "%20"), part="1-2")
        assert (answer.status, answer.data) == (206, DATA[1:3])
        assert answer.headers["Content-Disposition"] == 'attachment; filename="../x"'
        assert client.ask(f"{hosts.web}/none").status == 404

    def test_a_host_without_ranges(self, hosts, client):
        answer = client.ask(hosts.add_web("/x", DATA, ranges=False), part="1-2")
        assert (answer.status, answer.data) == (200, DATA)
        assert "Accept-Ranges" not in answer.headers

    def test_a_redirect_goes_anywhere(self, hosts, client):
        url = hosts.add_redirect("/go", "http://169.254.169.254/latest", status=301)
        answer = client.ask(url)
        assert (answer.status, answer.headers["Location"]) == (301, "http://169.254.169.254/latest")


class TestAnswerFaults:
    @pytest.fixture
    def site(self, hosts, client, model):
        return hosts, client, model

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
            ("rate_limited", {"html": True}, 429, "<html>"),
            ("region_blocked", {}, 451, '"code": "REGION_BLOCKED"'),
            ("server_error", {}, 500, "error"),
            ("server_error", {"status": 502}, 502, "error"),
            ("server_error", {"status": 503, "retry_after": 2}, 503, "error"),
            ("status", {"status": 520, "body": "odd"}, 520, "odd"),
            ("login_page", {}, 200, "<html>"),
            ("redirect_to", {"url": "http://10.0.0.1/x"}, 307, "http://10.0.0.1/x"),
        ],
    )
    def test_the_resolver_answers_as_the_site_does(self, site, name, params, status, text):
        hosts, client, model = site
        fault = hosts.fault(name, times=1, **params)
        answer = client.ask(model.file_url, key=hosts.civitai_key)
        assert (answer.status, text in answer.data.decode()) == (status, True)
        assert answer.headers.get("Retry-After") == (
            str(params["retry_after"]) if "retry_after" in params else None
        )
        assert (fault.hits, hosts.requests[-1].status) == (1, status)
        assert client.ask(model.file_url, key=hosts.civitai_key).status == 307

    def test_a_challenge_is_marked(self, hosts, client, model):
        hosts.fault("cloudflare_challenge")
        assert client.ask(model.file_url).headers["cf-mitigated"] == "challenge"

    def test_a_browser_gets_early_access_as_a_page(self, hosts, client, model):
        hosts.fault("early_access")
        answer = client.ask(model.file_url, agent=BROWSER)
        assert (answer.status, answer.headers["Location"]) == (307, "/model-versions/128713")

    def test_retry_after_as_given(self, hosts, client, model):
        hosts.fault("rate_limited", retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
        assert client.ask(model.file_url).headers["Retry-After"].startswith("Wed, 21")

    def test_a_blocked_region_has_no_api_at_all(self, hosts, client, model):
        hosts.fault("region_blocked")
        assert client.ask(model.api_url).status == 451
        assert client.ask(model.page_url).status == 200

    def test_a_redirect_loop(self, hosts, model):
        hosts.fault("redirect_loop")
        with requests.Session() as session, pytest.raises(requests.TooManyRedirects):
            session.get(model.file_url)

    def test_the_resolver_is_slow(self, hosts, client, model):
        hosts.fault("slow", seconds=0.2)
        start = time.monotonic()
        client.ask(model.file_url)
        assert time.monotonic() - start >= 0.2

    def test_where_and_how_often(self, hosts, client, model, signed):
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
    def test_a_mistake_in_a_test_is_told(self, hosts, name, params):
        with pytest.raises((ValueError, TypeError)):
            hosts.fault(name, **params)


class TestDataFaults:
    @pytest.mark.parametrize(("reset", "end"), [(False, "fin"), (True, "rst")])
    def test_the_connection_is_cut(self, hosts, signed, reset, end):
        hosts.fault("cut", after=1000, reset=reset)
        raw, how = exchange(signed())
        assert (body_in(raw), how) == (DATA[:1000], end)
        hosts.settle()
        assert hosts.bytes_sent("storage") == 1000

    def test_a_cut_is_an_incomplete_read_for_urllib3(self, hosts, client, signed):
        hosts.fault("cut", after=1000)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.ask(signed())

    @pytest.mark.parametrize(("reset", "end"), [(False, "fin"), (True, "rst")])
    def test_no_answer_at_all(self, hosts, signed, reset, end):
        hosts.fault("drop", reset=reset)
        assert exchange(signed()) == (b"", end)

    def test_a_probe_is_spared_by_default(self, hosts, client, signed):
        fault = hosts.fault("cut")
        assert client.ask(signed(), part="0-0").status == 206
        assert fault.hits == 0

    def test_a_stall_sends_nothing_more(self, hosts, signed):
        hosts.fault("stall", after=500)
        raw, how = exchange(signed(), seconds=0.2)
        assert (body_in(raw), how) == (DATA[:500], "silence")
        hosts.settle()  # the client's leaving ended it

    def test_a_stall_may_pass(self, hosts, client, signed):
        hosts.fault("stall", after=500, seconds=0.1)
        start = time.monotonic()
        assert client.ask(signed()).data == DATA
        assert time.monotonic() - start >= 0.1

    def test_a_trickle(self, hosts, client, signed):
        hosts.fault("trickle", rate=10_000)
        start = time.monotonic()
        assert client.ask(signed(), part="0-2999").data == DATA[:3000]
        assert 0.25 < time.monotonic() - start < 2

    @pytest.mark.parametrize(
        ("fault", "shown"),
        [
            ({"name": "wrong_range_start"}, f"bytes 11-20/{len(DATA)}"),
            ({"name": "wrong_range_start", "by": -10}, f"bytes 0-9/{len(DATA)}"),
            ({"name": "wrong_range_total", "by": 5}, f"bytes 10-19/{len(DATA) + 5}"),
        ],
    )
    def test_a_wrong_content_range(self, hosts, client, signed, fault, shown):
        hosts.fault(**fault)
        answer = client.ask(signed(), part="10-19")
        assert (answer.status, answer.headers[CONTENT_RANGE]) == (206, shown)
        assert answer.data == DATA[10:20]

    def test_the_whole_for_a_range(self, hosts, client, signed):
        hosts.fault("whole")
        answer = client.ask(signed(), part="10-19")
        assert (answer.status, answer.data) == (200, DATA)
        assert CONTENT_RANGE not in answer.headers

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("short_range", DATA[10:17]), ("long_range", DATA[10:20] + bytes(3))],
    )
    def test_fewer_or_more_bytes_than_promised(self, hosts, client, signed, name, expected):
        hosts.fault(name, by=3)
        answer = client.ask(signed(), part="10-19")
        assert answer.headers[CONTENT_RANGE] == f"bytes 10-19/{len(DATA)}"
        assert answer.data == expected

    @pytest.mark.parametrize("by", [3, -3])
    def test_a_wrong_content_length(self, hosts, signed, by):
        hosts.fault("wrong_length", by=by)
        raw, how = exchange(signed(), part="10-19")
        assert b"Content-Length: %d\r\n" % (10 + by) in raw
        assert (body_in(raw), how) == (DATA[10:20], "fin")

    def test_a_flipped_bit(self, hosts, client, signed):
        hosts.fault("corrupt", offset=1000, bits=0x80)
        url = signed()
        assert client.ask(url, part="0-999").data == DATA[:1000]
        flipped = bytes([DATA[1000] ^ 0x80])
        assert client.ask(url, part="1000-1001").data == flipped + DATA[1001:1002]
        assert client.ask(url).data == DATA[:1000] + flipped + DATA[1001:]

    def test_html_instead_of_data(self, hosts, client, signed):
        hosts.fault("html")
        answer = client.ask(signed(), part="0-9")
        assert (answer.status, answer.headers["Content-Type"][:9]) == (200, "text/html")

    @pytest.mark.parametrize("part", [None, "10-19"])
    def test_chunked(self, hosts, client, signed, part):
        hosts.fault("chunked")
        url = signed()
        for _ in range(2):
            answer = client.ask(url, part=part)
            assert "Content-Length" not in answer.headers
            assert answer.headers["Transfer-Encoding"] == "chunked"
            assert answer.data == (DATA[10:20] if part else DATA)
        assert hosts.connections("storage") == 1

    def test_the_etag_changes(self, hosts, client, signed):
        hosts.fault("etag_changes")
        url = signed()
        first, second = client.ask(url, part="0-0"), client.ask(url, part="0-0")
        assert first.headers["ETag"] != second.headers["ETag"]
        whole = client.ask(url, part="5-9", **{"If-Range": second.headers["ETag"]})
        assert (whole.status, whole.data) == (200, DATA)

    def test_garbage(self, hosts, client, signed):
        hosts.fault("garbage")
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.ask(signed())

    def test_refused_and_accepted_again(self, hosts, client, signed):
        url = signed()
        assert client.ask(url, part="0-0").status == 206
        hosts.refuse("storage")
        hosts.refuse("storage")
        with pytest.raises((urllib3.exceptions.NewConnectionError, ConnectionError)):
            client.ask(url, part="0-0")
        hosts.accept("storage")
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
            while hosts.count("web") < 3:
                time.sleep(0.01)
            hosts.refuse("web")
            for one in waiting:
                assert isinstance(one.exception(timeout=5), urllib3.exceptions.HTTPError)


class TestThrottle:
    def test_the_rate_is_the_connections_and_survives_keep_alive(self, hosts, client):
        url = hosts.add_web("/x", DATA * 2)
        hosts.throttle(10**6, ttfb=0)
        start = time.monotonic()
        for first in range(0, 300_000, 50_000):
            client.ask(url, part=f"{first}-{first + 49_999}")
        assert 0.28 < time.monotonic() - start < 1
        assert hosts.connections("web") == 1

    def test_idling_earns_nothing(self, hosts, client):
        url = hosts.add_web("/x", DATA)
        hosts.throttle(10**6, ttfb=0)
        client.ask(url, part="0-0")
        time.sleep(0.2)
        start = time.monotonic()
        client.ask(url, part="0-99999")
        assert 0.095 < time.monotonic() - start < 1

    def test_connections_add_up(self, hosts, client):
        urls = [hosts.add_web("/x", DATA)] * 8
        hosts.throttle(10**6, ttfb=0.05)
        client.pool.connection_pool_kw["maxsize"] = 8
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda url: client.ask(url, part="0-199999"), urls))
        assert [len(answer.data) for answer in answers] == [200_000] * 8
        hosts.settle()
        lasted = [one.ended - one.time for one in hosts.asked("web")]
        assert 0.24 < min(lasted) <= max(lasted) < 1

    def test_every_answer_begins_late_and_then_no_more(self, hosts, client):
        url = hosts.add_web("/x", DATA)
        hosts.throttle(None, ttfb=0.2)
        start = time.monotonic()
        client.ask(url)
        client.ask(url)
        assert 0.4 <= time.monotonic() - start < 1.2
        hosts.no_throttle()
        start = time.monotonic()
        client.ask(url)
        assert time.monotonic() - start < 0.2


class TestLog:
    def test_what_a_record_holds(self, hosts, client, model):
        url = f"{model.download_url}?fileId={model.id}&token={hosts.civitai_key}"
        location = client.ask(url).headers["Location"]
        client.ask(location, part="5-9", **{"If-Range": '"x"'})
        client.ask(location, part="5-9")
        hosts.settle()
        resolve, whole, part = hosts.requests
        assert (resolve.role, resolve.method, resolve.path) == (
            "civitai",
            "GET",
            "/api/download/models/128713",
        )
        assert resolve.query == {"fileId": str(model.id), "token": hosts.civitai_key}
        assert (resolve.range, resolve.authorized, resolve.user_agent) == (None, False, AGENT)
        assert (whole.status, whole.range, whole.if_range) == (200, (5, 9), '"x"')
        assert (part.status, part.sent) == (206, 5)
        assert resolve.time <= whole.time <= part.time <= part.ended
        assert whole.connection == part.connection != resolve.connection
        assert hosts.count() == 3
        assert hosts.count("civitai", "/api/download") == 1
        assert hosts.bytes_sent("storage") == len(DATA) + 5
        hosts.forget_requests()
        assert hosts.count() == 0

    def test_many_clients_at_once(self, hosts, client, signed):
        url, client.pool.connection_pool_kw["maxsize"] = signed(), 16
        with ThreadPoolExecutor(16) as clients:
            parts = [f"{first}-{first + 999}" for first in range(0, 200_000, 1000)]
            answers = list(clients.map(lambda part: client.ask(url, part=part), parts))
        assert b"".join(answer.data for answer in answers) == DATA[:200_000]
        hosts.settle()
        assert (hosts.count("storage"), hosts.bytes_sent("storage")) == (200, 200_000)


class TestTls:
    @pytest.fixture
    def hosts(self):
        with ModelHosts(tls=True) as running:
            yield running

    @pytest.fixture
    def client(self, hosts):
        made = Client(ca_certs=str(hosts.ca_file))
        yield made
        made.pool.clear()

    def test_everything_is_https_for_whom_trusts_the_ca(self, hosts, client, signed, tmp_path):
        url = signed()
        assert url.startswith("https://127.0.0.1:")
        assert client.ask(url).data == DATA
        assert client.ask(url.replace("127.0.0.1", "localhost"), part="0-9").data == DATA[:10]
        path = tmp_path / "big"
        path.write_bytes(DATA * 20)
        assert client.ask(hosts.add_web("/big", path)).data == DATA * 20

    def test_nobody_else_does(self, model):
        with requests.Session() as session, pytest.raises(requests.exceptions.SSLError):
            session.get(model.api_url)

    @pytest.mark.parametrize("reset", [False, True])
    def test_the_wire_is_spoilt_here_too(self, hosts, client, signed, reset):
        hosts.fault("cut", after=1000, reset=reset)
        with pytest.raises(urllib3.exceptions.HTTPError):
            client.ask(signed())
        hosts.no_faults()
        hosts.throttle(10**6, ttfb=0)
        start = time.monotonic()
        assert client.ask(signed()).data == DATA
        assert 0.19 < time.monotonic() - start < 1
