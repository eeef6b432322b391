"""Prediction as Ray tasks: each predicts a part of the images in any free process, and is retried if that is lost."""

import atexit
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from pipelines.cluster.ray_cluster import check_fits, cluster, how_many_fit
from pipelines.core.files import scratch
from pipelines.prediction.addresses import Item
from pipelines.prediction.carried import Carried
from pipelines.prediction.opening import Opened
from pipelines.prediction.transfers import Done, predicted
from pipelines.prediction.work import Work
from unetpp.errors import UserError, said

PART_IMAGES, PART_BYTES = 256, 2**26  # at most, per task
RETRIES = 3  # of a task whose process or node was lost
_opened: dict[str, Opened] = {}  # in a Ray process: the open model, by the id of the Ray object that holds it


def predict_on_ray(items: Sequence[Item], carried: Carried, work: Work, threads: int = 1) -> Iterator[Done]:
    """Predict images on the cluster that RAY_ADDRESS names, or on all cores of this machine; yields in any order.

    Args:
        threads: cores per task.

    Raises:
        UserError: no such cluster, or a node of it cannot open the model or the files.
    """
    with cluster():  # before Ray is imported: Ray reads settings at its import
        import ray
        from ray.exceptions import RayError, RayTaskError

        check_fits("--ray", 1, threads, False, "lower --threads")
        # If there are GPUs, every task uses one, so that masks do not depend on the node.
        use_gpu = carried.asked.engine.startswith("torch") and how_many_fit(threads, True) > 0
        model = ray.put(carried)  # once to each node
        task = ray.remote(num_cpus=threads, num_gpus=int(use_gpu), max_retries=RETRIES)(_predict_part)
        waiting = deque(_parts(items, how_many_fit(threads, use_gpu)))
        running: dict[Any, list[Item]] = {}
        while waiting or running:
            while waiting and len(running) < 2 * max(1, how_many_fit(threads, use_gpu)):
                part = waiting.popleft()
                running[task.remote([model], work, part, threads)] = part
            [ready], _ = ray.wait(list(running), num_returns=1)
            part = running.pop(ready)
            try:
                found = ray.get(ready)
            except RayTaskError:  # a bug of ours
                raise
            except RayError as error:  # its process or node was lost more often than it is retried
                if len(part) == 1:
                    yield part[0], f"{part[0].address}: the process died {RETRIES + 1} times ({said(error)})"
                waiting.extendleft([one] for one in part if len(part) > 1)  # perhaps only one image causes it
                continue
            if isinstance(found, UserError):
                raise found
            yield from zip(part, found, strict=True)


def _parts(items: Sequence[Item], slots: int) -> Iterator[list[Item]]:
    """Items in parts of a few seconds: several per process, so that all processes end at about the same time."""
    most = max(1, min(PART_IMAGES, len(items) // (4 * max(1, slots))))
    part, size = [], 0
    for item in items:
        if part and (len(part) == most or size + item.size > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += item.size
    if part:
        yield part


def _predict_part(model: list[Any], work: Work, part: list[Item], threads: int) -> list[str | None] | UserError:
    """Runs in a Ray process. Returns None or the reason of failure per image, or an error that concerns all images."""
    import ray

    try:
        work.check_sees(part)
        name = model[0].hex()
        if name not in _opened:
            stack = ExitStack()
            atexit.register(stack.close)
            _opened.clear()
            carried: Any = ray.get(model[0])
            try:
                _opened[name] = carried.open(stack.enter_context(scratch()), threads)
            except UserError as error:
                raise UserError(f"{socket.gethostname()} (a node of the cluster): {error}") from None
        why = dict(predicted(part, _opened[name], work, max(1, threads // 4)))
    except UserError as error:
        return error
    return [why[item] for item in part]
