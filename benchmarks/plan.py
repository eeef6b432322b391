"""What a plan sees in a set and how long it looks: `python benchmarks/plan.py FOLDER ...` (benchmarks/plan.md)."""

import sys
import time

from pipelines.core.params import load_params
from pipelines.planning.choices import Plan
from pipelines.planning.plan import make_plan
from pipelines.planning.survey import laid_out, survey

SHOWN = ("prepare.size", "train.crop_px", "search.widths", "augment.flips", "augment.quarter_turns", "train.epochs")


def main() -> None:
    base = load_params()
    for folder in map(str, sys.argv[1:]):
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


if __name__ == "__main__":
    main()
