"""The command of a cluster that this machine does not reach: job."""

import argparse

from pipelines.commandline.group import OVERWRITE, Group, add_parser

STAGES = ("search", "train")


def add(group: Group) -> None:
    does = "pack a stage for a cluster that this machine does not reach, and fetch its results"
    one = group.add("job", does, "unetpp job fetch train", _job)
    actions = one.add_subparsers(required=True, dest="action", metavar="ACTION")
    does = "write a stage's code, params and inputs as a zip; data go to cluster.storage"
    action = add_parser(actions, "pack", does, "unetpp job pack train --out train.zip", help=does)
    action.add_argument("stage", choices=STAGES)
    action.add_argument("--out", required=True, help="path or s3://bucket/name.zip of the zip")
    action.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    does = "fetch a stage's results from cluster.storage, and verify them"
    action = add_parser(actions, "fetch", does, "unetpp job fetch search", help=does)
    action.add_argument("stage", choices=STAGES)


def _job(arguments: argparse.Namespace) -> None:
    from pipelines.cluster.jobs import fetch_results, send_archive
    from pipelines.core.params import load_params
    from pipelines.core.temporary_folders import scratch
    from pipelines.search import fetch_init
    from pipelines.storage.stage_paths import stage_arguments

    params, paths = load_params(), stage_arguments(arguments.stage)
    with scratch() as folder:
        if arguments.stage == "search" and (init := fetch_init(params.train.init, folder)):
            paths["init"] = init
        if arguments.action == "pack":
            send_archive(arguments.stage, params, paths, arguments.out, arguments.overwrite)
        else:
            fetch_results(arguments.stage, params, paths)
