"""A real S3 server on loopback (moto's), with one bucket in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEY_ID = "key-id-0123456789"
SECRET = "secret-half/0123456789+abcdef"
NAME = "pictures"

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its access log


@dataclass(frozen=True)
class S3Server:
    """The server; `client` is the test's own client."""

    endpoint: str
    client: Any

    def environ(self) -> dict[str, str]:
        """The settings with which a worker uploads to it."""
        return {
            "BUCKET_ENDPOINT_URL": self.endpoint,
            "BUCKET_NAME": NAME,
            "BUCKET_ACCESS_KEY_ID": KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
        }

    def files(self) -> dict[str, tuple[str, bytes]]:
        """Key -> content type and content."""
        found = {}
        for one in self.client.list_objects_v2(Bucket=NAME).get("Contents", []):
            answer = self.client.get_object(Bucket=NAME, Key=one["Key"])
            found[one["Key"]] = (answer["ContentType"], answer["Body"].read())
        return found


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run it, with an empty bucket.

    Not for a fixture of the session: all servers of a test process have the same buckets.
    """
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
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
        client.create_bucket(Bucket=NAME)
        running = S3Server(endpoint, client)
        yield running
        for key in running.files():
            client.delete_object(Bucket=NAME, Key=key)
        client.delete_bucket(Bucket=NAME)
        client.close()
    finally:
        server.stop()
