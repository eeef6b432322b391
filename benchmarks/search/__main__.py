"""The cost of knowing the accuracy of each depth: a deeply supervised training run per width, or a run per network.

    python -m benchmarks.search --data /path/to/dsb2018 --out benchmarks/search.md

Trains on DSB2018 at 96x96: at three widths the deeply supervised network of depth 4, and each of its four depths alone
with its one head; then more learning rates for ASHA to drop, and runs that begin with a trial's weights or from
scratch. Each run's row is saved when it ends, so that rerunning the command continues after an interruption; a
row names its machine.
Cost is CPU time of one process with one thread, which other programs on the machine hardly change.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.search.page import build_page
from benchmarks.search.plan import EPOCHS, LONGER, RATE, plan, widths_of
from pipelines.core.files import write_json
from pipelines.core.params import Params, load_params
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.training.epochs import epochs
from pipelines.training.spec import Init, make_spec
from pipelines.training.state import TrainState

RESULTS = Path(__file__).parent.with_suffix(".json")


def params_of(row: dict) -> Params:
    """params.yaml with what this training changes."""
    values = load_params().model_dump(by_alias=True, mode="json")
    longer = row["what"] in ("anew", "warm")
    values["train"] |= {"epochs": LONGER if longer else EPOCHS, "seed": row["seed"], "num_workers": 1}
    values["train"] |= {"cpus_per_worker": 1, "use_gpu": False, "loader_workers": 0}
    values["train"] |= {"learning_rate": row.get("rate", RATE)}
    values["model"]["deep_supervision"] = row["what"] != "alone"
    return Params.model_validate(values)


def train(row: dict, prepared: Path, weights: Path) -> dict:
    """The row with `curve` (a list an epoch of IoU by depth) and `cpu_s` (seconds until that epoch's end)."""
    warm = Init(str(weights / f"{row['base']}-{row['seed']}.pt"), "") if row["what"] == "warm" else None
    spec = make_spec(params_of(row), widths_of(row["base"], row["depth"]), prepared, init=warm)
    began, cpu_s, state = time.process_time(), [], TrainState()
    for state in epochs(spec, torch.device("cpu")):
        if not state.step:
            cpu_s.append(round(time.process_time() - began, 2))
    if row["what"] == "supervised" and "rate" not in row:
        torch.save(state.best.weights, weights / f"{row['base']}-{row['seed']}.pt")
    curve = [{key[8:]: round(iou, 5) for key, iou in one.items() if "iou_L" in key} for one in state.history]
    return row | {"curve": curve, "cpu_s": cpu_s}


def prepare_data(data: Path, out: Path) -> Path:
    """DSB2018 at 96x96 as the stages ingest and prepare make it."""
    if not out.is_dir():
        params = load_params()
        source = params.ingest.model_copy(update={"kind": "folder", "location": str(data)})
        ingest(source, out.with_name("raw"))
        prepare(params.prepare.model_copy(update={"size": 96}), out.with_name("raw"), out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of DSB2018; without it only the page is written anew")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark"), help="prepared data and weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results.is_file() else {"rows": []}
    if args.data:
        args.work.mkdir(parents=True, exist_ok=True)
        prepared = prepare_data(args.data, args.work / "prepared")
        machine = describe()
        for row in plan(args.seeds):
            if any(row.items() <= one.items() and ("rate" in one) == ("rate" in row) for one in results["rows"]):
                continue
            results["rows"].append(train(row, prepared, args.work) | {"machine": machine})
            write_json(args.results, results)
            print(json.dumps(results["rows"][-1]), flush=True)
    page = build_page(results)
    print(page)
    if args.out:
        args.out.write_text(page)


if __name__ == "__main__":
    main()
