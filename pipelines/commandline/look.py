"""The commands that show what a run found: summary, report, compare, bench and try."""

import argparse
from pathlib import Path

from pipelines.commandline.group import MODEL, OVERWRITE, Group, count

EVALUATION = "folder, git revision, DVC experiment, MLflow run or models:/NAME@ALIAS"
QUIETLY = "print the address and open nothing"


def add(group: Group) -> None:
    example = "unetpp summary"
    one = group.add("summary", "print the depth table, the decision and what to do next", example, _summary)
    one.add_argument("--reports", type=Path, default=Path("reports"), help="folder of reports (default: reports)")

    example = "unetpp report models:/unetpp-nuclei@champion"
    one = group.add("report", "open the depth report of a folder, a revision, a run or a model", example, _report)
    what = f"{EVALUATION} (default: reports/evaluate)"
    one.add_argument("evaluation", nargs="?", default="reports/evaluate", help=what)
    one.add_argument("--no-browser", dest="browser", action="store_false", help=QUIETLY)

    example = "unetpp compare main~1 reports/evaluate --out compare.html"
    one = group.add("compare", "show two models side by side on their common test images", example, _compare)
    one.add_argument("a", help=EVALUATION)
    one.add_argument("b", help="the other one; differences are B minus A")
    one.add_argument("--out", type=Path, help="write a page as well, such as compare.html")
    one.add_argument("--overwrite", action="store_true", help=OVERWRITE)

    example = "unetpp bench models/train --depth 2"
    one = group.add("bench", "measure IoU, speed and memory of each engine at each depth here", example, _bench)
    one.add_argument("model", help=MODEL)
    one.add_argument("--depth", type=count, help="this depth alone (default: all)")
    one.add_argument("--size", type=count, help="side of the images in px (default: that of training, or 256)")
    one.add_argument("--batch", type=count, default=16, help="images in a batch, for images/s (default: 16)")
    one.add_argument("--exports", type=Path, default=Path("models/export"), help="folder of the model's exports")
    measured = Path("reports/evaluate/engines.json")
    one.add_argument("--measured", type=Path, default=measured, help="evaluate's engines.json, for the IoU")

    example = "unetpp try models/train --no-browser"
    one = group.add("try", "open a page: drop an image, see the mask of each depth", example, _try)
    one.add_argument("model", nargs="?", default="models/train", help=f"{MODEL} (default: models/train)")
    one.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    one.add_argument("--no-browser", dest="browser", action="store_false", help=QUIETLY)


def _summary(arguments: argparse.Namespace) -> None:
    from pipelines.evaluation.depth_table import summary

    reports = arguments.reports
    print(summary(reports / "evaluate", reports / "register/versions.json"))


def _report(arguments: argparse.Namespace) -> None:
    from pipelines.registry.find_report import find_evaluation, open_page

    page = find_evaluation(arguments.evaluation).folder / "report.html"
    open_page(page, arguments.browser)


def _compare(arguments: argparse.Namespace) -> None:
    from pipelines.core.files import replacing
    from pipelines.core.outputs import check_outputs
    from pipelines.evaluation.compare import compare
    from pipelines.pages.compare_page import build_page, comparison_text
    from pipelines.registry.find_report import find_evaluation, read_evaluation

    names = (arguments.a, arguments.b)
    if arguments.out:
        check_outputs(files=[arguments.out], inputs=map(Path, names), overwrite=arguments.overwrite, within=True)
    one, other = (read_evaluation(find_evaluation(name)) for name in names)
    found = compare(one, other)
    print(comparison_text(found, names))
    if arguments.out:
        with replacing(arguments.out) as partial:
            partial.write_text(build_page(found, names), encoding="utf-8")
        print(f"\npage: {arguments.out}")


def _bench(arguments: argparse.Namespace) -> None:
    from pipelines.bench import bench

    bench(arguments.model, arguments.depth, arguments.size, arguments.batch, arguments.exports, arguments.measured)


def _try(arguments: argparse.Namespace) -> None:
    from pipelines.try_page import try_model

    try_model(arguments.model, arguments.port, arguments.browser)
