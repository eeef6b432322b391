"""A Ray cluster of several nodes on loopback, as a user would start one: `ray start`, a token, a dashboard."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import ray
import requests

from pipelines.cluster.ray_cluster import is_open, reaches
from tests.servers import free_port, listens
from tests.waiting import wait_for
from unetpp.offline import TELEMETRY_OFF


class RayCluster:
    """A head and more nodes, each of some CPUs; ended with all their processes by `close`.

    Attributes:
        address: http address of the dashboard, where jobs are sent.
        driver_address: what RAY_ADDRESS is for a stage that runs here and whose workers are the cluster's.
        env: what a client's environment must hold: the token, and no telemetry.
    """

    def __init__(self, num_nodes: int = 2, cpus: int = 1):
        # Short: the path of a socket has 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
        token = self._folder / "token"
        token.write_text(secrets.token_hex(16))
        token.chmod(0o600)
        self.env = os.environ | TELEMETRY_OFF | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.env |= {"RAY_TMPDIR": str(self._folder), "OMP_NUM_THREADS": "1"}
        self.env.pop("RAY_ADDRESS", None)
        self._gcs = free_port()
        self.driver_address = f"127.0.0.1:{self._gcs}"
        dashboard = free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.nodes: list[subprocess.Popen] = []
        head = ("--head", f"--port={self._gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1")
        resources = '--resources={"trial_driver": 100}'
        try:
            self._start(*head, f"--num-cpus={cpus}", resources, f"--temp-dir={self._folder}")
            wait_for(lambda: listens(dashboard), self.nodes[0], self._folder / "node-0.log")
            for _ in range(num_nodes - 1):
                self.add_node(cpus)
            self.wait_for_nodes(num_nodes)
        except BaseException:
            self.close()
            raise

    def add_node(self, cpus: int = 1) -> None:
        """One more raylet with its own resources."""
        self._start(f"--address={self.driver_address}", f"--num-cpus={cpus}")

    def wait_for_nodes(self, number: int) -> None:
        """Until so many nodes are alive, as the dashboard says."""
        log = self._folder / f"node-{number - 1}.log"
        wait_for(lambda: sum(node["state"] == "ALIVE" for node in self._known()) == number, log=log)

    def _known(self) -> list[dict]:
        """The nodes that there are and that there were, as the dashboard has them; none where it does not answer."""
        headers = {"Authorization": f"Bearer {Path(self.env['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        answer = requests.get(f"{self.address}/api/v0/nodes?detail=1", headers=headers, timeout=10)
        return answer.json()["data"]["result"]["result"] if answer.ok else []

    def trials(self) -> list[int]:
        """The ids of the processes that run a trial of Ray Tune now."""
        return self.running("ImplicitFunc")

    def running(self, what: str, *numbers: int) -> list[int]:
        """The ids of the processes that run a task or an actor of this name now, on these nodes or on any."""
        nodes = [self.nodes[number] for number in numbers] or self.nodes
        found = []
        for process in (process for node in nodes for process in _family(node.pid)):
            with suppress(psutil.NoSuchProcess):
                if what in " ".join(process.cmdline()[:1]):
                    found.append(process.pid)
        return found

    def drain_node(self, number: int, notice_s: int) -> None:
        """Tell Ray, as a cloud's provider does, that a node is going to be taken away."""
        node = sorted(self._known(), key=lambda one: one["start_time_ms"])[number]["node_id"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.driver_address}"]
        command += [f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        command += [f"--deadline-remaining-seconds={notice_s}"]
        subprocess.run(command, env=self.env, check=True, capture_output=True)

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=200000000", *arguments]
        # By itself each node's agent takes port 52365, and a second one on the machine never runs a job.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        with open(self._folder / f"node-{len(self.nodes)}.log", "w") as log:
            self.nodes.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True))

    def kill_node(self, number: int) -> None:
        """SIGKILL of a node's raylet and all that runs under it."""
        for process in _family(self.nodes[number].pid):
            process.kill()

    def close(self) -> None:
        """End every process of the cluster, jobs and workers too, and remove its files."""
        # Their command lines name the session's folder; some leave their parent, which is not waited for.
        mine = [process for node in self.nodes for process in _family(node.pid)]
        mine += [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self._folder) in part for part in process.info["cmdline"] or ())
        ]
        for process in mine:
            if process.is_running():
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(mine, timeout=10)
        for node in self.nodes:
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def assert_locked(pid: int) -> None:
    """A stage's own Ray, while it runs: nothing of it listens on another address than loopback, nor without a token."""
    assert ray.__version__.startswith("2.60."), "look whether RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER still does it"
    listening = []
    for process in _family(pid):
        with suppress(psutil.NoSuchProcess):  # a helper that has ended meanwhile
            name, sockets = process.name(), process.net_connections("inet")
            listening += [(name, one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN]
    loopback = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    assert [one for one in listening if one[1].ip not in loopback] == []
    [gcs] = {f"127.0.0.1:{at.port}" for name, at in listening if name == "gcs_server" and is_answered(at.port)}
    assert not is_open(gcs)


def is_answered(port: int) -> bool:
    return reaches(f"127.0.0.1:{port}", 5)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
