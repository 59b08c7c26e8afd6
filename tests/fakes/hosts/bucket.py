"""A real S3 server on loopback (moto's), with one bucket in it; or as RunPod's volumes have it."""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

KEY_ID = "key-id-0123456789"
SECRET = "secret-half/0123456789+abcdef"
NAME = "pictures"
VOLUME = "0volume0id"

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its access log


@dataclass(frozen=True)
class S3Server:
    """The server; `client` is the test's own client."""

    endpoint: str
    client: Any
    name: str = NAME

    def environ(self) -> dict[str, str]:
        """The settings with which a worker uploads to it."""
        return {
            "BUCKET_ENDPOINT_URL": self.endpoint,
            "BUCKET_NAME": self.name,
            "BUCKET_ACCESS_KEY_ID": KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
        }

    @contextmanager
    def another_bucket(self) -> Iterator[str]:
        """The name of a second bucket; all servers of a process have it, so no other one has."""
        with _bucket(self.client, f"bucket-{uuid.uuid4().hex[:12]}") as name:
            yield name

    def keys(self) -> tuple[SecretStr, SecretStr]:
        """Id and secret of its key."""
        return SecretStr(KEY_ID), SecretStr(SECRET)

    def status_of(self, url: str) -> int:
        """The status of a GET."""
        return requests.get(url, timeout=10).status_code

    def files(self, bucket: str = "") -> dict[str, tuple[str, bytes]]:
        """Key -> content type and content."""
        found, bucket = {}, bucket or self.name
        for one in self.client.list_objects_v2(Bucket=bucket).get("Contents", []):
            answer = self.client.get_object(Bucket=bucket, Key=one["Key"])
            found[one["Key"]] = (answer["ContentType"], answer["Body"].read())
        return found


class _VolumeServer(ThreadedMotoServer):
    """S3 as RunPod's network volumes have it: no signed URLs, a limit for the size of a request.

    After storage/s3-api.mdx of RunPod's documents, which do not name the errors' codes.
    """

    def __init__(self, most: int) -> None:
        super().__init__("127.0.0.1", port=0, verbose=False)
        self._most = most

    def _server_entry(self) -> None:
        self._server = make_server("127.0.0.1", 0, self._checked(), threaded=True)
        self._server_ready_event.set()
        self._server.serve_forever()

    def _checked(self) -> Callable[..., Any]:
        volume = DomainDispatcherApplication(create_backend_app)

        def app(environ: dict[str, Any], start: Any) -> Any:
            if "Signature=" in environ["QUERY_STRING"]:
                return _refusal(403, "AccessDenied")(environ, start)
            if int(environ.get("CONTENT_LENGTH") or 0) > self._most:
                return _refusal(400, "EntityTooLarge")(environ, start)
            # moto would take the first label of RunPod's host for the bucket.
            return volume({**environ, "HTTP_HOST": "127.0.0.1"}, start)

        return app


def _refusal(status: int, code: str) -> Response:
    return Response(f"<Error><Code>{code}</Code></Error>", status, content_type="application/xml")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run it, with an empty bucket.

    Not for a fixture of the session: all servers of a test process have the same buckets.
    """
    with _running(ThreadedMotoServer("127.0.0.1", port=0, verbose=False)) as server:
        yield server


@contextmanager
def volume_server(most: int = 500_000_000) -> Iterator[S3Server]:
    """Run RunPod's form of it; `most` is how many bytes one request may have."""
    with _running(_VolumeServer(most), VOLUME) as server:
        yield server


@contextmanager
def _running(server: ThreadedMotoServer, name: str = NAME) -> Iterator[S3Server]:
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )
        with _bucket(client, name):
            yield S3Server(endpoint, client, name)
        client.close()
    finally:
        server.stop()


@contextmanager
def _bucket(client: Any, name: str) -> Iterator[str]:
    """A new bucket, which is removed with its files."""
    client.create_bucket(Bucket=name)
    yield name
    for one in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=one["Key"])
    client.delete_bucket(Bucket=name)
