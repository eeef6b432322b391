"""One registration at a time: by a file where the store is one, by a tag where it is a server."""

import io
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from pipelines.registry import lock as turns
from pipelines.registry.lock import TurnLostError, exclusive
from tests.waiting import wait_for


class Registry:
    """The tags of one registered model, as a server keeps them: each call takes its time, the last writer wins."""

    tracking_uri = "http://there"

    def __init__(self, delay_s: float = 0.002):
        self.tags: dict[str, str] = {}
        self.delay_s = delay_s

    def get_registered_model(self, _name):
        time.sleep(self.delay_s)
        return SimpleNamespace(tags=dict(self.tags))

    def set_registered_model_tag(self, _name, key, value):
        time.sleep(self.delay_s)
        self.tags[key] = value

    def delete_registered_model_tag(self, _name, key):
        time.sleep(self.delay_s)
        del self.tags[key]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(turns, "SETTLE_S", 0.1)
    monkeypatch.setattr(turns, "BEAT_S", 0.05)
    monkeypatch.setattr(turns, "STALE_S", 0.5)
    monkeypatch.setattr(turns, "random", SimpleNamespace(uniform=lambda _low, _high: 0.02))


@pytest.mark.usefixtures("quick")
def test_turns_on_a_server_never_overlap():
    registry, inside, most = Registry(), [], []

    def work():
        with exclusive(registry, "nuclei") as check:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.03)
            check()
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    assert registry.tags == {}


@pytest.mark.usefixtures("quick")
def test_turn_of_a_dead_process_is_taken_over_and_that_of_a_slow_one_is_renewed():
    registry = Registry()
    registry.tags[turns.TAG] = "host 1 abc 7"  # nobody renews it
    begun = time.monotonic()
    with exclusive(registry, "nuclei"):
        assert time.monotonic() - begun > turns.STALE_S
        mine, _ = registry.tags[turns.TAG].rsplit(" ", 1)
        wait_for(lambda: registry.tags[turns.TAG] == f"{mine} 3")


@pytest.mark.usefixtures("quick")
def test_process_whose_turn_was_taken_away_moves_nothing_and_leaves_the_other_its_turn():
    registry = Registry()
    with exclusive(registry, "nuclei") as check:
        check()
        registry.tags[turns.TAG] = "another 2 def 0"
        with pytest.raises(TurnLostError):
            check()
    assert registry.tags == {turns.TAG: "another 2 def 0"}


@pytest.mark.usefixtures("quick")
def test_write_that_took_too_long_gives_no_turn_and_is_told(capsys):
    """A write so slow that another may have settled in the meantime is taken back, and tried again."""
    registry = Registry(delay_s=0.2)
    tries = []

    def faster(_name, key, value):
        tries.append(value)
        registry.delay_s = 0.0
        time.sleep(0.2 if len(tries) == 1 else 0)
        registry.tags[key] = value

    registry.set_registered_model_tag = faster
    with exclusive(registry, "nuclei"):
        assert len(tries) >= 2
    assert "too long for a safe lock; trying again" in capsys.readouterr().out


@pytest.mark.slow
def test_file_store_is_locked_across_processes_and_freed_by_a_kill(tmp_path):
    path = tmp_path / "a folder/mlflow.db"
    path.parent.mkdir()
    code = (
        "import sys; from types import SimpleNamespace; from pipelines.registry.lock import exclusive\n"
        "with exclusive(SimpleNamespace(tracking_uri=sys.argv[1]), 'nuclei'):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    uri = f"sqlite:///{path}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, uri], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        entered = threading.Event()

        def enter():
            with exclusive(SimpleNamespace(tracking_uri=uri), "nuclei"):
                entered.set()

        thread = threading.Thread(target=enter)
        with redirect_stdout(io.StringIO()) as said:  # what capfd reads while a thread prints is lost at times
            thread.start()
            wait_for(lambda: "another registration is running in this store" in said.getvalue())
            assert not entered.is_set()
            other.kill()
            thread.join()
        assert entered.is_set()
