"""The commands of the registry: mlflow, promote, rollback, lineage, reproduce and seal."""

import argparse
from pathlib import Path

from pipelines.commandline.group import VERSION, Group


def add(group: Group) -> None:
    one = group.add("mlflow", "open the MLflow page on this machine", "unetpp mlflow --port 5001", _mlflow)
    one.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")

    example = 'unetpp promote unetpp-nuclei/3 --why "better on dim images"'
    one = group.add("promote", "make a version the champion, which production loads", example, _promote)
    one.add_argument("model", help="NAME@ALIAS or NAME/VERSION; NAME alone is its challenger")
    one.add_argument("--why", required=True, help="the reason, kept with the version")

    example = 'unetpp rollback unetpp-nuclei --why "misses small nuclei"'
    one = group.add("rollback", "make the former champion the champion again", example, _rollback)
    one.add_argument("model", metavar="NAME", help="the registered model")
    one.add_argument("--why", required=True, help="the reason, kept with both versions")

    example = "unetpp lineage unetpp-nuclei@champion"
    one = group.add("lineage", "show the data, code and params that made a version", example, _lineage)
    one.add_argument("model", help=VERSION)

    example = "unetpp reproduce unetpp-nuclei@champion --out again --run"
    one = group.add("reproduce", "check out what made a version, and run it again", example, _reproduce)
    one.add_argument("model", help=VERSION)
    one.add_argument("--out", type=Path, required=True, help="the new folder")
    one.add_argument("--run", dest="again", action="store_true", help="run the pipeline there, and compare")

    example = "unetpp seal unetpp-nuclei"
    one = group.add("seal", "add checksums to versions without them, and verify the others", example, _seal)
    one.add_argument("model", help="NAME (all of its versions), NAME@ALIAS or NAME/VERSION")


def _mlflow(arguments: argparse.Namespace) -> None:
    from pipelines.core.params import load_params
    from pipelines.registry.mlflow_store import project_uri, serve_page

    serve_page(arguments.port, project_uri(), load_params().registry.model_name)


def _promote(arguments: argparse.Namespace) -> None:
    from pipelines.registry.mlflow_store import project_uri
    from pipelines.registry.promote import promote

    print(promote(project_uri(), arguments.model, arguments.why))


def _rollback(arguments: argparse.Namespace) -> None:
    from pipelines.registry.mlflow_store import project_uri
    from pipelines.registry.promote import rollback

    print(rollback(project_uri(), arguments.model, arguments.why))


def _lineage(arguments: argparse.Namespace) -> None:
    from pipelines.registry.lineage import show_lineage
    from pipelines.registry.mlflow_store import project_uri

    print(show_lineage(arguments.model, project_uri()))


def _reproduce(arguments: argparse.Namespace) -> None:
    from pipelines.registry.mlflow_store import project_uri
    from pipelines.registry.reproduce import reproduce

    if not reproduce(arguments.model, arguments.out, arguments.again, project_uri()):
        raise SystemExit(1)


def _seal(arguments: argparse.Namespace) -> None:
    from pipelines.registry.load import seal_registered
    from pipelines.registry.mlflow_store import project_uri

    print(seal_registered(arguments.model, project_uri()))
