"""Real stores on loopback: PostgreSQL of its own cluster, and `mlflow server` with log-in and allowed hosts."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.servers import free_port

HELP = "no PostgreSQL server on this machine (on Debian: apt-get install postgresql)"


def find_postgres() -> Path | None:
    """The folder of initdb and pg_ctl, of the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    program = shutil.which("initdb") or (found[-1] if found else None)
    return Path(program).parent if program else None


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> None:
    """Until `what` is true; fails after the time."""
    give_up = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.02)


class Postgres:
    """A cluster in a folder of its own, that ends with `close`; its databases are made by `create`."""

    def __init__(self):
        bin = find_postgres()
        assert bin is not None, HELP
        self._bin, self.port = bin, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="unetpp-postgres-"))
        # It refuses to run as root. Debian's package has made this user.
        self._as: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["runuser", "-u", "postgres", "--"]
        (self.folder / "password").write_text("secret word")
        os.chmod(self.folder / "password", 0o644)
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", f"{self.folder}/password")
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", data, "-o", options, "-l", f"{self.folder}/log", "-w", "start")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._bin / program), *arguments]
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()

    def create(self, name: str) -> str:
        """A new database; returns its address for MLflow, with the password quoted as addresses want it."""
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="mlflow", password="secret word", dbname="postgres"
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
        connection.close()
        return f"postgresql://mlflow:secret%20word@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder)


class MlflowServer:
    """`mlflow server` as a process of its own, on a port of its own, or on that of one before it."""

    def __init__(
        self, folder: Path, store: str, artifacts: str, *options: str, port: int | None = None, **environment: str
    ):
        folder.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "server.log").open("w")
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | environment
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        env["MLFLOW_BACKEND_STORE_URI"] = store  # not an argument: it holds a password
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--artifacts-destination", artifacts, *options]
        self._process = subprocess.Popen(
            command, cwd=folder, stdout=self._log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        for _ in range(1800):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.1)
        self.close()
        raise TimeoutError((folder / "server.log").read_text())

    def close(self) -> None:
        os.killpg(self._process.pid, 15)  # its own session: the server and its worker
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait(20)
        self._log.close()
