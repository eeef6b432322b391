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


def _mlflow(arguments: argparse.Namespace) -> None:
    from pipelines.params import load_params
    from pipelines.tracking import serve_page

    registry = load_params().registry
    serve_page(arguments.port, registry.tracking_uri, registry.model_name)


def _promote(arguments: argparse.Namespace) -> None:
    from pipelines.params import load_params
    from pipelines.promote import promote
    from pipelines.tracking import tracking_uri

    print(promote(tracking_uri(load_params().registry.tracking_uri), arguments.model, arguments.why))


def _rollback(arguments: argparse.Namespace) -> None:
    from pipelines.params import load_params
    from pipelines.promote import rollback
    from pipelines.tracking import tracking_uri

    print(rollback(tracking_uri(load_params().registry.tracking_uri), arguments.model, arguments.why))


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

    one = commands.add_parser("mlflow", help="open the MLflow page on this machine")
    one.add_argument("--port", type=int, default=5000)
    one.set_defaults(run=_mlflow)

    one = commands.add_parser("promote", help="make a registered version the champion, which production loads")
    one.add_argument("model", help="NAME@ALIAS or NAME/VERSION; NAME alone is its challenger")
    one.add_argument("--why", required=True, help="the reason, kept beside the version")
    one.set_defaults(run=_promote)

    one = commands.add_parser("rollback", help="make the former champion the champion again")
    one.add_argument("model", metavar="NAME", help="the registered model")
    one.add_argument("--why", required=True, help="the reason, kept beside both versions")
    one.set_defaults(run=_rollback)
    return parser


def main() -> None:
    """Entry point of `unetpp`."""
    arguments = build_parser().parse_args()
    run_command(lambda: arguments.run(arguments))


if __name__ == "__main__":
    main()
