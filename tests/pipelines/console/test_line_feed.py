"""Lines that processes append to a file, and the thread that hands them on."""

import json
import subprocess
import sys
import time

from pipelines.console import line_feed


def test_half_a_line_waits_for_its_rest():
    found = []
    with line_feed.feed(found.append) as path:
        path.write_text("on")
        time.sleep(2 * line_feed.EVERY_S)
        assert found == []
        line_feed.append(path, "e")
        line_feed.append(path, "two")
    assert found == ["one", "two"]


def test_lines_of_several_processes_arrive_whole():
    code = (
        "import sys; from pathlib import Path; from pipelines.console.line_feed import append\n"
        "for number in range(300): append(Path(sys.argv[1]), f'[{sys.argv[2]}, {number}, \"' + 'x' * 500 + '\"]')"
    )
    found = []
    with line_feed.feed(lambda line: found.append(json.loads(line)[:2])) as path:
        writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(one)]) for one in (1, 2)]
        assert [writer.wait() for writer in writers] == [0, 0]
    assert [number for one, number in found if one == 1] == list(range(300))
    assert sorted(found) == [[one, number] for one in (1, 2) for number in range(300)]
