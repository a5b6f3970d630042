"""A real S3 protocol server on loopback, which fails on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

from tests.stores.faults import Faults, failing

BUCKET = "bucket"
#: environment of whoever talks to it
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "canary-access",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-91b7",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3(faults: Faults) -> Iterator[str]:
    """Its address (host:port), behind the faults; the bucket is there."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    target = server.get_host_and_port()
    try:
        made = HTTPConnection(*target)
        made.request("PUT", f"/{BUCKET}")
        assert made.getresponse().status == 200
        with failing(target, faults) as address:
            yield address
    finally:
        server.stop()
