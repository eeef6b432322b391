"""The command line `unetpp`. Each command imports what it needs when it runs."""

import argparse
from pathlib import Path

from pipelines.stage import run_command


def _predict(arguments: argparse.Namespace) -> None:
    from pipelines.predict import predict

    predict(arguments.images, arguments.model, arguments.depth, arguments.out, arguments.heads)


def _doctor(arguments: argparse.Namespace) -> None:
    from pipelines.doctor import doctor

    raise SystemExit(doctor())


def _summary(arguments: argparse.Namespace) -> None:
    from pipelines.summary import summary

    print(summary(arguments.reports))


def _report(arguments: argparse.Namespace) -> None:
    from pipelines.evaluations import find_evaluation, open_page

    page = find_evaluation(arguments.evaluation) / "report.html"
    open_page(page, arguments.browser)


def _compare(arguments: argparse.Namespace) -> None:
    from pipelines.compare import compare
    from pipelines.compare_page import build_page, comparison_text
    from pipelines.evaluations import find_evaluation, read_evaluation
    from pipelines.files import replacing

    names = (arguments.a, arguments.b)
    one, other = (read_evaluation(find_evaluation(name)) for name in names)
    found = compare(one, other)
    print(comparison_text(found, names))
    if arguments.out:
        with replacing(arguments.out) as partial:
            partial.write_text(build_page(found, names), encoding="utf-8")
        print(f"\npage: {arguments.out}")


def _mlflow(arguments: argparse.Namespace) -> None:
    from pipelines.params import load_params
    from pipelines.tracking import serve_page

    registry = load_params().registry
    serve_page(arguments.port, registry.tracking_uri, registry.model_name)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="unetpp", description="Train, measure and ship UNet++ segmentation models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("predict", help="write a mask for each image")
    one.add_argument("images", nargs="+", help="image files, folders of them, or patterns such as 'scans/*.png'")
    one.add_argument("--model", default="models/train", help="folder of a trained model, or a models:/NAME@ALIAS URI")
    one.add_argument("--depth", type=int, help="prune to this depth (default: the deepest; a URI has its own)")
    one.add_argument("--heads", help="average heads instead: mean (of all), or depths with weights, such as 2:1,4:3")
    one.add_argument("--out", type=Path, required=True, help="folder for the masks, <image name>.png")
    one.set_defaults(run=_predict)

    one = commands.add_parser("doctor", help="versions, devices, and what to do about what is wrong")
    one.set_defaults(run=_doctor)

    one = commands.add_parser("summary", help="the depth table of the last evaluation, and where to look")
    one.add_argument("--reports", type=Path, default=Path("reports"), help="folder of reports (default: reports)")
    one.set_defaults(run=_summary)

    one = commands.add_parser("report", help="open the depth report of a folder, a revision, a run or a model")
    one.add_argument(
        "evaluation",
        nargs="?",
        default="reports/evaluate",
        help="folder, git revision, DVC experiment, MLflow run or models:/NAME@ALIAS (default: reports/evaluate)",
    )
    one.add_argument("--no-browser", dest="browser", action="store_false", help="print where it is, and open nothing")
    one.set_defaults(run=_report)

    one = commands.add_parser("compare", help="two models side by side on their common test images")
    one.add_argument("a", help="as of report: folder, git revision, DVC experiment, MLflow run or models:/NAME@ALIAS")
    one.add_argument("b", help="the other one; differences are B minus A")
    one.add_argument("--out", type=Path, help="write a page as well, such as compare.html")
    one.set_defaults(run=_compare)

    one = commands.add_parser("mlflow", help="open the MLflow page on this machine")
    one.add_argument("--port", type=int, default=5000)
    one.set_defaults(run=_mlflow)
    return parser


def main() -> None:
    """Entry point of `unetpp`."""
    arguments = build_parser().parse_args()
    run_command(lambda: arguments.run(arguments))


if __name__ == "__main__":
    main()
