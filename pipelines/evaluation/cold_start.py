"""How long a new process takes from its start to the first prediction with a model file.

    python -m pipelines.evaluation.cold_start SPEC.json

starts, imports what the engine needs, and reports how long that took. Then it forks for each model: each fork has not
predicted anything yet, loads the file, and predicts one image. So the imports, which are the same for all depths and
take seconds, are done once per measurement, and only what differs is measured for each.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile

from unetpp.images.frame import Size

ROUNDS = 3


def measure_cold_start(
    files: Mapping[str, Path],
    ensembles: set[str],
    size: Size,
    device: str,
    max_s: float,
    engine: str = "torch",
    exports: Path | None = None,
) -> dict[str, float]:
    """Milliseconds from the start of the process to the first mask, by name: imports, and the median of 3 loads.

    Args:
        files: model files by name.
        ensembles: the names for which all heads are averaged.
        max_s: seconds after which no further round starts; one is always done.
        engine: the engine of each depth, from `exports` unless it is one of torch's; ensembles always run in torch.

    Raises:
        RuntimeError: the process failed; the message contains its output.
    """
    from pipelines.console.progress import watched  # late: the measured process does not need it

    models = [[name, str(path), name in ensembles] for name, path in files.items()]
    spec: dict = {"models": models, "size": size, "device": device, "max_s": max_s, "began": time.monotonic()}
    spec |= {"engine": engine, "exports": None if exports is None else str(exports)}
    command = [sys.executable, "-m", "pipelines.evaluation.cold_start", json.dumps(spec)]
    root = str(Path(__file__).parents[2])
    # An empty entry of the path would mean the working directory.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    load_ms: dict[str, list[float]] = {name: [] for name in files}
    with (
        TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        start_ms = float(process.stdout.readline() or "nan")
        for line in watched(process.stdout, f"cold start on {device}, loads", ROUNDS * len(files)):
            name, took = json.loads(line)
            load_ms[name].append(took)
        if process.wait():
            said.seek(0)
            raise RuntimeError(
                f"the process that measures the cold start ended with exit code {process.returncode}: {said.read()}"
            )
    return {name: start_ms + median(times) for name, times in load_ms.items()}


def _main(spec: dict) -> None:
    import numpy as np

    from unetpp.engines.family import find_family, open_engine

    of_torch = spec["engine"].startswith("torch")
    if of_torch:
        importlib.import_module("torch")
    start_ms = (time.monotonic() - spec["began"]) * 1000
    exports = spec["exports"] and Path(spec["exports"])

    def predict_first(file: str, ensemble: bool) -> None:
        family, name = find_family(file), "torch" if ensemble else spec["engine"]
        family = replace(family, exports=exports)  # those of the whole network; `file` contains one depth
        engine = open_engine(family, name=name, heads="mean" if ensemble else None, device=spec["device"])
        engine(np.zeros((1, family.about.in_channels, *spec["size"]), np.float32))

    print(start_ms, flush=True)
    began = time.monotonic()
    for number in range(ROUNDS):
        if number and time.monotonic() - began > spec["max_s"]:
            break
        for name, file, ensemble in spec["models"]:
            took = _time_in_a_copy(lambda file=file, ensemble=ensemble: predict_first(file, ensemble))
            print(json.dumps([name, took]), flush=True)


def _time_in_a_copy(work: Callable[[], None]) -> float:
    """Milliseconds that `work` takes in a fork of this process."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)  # without the parent's exit handlers
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("a fork failed to predict")
    return (time.monotonic() - began) * 1000


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
