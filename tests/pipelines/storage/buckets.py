"""Buckets of a real store on loopback, seen through a proxy that can break what it passes on."""

from collections.abc import Callable
from itertools import count

import boto3

from pipelines.core.sections.ingest import Ingest
from tests.pipelines.storage.sources import located
from tests.servers import Answer, Request, Server, pass_on

NUMBERS = count()


class Bucket:
    """A new bucket of the store. `fault` may change each answer."""

    def __init__(self, moto: str):
        self.name = f"bucket-{next(NUMBERS)}"
        self.client = boto3.client("s3", endpoint_url=moto)
        self.client.create_bucket(Bucket=self.name)
        self.fault: Callable[[Request, Answer], Answer] = lambda _request, answer: answer
        forward = pass_on(moto)

        def answer(request: Request, body: bytes) -> Answer:
            return self.fault(request, forward(request, body))

        self.proxy = Server(answer)

    def put(self, files: dict[str, bytes], prefix: str = "set/") -> None:
        for key, content in files.items():
            self.client.put_object(Bucket=self.name, Key=prefix + key, Body=content)

    def params(self, prefix: str = "set", **s3) -> Ingest:
        params = located("s3", f"s3://{self.name}/{prefix}", num_workers=4)
        return params.model_copy(update={"s3": params.s3.model_copy(update={"endpoint": self.proxy.url} | s3)})

    def reads(self) -> list[Request]:
        """The reads of objects since the last call."""
        reads = [request for request in self.proxy.requests if request.is_object]
        self.proxy.requests.clear()
        return reads

    def close(self) -> None:
        self.proxy.close()
        self.client.close()
