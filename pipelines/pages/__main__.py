"""The stage pages: make one HTML page from the output of a measuring stage.

    python -m pipelines.pages depths --of reports/evaluate/page --out reports/evaluate/report.html

It is a stage of its own, so that a change of a word or a colour in a page does not cause new measurements.
"""

import argparse
from pathlib import Path

from pipelines.core.command import run_command
from pipelines.core.files import check_outputs, read_results, replacing
from pipelines.pages import data_page, depth_page, search_page
from unetpp.errors import UserError

# The keys that the pages require.
DATA = ("classes", "duplicates", "advice", "findings", "masks", "objects", "prepared")
SEARCH = ("search", "points", "trials", "chosen", "importance")
PAGES = {
    "data": lambda prepared: data_page.build_page(
        read_results(prepared / "fingerprint.json", "prepare", DATA), prepared
    ),
    "search": lambda path: search_page.build_page(read_results(path, "search", SEARCH)),
    "depths": depth_page.build_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="unetpp stage pages", description="Make one of the HTML pages.")
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("--of", type=Path, required=True, help="output of the measuring stage for this page")
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    arguments = parser.parse_args()
    if not arguments.of.exists():
        raise UserError(f"{arguments.of}: no such file or folder; `dvc repro` writes it")
    check_outputs(files=[arguments.out], inputs=[arguments.of])
    page = PAGES[arguments.page](arguments.of)
    with replacing(arguments.out) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"page: {arguments.out}")


if __name__ == "__main__":
    run_command(main)
