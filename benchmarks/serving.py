"""Latency of a served model on loopback, at one client and at several, and whether every request is answered right.

    MLFLOW_TRACKING_URI=sqlite:///mlflow.db python benchmarks/serving.py --model models:/unetpp-nuclei@champion \\
        --out benchmarks/serving.md

    python benchmarks/serving.py --memory 1000 5000

The second form says what a request with a PNG file of so many pixels square takes beyond the process at rest, which
bounds a worker: it holds one image at a time. The network has the widths of `make demo`.

Starts `mlflow models serve` as the guide says, asks it with PNG files of the synthetic generator, and ends it. Beside
the server's time stands that of the same network in this process, on the same images: the difference is HTTP, JSON and
PNG.
"""

import argparse
import base64
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import psutil

START_S = 180


@contextmanager
def serving(model: str, log: Path, port: int | None = None) -> Iterator[tuple[str, int]]:
    """`mlflow models serve -m MODEL --env-manager local` on loopback; yields host and port, and ends it by its pid."""
    if port is None:
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


def load(address: tuple[str, int], bodies: list[bytes], num_clients: int, num_requests: int) -> dict[str, float]:
    """Ask from several threads; each body's answers must all be the same as the first, which was asked alone.

    Returns:
        latencies in ms (median_ms, p95_ms, p99_ms), requests_per_s, and lost: those not answered, or wrongly.
    """
    right = [post(address, "/invocations", body) for body in bodies]
    assert all(status == 200 for status, _ in right), right[0]
    numbers, latencies, lost = iter(range(num_requests)), [], []
    turn = threading.Lock()

    def client() -> None:
        while True:
            with turn:
                number = next(numbers, None)
            if number is None:
                return
            index, began = number % len(bodies), time.perf_counter()
            try:
                answer = post(address, "/invocations", bodies[index])
            except OSError as error:
                answer = (0, repr(error).encode())
            latencies.append((time.perf_counter() - began) * 1000)
            if answer != right[index]:
                lost.append(answer)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    median, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return {
        "median_ms": median,
        "p95_ms": p95,
        "p99_ms": p99,
        "requests_per_s": len(latencies) / seconds,
        "lost": len(lost) + num_requests - len(latencies),
    }


def images_of(size_px: int, number: int) -> list[np.ndarray]:
    """Synthetic images (size, size, 3) uint8."""
    from pipelines.storage.synthetic import make_image

    images = [make_image(index, 7, size_px)[0] for index in range(number)]
    return [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]


def in_process_ms(model: str, images: list[np.ndarray]) -> float:
    """Median time of the served object's own predict, in this process."""
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(model)
    times = []
    for image in images * 3:
        began = time.perf_counter()
        loaded.predict(image)
        times.append((time.perf_counter() - began) * 1000)
    return float(np.median(times[len(images) :]))  # the first round warms up


def describe(model: str) -> str:
    """The network behind a registered version, in a sentence."""
    import unetpp
    from unetpp.images.frame import say_size

    trained = unetpp.load(model)
    resized = f"; images are resized to {say_size(trained.size)}" if trained.size else ""
    return f"The network: depth {trained.network.depth}, widths {', '.join(map(str, trained.network.widths))}{resized}."


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
    parser.add_argument("--model", help="models:/NAME@ALIAS")
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIDE", help="measure this alone")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory)
        return
    if arguments.model is None:
        parser.error("--model is missing")
    rows = []
    log = Path(f"/tmp/serving-{os.getpid()}.log")
    with serving(arguments.model, log) as address:
        for size in (96, 256, 1024):
            images = images_of(size, 3)
            bodies = [as_request([image], encoding="png") for image in images]
            alone = in_process_ms(arguments.model, images)
            for clients in (1, 8):
                found = load(address, bodies, clients, arguments.requests if size < 1024 else arguments.requests // 5)
                rows.append((size, clients, found, alone))
                print(size, clients, found, alone, flush=True)
    log.unlink()
    lines = [
        "# `mlflow models serve` on loopback",
        "",
        f"`python benchmarks/serving.py --model {arguments.model} --requests {arguments.requests} "
        "--out benchmarks/serving.md`",
        "",
        f"Read on {platform.machine()}, {os.cpu_count()} cores, one worker, clients on the same cores. A request is "
        "one PNG file in base64, the answer a mask as PNG. `alone` is the same network's predict of the pixels in a "
        "process of its own: what is more is HTTP, JSON and PNG. `lost` counts requests without the answer that the "
        "same request gets alone.",
        "",
        describe(arguments.model),
        "",
        "| image | clients | median ms | p95 ms | p99 ms | requests/s | lost | alone, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size, clients, found, alone in rows:
        cells = [found["median_ms"], found["p95_ms"], found["p99_ms"], found["requests_per_s"]]
        numbers = " | ".join(f"{cell:.0f}" for cell in cells)
        lines.append(f"| {size}x{size} | {clients} | {numbers} | {found['lost']:.0f} | {alone:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
