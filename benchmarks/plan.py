"""What a plan finds in a dataset, how long that takes, and what its choices are worth (benchmarks/plan.md).

    python -m benchmarks.plan see FOLDER ...
    python -m benchmarks.plan score FOLDER --minutes 4 --work /tmp/scores

`score` trains the plan's network, and one of the same widths on images squeezed to 96x96 with all flips and turns, as
the defaults have it, for as many seconds of one thread, and compares both at the images' own size.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from pipelines.core.params import Params, load_params, override
from pipelines.evaluate import evaluate
from pipelines.ingest import ingest
from pipelines.planning.choices import Plan
from pipelines.planning.plan import make_plan
from pipelines.planning.probe import Counts, try_out
from pipelines.planning.survey import MEANING, laid_out, survey
from pipelines.prepare import prepare
from pipelines.training.epochs import epochs
from pipelines.training.results import write_results
from pipelines.training.spec import make_spec

SHOWN = ("prepare.size", "train.crop_px", "search.widths", "augment.flips", "augment.quarter_turns", "train.epochs")
# Of the plan's choices those that the defaults are given too: what is there, what masks mean, and the network.
SHARED = MEANING | {"prepare.pages", "prepare.channels", "prepare.kinds", "prepare.shares", "prepare.salt"}
SHARED |= {"search.widths", "ingest.kind", "ingest.location", "evaluate.boundary_tolerance_px"}
ALONE = {"train.num_workers": 1, "train.cpus_per_worker": 1, "evaluate.latency_rounds": 3}
CPU = torch.device("cpu")


def see(folder: str) -> None:
    base = load_params()
    began = time.process_time()
    with laid_out(folder, base.ingest, Plan()) as (raw, layout, names):
        found = survey(raw, layout, folder, names, base, Plan())
    seen = found.orientation
    print(
        f"{folder}: {found.facts.num_images} pairs, {time.process_time() - began:.1f} s of a processor; told from "
        f"mirrored copies {seen.mirrored:.2f}, from turned ones {seen.turned:.2f} of {seen.num}, limit "
        f"{seen.limit:.2f}; classes {found.facts.width_px:.0f} px wide"
    )
    plan = make_plan(folder, "plan", base=base)
    print("  " + ", ".join(f"{key} {plan.values.get(key)}" for key in SHOWN))
    print(f"  {plan.cost}")


def train(params: Params, raw: Path, out: Path) -> float:
    """Prepare and train; returns the seconds that a thread trained."""
    prepare(params.prepare, raw, out / "prepared")
    spec = make_spec(params, params.search.widths[0], out / "prepared")
    began = time.process_time()
    *_, state = epochs(spec, CPU)
    seconds = time.process_time() - began
    write_results(state, spec, "benchmark", out / "model", out / "train")
    return seconds


def score(folder: str, minutes: float, work: Path) -> None:
    base = load_params()
    plan = make_plan(folder, "plan", minutes, base=base, use_gpu=False)
    planned = override(base, plan.values | ALONE)
    plain = override(base, {key: value for key, value in plan.values.items() if key in SHARED} | ALONE)
    raw = work / "raw"
    ingest(planned.ingest, raw, work / "cache")
    seconds = {"plan": train(planned, raw, work / "plan")}
    with laid_out(folder, base.ingest, Plan()) as (files, layout, names):
        samples = survey(files, layout, folder, names, plain, Plan(), tuple(MEANING)).samples
        step, counts = try_out(plain, samples), Counts.of(samples, plain)
    epoch_s = counts.train // plain.train.batch_size * step.step_s + counts.val * step.image_s
    plain = override(plain, {"train.epochs": max(1, round(seconds["plan"] / epoch_s))})
    seconds["defaults"] = train(plain, raw, work / "defaults")
    for name, params in (("plan", planned), ("defaults", plain)):
        report = evaluate(work / name / "prepared", work / name / "model", work / name / "out", params.evaluate, CPU)
        ious = {depth: round(row["iou_image"], 4) for depth, row in report["depths"].items()}
        mious = {depth: row.get("miou") and round(row["miou"], 4) for depth, row in report["depths"].items()}
        found = {"set": folder, "by": name, "epochs": params.train.epochs, "train_s": round(seconds[name])}
        size = params.prepare.size or f"crops of {params.train.crop_px} x {params.train.crops_per_image}"
        print(json.dumps(found | {"size": size, "iou_image": ious, "miou": mious}), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("see")
    command.add_argument("folders", nargs="+")
    command = commands.add_parser("score")
    command.add_argument("folder")
    command.add_argument("--minutes", type=float, default=4, help="that the plan has for training, on this machine")
    command.add_argument("--work", type=Path, required=True, help="an empty folder")
    arguments = parser.parse_args()
    if arguments.command == "see":
        for folder in arguments.folders:
            see(folder)
    else:
        score(arguments.folder, arguments.minutes, arguments.work)


if __name__ == "__main__":
    main()
