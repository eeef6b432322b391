"""A cluster that RAY_ADDRESS names: whether it answers, and asks for a token, as `unetpp doctor` and stages see it."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from pipelines import doctor
from pipelines.cluster import ray_cluster
from tests.servers import Answer, Server
from unetpp.errors import UserError


@pytest.fixture(params=["nobody", "another program"])
def stale(request) -> Iterator[str]:
    """An address at which no Ray cluster is any more."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
        if request.param == "another program":  # takes the connection, and says nothing
            yield address
            return
    yield address


def test_a_cluster_that_is_gone_is_named_in_time_and_what_to_do(stale, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy() | {"RAY_ADDRESS": stale})
    monkeypatch.setattr(ray_cluster, "CONNECT_S", 1)
    wanted = f"RAY_ADDRESS: {stale} does not answer in 1 s; start that cluster, or unset"
    with pytest.raises(UserError, match=wanted), ray_cluster.cluster():
        pass
    for address in (stale, f"http://{stale}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        found = doctor._ray()
        assert (found.found, found.advice) == (f"{address} does not answer", ray_cluster.START_IT)


@pytest.fixture
def unlocked() -> Iterator[list[str]]:
    """The addresses of a cluster that answers everybody: a stand-in; one with a token is in test_jobs.py."""

    class Nodes(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def GetAllNodeInfo(self, request, context):  # noqa: N802, ARG002 - Ray's names
            return getattr(gcs_service_pb2, "GetAllNodeInfoReply")()  # noqa: B009 - pyright knows no names of it

    head = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Nodes(), head)
    port = head.add_insecure_port("127.0.0.1:0")
    head.start()
    dashboard = Server(lambda _request, _body: Answer(200, {}, b"[]"))
    yield [f"127.0.0.1:{port}", dashboard.url]
    dashboard.close()
    head.stop(None)


def test_doctor_names_a_cluster_that_asks_for_no_token(unlocked, monkeypatch):
    for address in unlocked:
        monkeypatch.setenv("RAY_ADDRESS", address)
        found = doctor._ray()
        assert found.found == f"{address} answers without a token"
        assert "RAY_AUTH_MODE=token" in found.advice
