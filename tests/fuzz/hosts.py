"""Answers of the hosts of models, of S3 and of any web server."""

import json
from functools import cache
from types import SimpleNamespace

import botocore.awsrequest
import urllib3
from pydantic import SecretStr

from tests.fuzz.target import target
from worker.config.bucket_address import BucketAccess, BucketAddress
from worker.delivery.bucket import Bucket
from worker.delivery.limits import UploadLimits
from worker.errors import InvalidInput, WorkerError
from worker.hosts.civitai import CivitAI
from worker.hosts.civitai_api import CivitAIModel, CivitAIVersion
from worker.hosts.host import RemoteFile
from worker.hosts.huggingface import HuggingFace, HuggingFaceFile
from worker.hosts.ref import Sha256
from worker.hosts.web import AnyHost
from worker.http.backoff import retry_after
from worker.http.document import Document, error_code
from worker.models.download import source
from worker.models.volume.limits import SendLimits
from worker.models.volume.volume import Volume

FILE = {
    "id": 3,
    "name": "x.safetensors",
    "type": "Model",
    "sizeKB": 2.5,
    "primary": True,
    "pickleScanResult": "Success",
    "virusScanResult": "Success",
    "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"},
    "hashes": {"SHA256": "AB" * 32},
    "downloadUrl": "https://civitai.com/api/download/models/2",
}
VERSION = {
    "id": 2,
    "modelId": 1,
    "name": "v1",
    "baseModel": "SDXL 1.0",
    "trainedWords": ["fox, a", "b"],
    "availability": "EarlyAccess",
    "earlyAccessEndsAt": "2030-01-01T00:00:00.000Z",
    "usageControl": "Download",
    "model": {"name": "Foxes", "type": "LORA", "mode": None},
    "files": [FILE, {**FILE, "id": 4, "name": "x.ckpt"}],
}
MODEL = {"id": 1, "name": "Foxes", "type": "Checkpoint", "modelVersions": [VERSION]}
ERRORS = [
    {"message": "The creator disabled downloads", "deadline": "2030-01-01T00:00:00Z"},
    {"error": "Unauthorized", "message": "early access"},
]
CIVITAI = [
    *("SafeTensor", "PickleTensor", "Checkpoint", "LORA", "Archived", "TakenDown", "Danger"),
    *("2026-01-01T00:00:00+99:99", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"),
    "Published",
]
HEADERS = {
    "X-Repo-Commit": "c0ffee" + "0" * 34,
    "X-Linked-Size": "12",
    "X-Linked-Etag": f'"{"ab" * 32}"',
    "X-Error-Code": "GatedRepo",
    "Content-Length": "12",
    "Content-Range": "bytes 0-11/12",
    "Content-Disposition": "attachment; filename*=UTF-8''x%20y.safetensors",
    "Retry-After": "5",
    "RateLimit": '"resolvers";r=0;t=25',
    "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT",
    "ETag": 'W/"x"',
    "Location": "https://x.y/z",
}
HEADER_WORDS = [
    *HEADERS.values(),
    *("Wed, 99 Oct 99999 07:28:00 GMT", "bytes */12", "bytes 0-0/0", "=?utf-8?q?x?="),
    *("filename=", "*"),
    *("filename*=x'y'z", 'filename="', "1e5", "-1"),
    *(";r=0;t=" + "9" * 12, "Thu, 1 Jan 1 0:0:0 +9999"),
]
STATUSES = (200, 200, 206, 301, 302, 400, 401, 403, 404, 408, 410, 416, 429, 451, 500, 503, 599, 0)
REFERENCES = [
    CivitAIModel(1),
    CivitAIVersion(2),
    CivitAIVersion(2, 3),
    CivitAIVersion(2, None, (("format", "PickleTensor"),)),
    Sha256("ab" * 32),
]
REMOTE = RemoteFile("https://x.y/z", "z", "civitai:1@2+3", title="Foxes")
XML = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>x</Message></Error>'
PARTS = b"<Part><PartNumber>1</PartNumber><Size>5</Size><ETag>x</ETag></Part>"
UPLOADS = b"<Upload><Key>k</Key><UploadId>u</UploadId><Initiated>2026-01-01T00:00:00Z</Initiated>"
LISTS = [
    b"<ListPartsResult><IsTruncated>true</IsTruncated>" + PARTS + b"</ListPartsResult>",
    b"<ListMultipartUploadsResult>" + UPLOADS + b"</Upload></ListMultipartUploadsResult>",
    b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
    b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>",
    b'<!DOCTYPE a [<!ENTITY b "c">]><Error><Code>&b;</Code></Error>',
]


def headers(draw):
    """The headers of an answer, some of them odd."""
    found = urllib3.HTTPHeaderDict()
    for name, value in HEADERS.items():
        kind = draw.randrange(4)
        if kind:
            found[name] = value if kind > 1 else draw.text(HEADER_WORDS)
    return found


def document(draw, seeds, words=()):
    """An answer of a host."""
    status = draw.choice(STATUSES) if draw.randrange(3) else 200
    return Document(status, headers(draw), draw.json(seeds, words))


def check_remote(found):
    """What a host says about a file, as the store uses it."""
    json.dumps([found.filename, found.source, found.title, found.family, found.trained_words])
    assert found.size is None or found.size >= 0
    assert found.sha256 is None or len(found.sha256) == 64
    assert found.source.isprintable()


@target(WorkerError, share=1.5)
def civitai(draw):
    """CivitAI's metadata and refusals."""
    host = CivitAI(key="k" if draw.randrange(2) else None)
    ref = draw.choice(REFERENCES)
    answer = document(draw, [MODEL, VERSION, *ERRORS], CIVITAI)
    str(host.refusal(answer, REMOTE)).encode()
    check_remote(host.resolve(ref, lambda *_, **__: answer))


@target(WorkerError)
def hugging_face(draw):
    """Hugging Face's headers and refusals."""
    host = HuggingFace(token="t" if draw.randrange(2) else None)
    answer = document(draw, ERRORS)
    str(host.refusal(answer, REMOTE)).encode()
    ref = HuggingFaceFile("a/b", "c.safetensors", "main")
    check_remote(host.resolve(ref, lambda *_, **__: answer))


@target(WorkerError, source.TryAgain)
def download_headers(draw):
    """The headers of any web server that sends a file."""
    answer = document(draw, ERRORS)
    reply = SimpleNamespace(status=answer.status, headers=answer.headers)
    retry_after(answer.headers)
    source.version_of(reply).is_same(source.FileVersion("x", "y"))
    name = source.filename_of(reply)
    assert name is None or isinstance(name, str)
    str(AnyHost().refusal(answer, REMOTE)).encode()
    source.size_of(reply, 0, 12)


ADDRESS = BucketAddress("https://s3.example.com", "pictures", "us-east-1", signs_urls=True)
KEY = SecretStr("k")
ONCE = SendLimits(first_pause=0.0, longest_pause=0.0, attempts=1, first_attempts=1)


class Answers:
    """Answers the requests of a boto3 client in place of a connection."""

    def __init__(self, client):
        self.next = (200, {}, b"")
        client.meta.events.register("before-send.s3", self._send)

    def _send(self, request, **_):
        status, found, body = self.next
        raw = urllib3.HTTPResponse(_Body(body), preload_content=False)
        return botocore.awsrequest.AWSResponse(request.url, status, found, raw)


class _Body:
    """A body that can be read once."""

    def __init__(self, content):
        self._content, self.closed = content, False

    def read(self, _count=None):
        content, self._content = self._content, b""
        return content

    def close(self):
        self.closed = True


@cache
def s3():
    """A bucket and a network volume whose answers are drawn."""
    bucket = Bucket(BucketAccess(ADDRESS, KEY, KEY), limits=UploadLimits(attempts=1))
    volume = Volume(ADDRESS, KEY, KEY, ONCE)
    volume.stop.set()
    return bucket, volume, Answers(bucket._client), Answers(volume._client)


@target(WorkerError, seconds=2.0)
def s3_answers(draw):
    """Answers of a bucket and of a network volume's S3 API."""
    bucket, volume, for_bucket, for_volume = s3()
    body = draw.blob([XML, *LISTS])
    found = {name: value for name, value in headers(draw).items() if draw.randrange(2)}
    for_bucket.next = for_volume.next = (draw.choice(STATUSES[:-1]), found, body)
    error_code(body)
    draw.choice(
        (
            lambda: bucket.upload("k", b"x", "image/png"),
            volume.check,
            lambda: volume.head("k"),
            lambda: volume.read("k"),
            lambda: volume.put("k", b"x"),
            lambda: volume.unfinished("k"),
            lambda: volume.begin("k"),
            lambda: volume.complete("k", "u", ["x"], 5),
        )
    )()


@target(InvalidInput)
def hub_references(draw):
    """The parts of a reference to Hugging Face, from names of folders."""
    parts = [draw.text(("a/b", "c.safetensors", "main", "..", "--")) for _ in range(3)]
    found = HuggingFaceFile(*parts)
    str(found).encode()
