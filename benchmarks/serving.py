"""Latency of a served model on loopback, by engine and by budget, at one client and at eight.

    python -m benchmarks.serving --out benchmarks/serving.md
    python -m benchmarks.serving --memory 1000 5000

The second form says what a request with a PNG file of so many pixels square takes beyond the process at rest, which
bounds a worker: it holds one image at a time. The network has the widths of `make demo`.

Makes a version of random weights with its exports, starts `mlflow models serve` as the guide says, asks it with PNG
files of the synthetic generator, and ends it.
"""

import argparse
import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch

from benchmarks.machine import describe, head

START_S = 180
WIDTHS = (16, 32, 64, 128, 256)
PAGE = """{head}
One worker, clients on the same cores. The network: depth {depth}, widths {widths}, random weights. A request is one PNG
file in base64, the answer a mask as PNG.

## Engines

At the version's own depth, from the client's side. `auto` shows the engine that it chose. `lost` counts requests
without the answer that the same request gets alone.

| image | engine | clients | median ms | p95 ms | p99 ms | requests/s | lost |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
{engines}

## Depth by budget

By the engine that `auto` chooses, from arrival in the model to the answer (HTTP, JSON and MLflow's own queue are not in
it). The budgets are 2, 0.5 and 3 times what the deepest depth takes alone.
With `degrade` a request that finds an empty queue uses its whole budget; requests that arrive meanwhile have less time
left, and may be late.

| image | clients | budget ms | degrade | answered at | in time | median ms | p95 ms | answers/s |
| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |
{budgets}
"""


@contextmanager
def serving(model: str, log: Path) -> Iterator[tuple[str, int]]:
    """`mlflow models serve -m MODEL --env-manager local` on loopback; yields host and port, and ends it by its pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield "127.0.0.1", port
    finally:
        # The command and the uvicorn that it starts.
        root = psutil.Process(process.pid)
        tree = [root, *root.children(recursive=True)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(tree, timeout=20)[1]:
            one.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return post(("127.0.0.1", port), "/ping", None)[0] == 200
    except OSError:
        return False


def post(address: tuple[str, int], path: str, body: bytes | None) -> tuple[int, bytes]:
    """Status and answer of a request; GET without a body."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def as_request(images: list[np.ndarray], **params) -> bytes:
    """Images (H, W, 3) as the body of a request: PNG files in base64."""
    files = [base64.b64encode(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()).decode() for image in images]
    return json.dumps({"inputs": files, "params": params}).encode()


def ask_from_many(
    address: tuple[str, int], bodies: list[bytes], num_clients: int, num_requests: int
) -> tuple[list[tuple[int, bytes, float]], float]:
    """Ask from several threads; request n has body n modulo their number.

    Returns:
        of each request in order its status (0: none came), its answer and milliseconds; and seconds of all.
    """
    found: dict[int, tuple[int, bytes, float]] = {}

    def ask(number: int) -> None:
        began = time.perf_counter()
        try:
            status, answer = post(address, "/invocations", bodies[number % len(bodies)])
        except OSError as error:
            status, answer = 0, repr(error).encode()
        found[number] = (status, answer, (time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        list(clients.map(ask, range(num_requests)))
    return [found[number] for number in range(num_requests)], time.perf_counter() - began


def load(address: tuple[str, int], bodies: list[bytes], num_clients: int, num_requests: int) -> dict[str, float]:
    """Ask from several threads; each body's answers must all be the same as the first, which was asked alone.

    Returns:
        latencies in ms (median_ms, p95_ms, p99_ms), requests_per_s, and lost: those not answered, or wrongly.
    """
    right = [post(address, "/invocations", body) for body in bodies]
    assert all(status == 200 for status, _ in right), right[0]
    answers, seconds = ask_from_many(address, bodies, num_clients, num_requests)
    median, p95, p99 = np.percentile([ms for *_, ms in answers], [50, 95, 99])
    lost = sum((status, answer) != right[n % len(right)] for n, (status, answer, _) in enumerate(answers))
    return {"median_ms": median, "p95_ms": p95, "p99_ms": p99, "requests_per_s": num_requests / seconds, "lost": lost}


def images_of(size_px: int, number: int) -> list[np.ndarray]:
    """Synthetic images (size, size, 3) uint8."""
    from pipelines.storage.synthetic import make_image

    images = [make_image(index, 7, size_px)[0] for index in range(number)]
    return [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]


def make_model(folder: Path) -> None:
    """A version as register writes one, with exports of all depths; of random weights, which take as long as others."""
    import torch

    from pipelines.core.checksums import seal
    from pipelines.core.files import write_json
    from pipelines.export import FILES, write_depth
    from pipelines.registry.model_versions import write_model
    from unetpp import NestedUNet, Trained
    from unetpp.engines.engine import ENGINES
    from unetpp.engines.family import MEASURED, find_family
    from unetpp.files import sha256
    from unetpp.models.model_file import MODEL

    torch.manual_seed(0)
    trained = Trained(NestedUNet(WIDTHS).eval(), None)
    write_model(folder, trained, trained.network.depth)
    own = {"model_sha256": sha256(folder / MODEL)}
    images, entries, rows = [(image.transpose(2, 0, 1) / 255).astype(np.float32) for image in images_of(96, 4)], [], []
    exports, formats = folder / "exports", ("onnx", "onnx-int8")
    exports.mkdir()
    for depth in trained.network.depths:
        write_depth(trained, depth, formats, exports / f"L{depth}", 20, images)
        for name in formats:
            file = f"L{depth}/{FILES[name]}"
            entries.append({"depth": f"L{depth}", "format": name, "file": file, "sha256": sha256(exports / file)})
    write_json(exports / "exports.json", own | {"exports": entries})
    family = find_family(folder)
    for depth in trained.network.depths:
        for name in family.engines(depth):
            entry = family.files.get((depth, ENGINES[name].format or ""), {"file": None, "sha256": None})
            row = {"depth": f"L{depth}", "engine": name, "difference_iou": 0.0, "within": True}
            rows.append(row | {key: entry[key] for key in ("file", "sha256")})
    write_json(folder / MEASURED, own | {"format": 1, "engines": rows})
    seal(folder)


def engine_rows(address: tuple[str, int], size: int, num_requests: int) -> list[str]:
    """A line for each engine and number of clients, at the version's own depth."""
    images, lines = images_of(size, 3), []
    for name in ("torch", "auto"):
        bodies = [as_request([image], encoding="png", engine=name) for image in images]
        asked = as_request(images[:1], encoding="png", engine=name, details=True)
        (said,) = json.loads(post(address, "/invocations", asked)[1])["predictions"]
        named = name if name == said["engine"] else f"{name}: {said['engine']}"
        for clients in (1, 8):
            found = load(address, bodies, clients, num_requests)
            numbers = (f"{found[key]:.0f}" for key in ("median_ms", "p95_ms", "p99_ms", "requests_per_s", "lost"))
            lines.append(f"| {size}x{size} | {named} | {clients} | {' | '.join(numbers)} |")
            print(lines[-1], flush=True)
    return lines


def budget_rows(address: tuple[str, int], size: int, num_requests: int) -> list[str]:
    """A line for each budget, as a multiple of what the deepest depth takes alone in the model."""
    images, lines = images_of(size, 3), []

    def ask(clients: int, number: int, **params) -> tuple[list[dict], float]:
        bodies = [as_request([image], encoding="png", details=True, **params) for image in images]
        answers, seconds = ask_from_many(address, bodies, clients, number)
        assert all(status == 200 for status, *_ in answers), answers[0]
        return [json.loads(answer)["predictions"][0] for _, answer, _ in answers], number / seconds

    ask(1, 3, max_latency_ms=1e6)  # measures
    deepest_ms = float(np.median([one["latency_ms"] for one in ask(1, 20)[0]]))
    for clients, times, degrade in ((1, 2, False), (1, 0.5, False), (8, 3, False), (8, 3, True)):
        budget_ms = round(times * deepest_ms, 1)
        found, rate = ask(clients, num_requests, max_latency_ms=budget_ms, degrade=degrade)
        depths = Counter(one["depth"] for one in found)
        shares = ", ".join(f"L{depth} {depths[depth] / len(found):.0%}" for depth in sorted(depths))
        median, p95 = np.percentile([one["latency_ms"] for one in found], [50, 95])
        within = sum(one["within"] for one in found) / len(found)
        cells = (f"{size}x{size}", clients, f"{budget_ms:g}", "yes" if degrade else "no", shares)
        cells += (f"{within:.0%}", f"{median:.1f}", f"{p95:.1f}", f"{rate:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
        print(lines[-1], flush=True)
    return lines


MEASURE = """
import resource, sys, cv2, numpy, torch
from pipelines.served import Served
from unetpp import NestedUNet, Trained
torch.set_num_threads(1)
served = Served(Trained(NestedUNet((8, 16, 32, 64)).eval(), None))
served.predict(numpy.zeros((64, 64, 3), numpy.uint8))
content = cv2.imencode(".png", numpy.zeros((int(sys.argv[1]),) * 2, numpy.uint8))[1].tobytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
served.predict(content, {"encoding": "png"})
print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""


def measure_memory(sides: list[int]) -> None:
    """Print the peak memory of an image of each side, in a process of its own."""
    for side in sides:
        done = subprocess.run([sys.executable, "-c", MEASURE, str(side)], capture_output=True, text=True, check=True)
        print(f"{side} x {side} px: {int(done.stdout):,} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIDE", help="measure this alone")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory)
        return
    engines, budgets = [], []
    with tempfile.TemporaryDirectory(prefix="serving-") as parent:
        folder = Path(parent) / "model"
        make_model(folder)
        machine = describe(peaks=[torch.float32])
        with serving(str(folder), Path(parent) / "log") as address:
            for size in (96, 256):
                engines += engine_rows(address, size, arguments.requests)
                budgets += budget_rows(address, size, arguments.requests)
    command = f"python -m benchmarks.serving --requests {arguments.requests} --out benchmarks/serving.md"
    text = PAGE.format(
        head="\n".join(head("`mlflow models serve` on loopback", command, machine)),
        depth=len(WIDTHS) - 1,
        widths=", ".join(map(str, WIDTHS)),
        engines="\n".join(engines),
        budgets="\n".join(budgets),
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
