"""`unetpp predict` where images or masks lie in buckets, or a cluster predicts: what is refused, done and told."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.console.progress import watched
from pipelines.core.data_sections import S3
from pipelines.core.files import scratch
from pipelines.prediction.addresses import Item, Stores, check_address, find_objects, is_address, item_of, s3_settings
from pipelines.prediction.carried import carry, settle
from pipelines.prediction.images import find_images, searched
from pipelines.prediction.measurements import write_tables
from pipelines.prediction.opening import Asked, as_seen, find_model, open_model
from pipelines.prediction.outputs import Outputs
from pipelines.prediction.transfers import predicted
from pipelines.prediction.work import Work, plan, read_record
from unetpp.engines.family import Family
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.images.pictures import picture_size
from unetpp.inference.tiles import TILE_PX
from unetpp.threads import chosen_threads

TOLD = 100  # images that failed, by name


def predict_remotely(
    patterns: Sequence[str],
    model: str,
    asked: Asked,
    out: str,
    outputs: Outputs,
    overwrite: bool = False,
    threads: int | None = None,
    ray: str | None = None,
) -> None:
    """Predict images of buckets and of this machine, here or on a cluster, into a folder or a bucket.

    Args:
        patterns: s3://bucket/prefix, which is searched through, or of a single object; others as of `find_images`.
        threads: that compute; on a cluster those of a task, by default one.
        ray: None: this process predicts. "": tasks of Ray, on the cluster that RAY_ADDRESS names or on all cores of
            this machine. host:port: on the cluster there.

    Raises:
        UserError: no images, images of one name, something in the way, no store or cluster that answers, or images that
            could not be predicted, after all others were.
    """
    asked.check()
    if ray is not None and (address := ray or os.environ.get("RAY_ADDRESS")):
        os.environ["RAY_ADDRESS"] = check_ray(address)
    s3 = s3_settings()
    if is_address(out):
        check_address(out)
    else:
        out = os.path.abspath(out)  # as every process finds it, wherever it runs
    items, problems = _find(patterns, out, s3)
    family = find_model(model)
    outputs = outputs.of(family.about)
    outputs.check(family.about)
    work = Work(out, s3, outputs, {})
    if not overwrite:
        asked = _as_before(asked, family, read_record(work.place()))
    size = _first_size(items, family, work)
    threads = threads or (chosen_threads() if ray is None else 1)
    with ExitStack() as stack:
        opened = open_model(family, asked, size, threads)
        print(f"predicting with {opened.said}", flush=True)
        work = replace(work, record={"format": 1, **opened.how, "save": list(outputs.save)})
        todo = plan(items, family.about, work, overwrite)
        if len(todo) < len(items):
            print(f"{len(items) - len(todo)} of {len(items)} images are done already", flush=True)
        if ray is None or not todo:
            results = predicted(todo, opened, work, max(1, threads // 4))
        else:
            from pipelines.prediction.ray_tasks import predict_on_ray  # late: it needs Ray

            results = predict_on_ray(todo, carry(family, asked, opened, size), work, threads)
        stack.enter_context(closing(results))  # pyright: ignore[reportArgumentType] - both are generators
        results = watched(results, "predicting, images", len(todo))
        failed = {item.stem: why for item, why in results if why}
    if "measurements" in outputs.save and not is_address(out):
        write_tables(Path(out), sorted({item.stem for item in items} - failed.keys()), family.about)
    print(f"wrote {', '.join(outputs.save)} of {len(todo) - len(failed)} images to {out}")
    if broken := problems + sorted(failed.values()):
        more = f"\nand {len(broken) - TOLD} more" if len(broken) > TOLD else ""
        raise UserError(
            f"{len(broken)} of {len(todo) + len(problems)} images, links or folders could not be predicted:\n"
            + "\n".join(broken[:TOLD])
            + more
        )


def _as_before(asked: Asked, family: Family, record: dict[str, Any] | None) -> Asked:
    """What was chosen by measurement when a place was begun is not chosen anew, maybe on another machine."""
    if record is None or record.get("model") != family.about.sha256:
        return asked
    if asked.max_latency_ms is not None:
        return settle(family, asked, record)
    return replace(asked, engine=record["engine"]) if asked.engine == "auto" else asked


def _first_size(items: Sequence[Item], family: Family, work: Work) -> Size:
    """Of the first image, as the network sees it: by it the engine and the depth are chosen."""
    try:
        with scratch() as folder:
            image = items[0].fetch(folder / "first", Stores(work.s3).of(items[0]))
            size = picture_size(image, work.outputs.limits)
    except (UserError, OSError):  # who reads it will say so
        return TILE_PX, TILE_PX
    return as_seen(items[0].address, size, family.about)


def _find(patterns: Sequence[str], out: str, s3: S3) -> tuple[list[Item], list[str]]:
    """All images that are named, and what is no such file."""
    items: dict[str, Item] = {}
    problems: list[str] = []
    for address in filter(is_address, patterns):
        if f"{out.rstrip('/')}/".startswith(f"{address.rstrip('/')}/"):
            raise UserError(f"{out}: this output lies in {address}, which is read: give a place outside of it")
        items |= {item.address: item for item in find_objects(address, s3)}
    if local := [pattern for pattern in patterns if not is_address(pattern)]:
        files, problems = find_images(local)
        for folder in map(os.path.abspath, searched(local)):
            if f"{out}/".startswith(f"{folder}/"):
                raise UserError(f"{out}: this output lies in {folder}, which is read: give a place outside of it")
        items |= {str(file): item_of(Path(os.path.abspath(file))) for file in files}
    first: dict[str, Item] = {}
    for item in items.values():
        other = first.setdefault(item.stem, item)
        if other is not item:
            raise UserError(
                f"images of the same name would overwrite each other's mask: {other.address}, {item.address}; predict "
                "them apart"
            )
    return list(items.values()), problems


def check_ray(address: str) -> str:
    """Where a cluster is, as Ray takes it.

    Raises:
        UserError: not such an address.
    """
    if re.match("https?://", address):
        raise UserError(
            f"--ray {address}: found where jobs are sent; expected the host:port of a cluster's head (port 6379). From "
            f"elsewhere, send a job: ray job submit --address {address} -- unetpp predict s3://... --out s3://... --ray"
        )
    if not re.fullmatch(r"[\w.-]+:\d+|auto", address):
        raise UserError(
            f"--ray {address}: expected the host:port of a cluster's head (port 6379), or nothing after --ray: the "
            "cluster of RAY_ADDRESS, or else all cores of this machine; --ray is written after the images"
        )
    return address
