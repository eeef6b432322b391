"""The command line `unetpp`. Each command imports what it needs when it runs."""

import argparse
from dataclasses import replace
from pathlib import Path

import unetpp
from pipelines.core.command import run_command

STAGES = ("code", "ingest", "prepare", "pages", "search", "train", "export", "evaluate", "register")
OVERWRITE = "replace files of the same names that are in the way; never what is read"


def _predict(arguments: argparse.Namespace) -> None:
    from pipelines.predict import LIMITS, Outputs, predict

    limits = replace(LIMITS, max_pixels=arguments.max_pixels) if arguments.max_pixels else LIMITS
    if arguments.ray is not None or any(one.startswith("s3://") for one in (*arguments.images, arguments.out)):
        from pipelines.prediction.opening import Asked
        from pipelines.prediction.remote import predict_remotely

        predict_remotely(
            arguments.images,
            arguments.model,
            Asked(arguments.depth, arguments.heads, arguments.engine, arguments.tta, arguments.max_latency_ms),
            arguments.out,
            Outputs(tuple(arguments.save or ()), limits),
            arguments.overwrite,
            arguments.threads,
            arguments.ray,
        )
        return
    predict(
        arguments.images,
        arguments.model,
        arguments.depth,
        Path(arguments.out),
        arguments.heads,
        arguments.overwrite,
        outputs=Outputs(tuple(arguments.save or ()), limits),
        engine=arguments.engine,
        tta=arguments.tta,
        max_latency_ms=arguments.max_latency_ms,
        threads=arguments.threads,
    )


def _try(arguments: argparse.Namespace) -> None:
    from pipelines.try_page import try_model

    try_model(arguments.model, arguments.port, arguments.browser)


def _export(arguments: argparse.Namespace) -> None:
    from pipelines.export import export_model

    export_model(
        arguments.model,
        arguments.out,
        arguments.depth,
        arguments.formats,
        arguments.opset,
        arguments.tolerance,
        arguments.prepared,
        arguments.overwrite,
    )


def _bench(arguments: argparse.Namespace) -> None:
    from pipelines.bench import bench

    bench(arguments.model, arguments.depth, arguments.size, arguments.batch, arguments.exports, arguments.measured)


def _init(arguments: argparse.Namespace) -> None:
    from pipelines.project.init import init

    init(arguments.folder, arguments.data, arguments.name, arguments.minutes, arguments.set)


def _plan(arguments: argparse.Namespace) -> None:
    from pipelines.project.renew import renew

    renew(arguments.folder, arguments.minutes, arguments.accept)


def _stage(arguments: argparse.Namespace) -> None:
    from pipelines.project.stage import run_stage

    run_stage(arguments.stage, arguments.words)


def _doctor(_arguments: argparse.Namespace) -> None:
    from pipelines.doctor import doctor

    raise SystemExit(doctor())


def _summary(arguments: argparse.Namespace) -> None:
    from pipelines.summary import summary

    print(summary(arguments.reports))


def _report(arguments: argparse.Namespace) -> None:
    from pipelines.registry.find_report import find_evaluation, open_page

    page = find_evaluation(arguments.evaluation).folder / "report.html"
    open_page(page, arguments.browser)


def _compare(arguments: argparse.Namespace) -> None:
    from pipelines.core.files import check_outputs, replacing
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


def _mlflow(arguments: argparse.Namespace) -> None:
    from pipelines.core.params import load_params
    from pipelines.registry.mlflow_store import project_uri, serve_page

    serve_page(arguments.port, project_uri(), load_params().registry.model_name)


def _job(arguments: argparse.Namespace) -> None:
    from pipelines.cluster.jobs import fetch_results, send_archive
    from pipelines.core.files import scratch
    from pipelines.core.params import load_params
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


def _promote(arguments: argparse.Namespace) -> None:
    from pipelines.registry.mlflow_store import project_uri
    from pipelines.registry.promote import promote

    print(promote(project_uri(), arguments.model, arguments.why))


def _rollback(arguments: argparse.Namespace) -> None:
    from pipelines.registry.mlflow_store import project_uri
    from pipelines.registry.promote import rollback

    print(rollback(project_uri(), arguments.model, arguments.why))


def _minutes(text: str) -> float:
    if not 0 < (minutes := float(text)) < 1e6:
        raise argparse.ArgumentTypeError(f"expected minutes above 0, found {text}")
    return minutes


def _depth(text: str) -> int | str:
    return text if text == "auto" else int(text.removeprefix("L"))


def _above_0(text: str) -> float:
    if not 0 < (value := float(text)) < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="unetpp", description="Train, measure and ship UNet++ segmentation models.")
    parser.add_argument("--version", action="version", version=f"unetpp {unetpp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("init", help="make a folder a project for your data; `dvc repro` runs it")
    one.add_argument("folder", type=Path, help="of the project; what lies there stays as it is")
    one.add_argument("--data", required=True, help="folder or archive of images and masks, http(s)://..., s3://...")
    one.add_argument("--name", help="of the project, its model and its experiment (default: the folder's)")
    one.add_argument("--minutes", type=_minutes, help="that training may take on this machine (default: 30)")
    what = "a value of params.yaml that the plan works with, such as prepare.num_classes=3; as often as you like"
    one.add_argument("-S", "--set", metavar="KEY=VALUE", action="append", default=[], help=what)
    one.set_defaults(run=_init)

    one = commands.add_parser("plan", help="look at a project's data again: what the plan would change, and new keys")
    one.add_argument("folder", type=Path, nargs="?", default=Path(), help="of the project (default: this one)")
    one.add_argument("--minutes", type=_minutes, help="that training may take (default: as it was planned)")
    one.add_argument("--accept", nargs="*", metavar="KEY", help="write it; with keys or sections, these alone")
    one.set_defaults(run=_plan)

    one = commands.add_parser("stage", help="run a stage; a project's dvc.yaml calls it")
    one.add_argument("stage", choices=STAGES)
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="its options; --help lists them")
    one.set_defaults(run=_stage)

    one = commands.add_parser("predict", help="write a mask, or what else you like, of each image")
    one.add_argument(
        "images", nargs="+", help="image files, folders, patterns such as 'scans/*.png', s3://bucket/prefix"
    )
    one.add_argument(
        "--model", default="models/train", help="folder of a trained or exported model, an .onnx, or models:/NAME@ALIAS"
    )
    one.add_argument("--depth", type=_depth, help="prune to this depth, or auto (default: the deepest it has)")
    one.add_argument("--max-latency-ms", type=_above_0, help="the deepest depth of which an image takes no longer")
    one.add_argument("--heads", help="average heads instead: mean (of all), or depths with weights, such as 2:1,4:3")
    one.add_argument("--out", required=True, help="folder or s3://bucket/prefix for the masks, <image name>.png")
    kinds = ["mask", "values", "probs", "probs8", "overlay", "labels", "measurements"]
    usual = "what is written (default: mask, and labels of a model that parts objects)"
    one.add_argument("--save", nargs="+", choices=kinds, help=usual)
    one.add_argument("--engine", default="auto", help="such as torch or openvino-int8 (default: the fastest allowed)")
    one.add_argument(
        "--tta", choices=["none", "flips", "all"], default="none", help="mean over mirrored, turned copies"
    )
    one.add_argument("--threads", type=_count, help="that compute (default: one for each core)")
    one.add_argument(
        "--max-pixels",
        type=_count,
        help="that are decoded at once: a PNG or JPEG, a strip or tile of a TIFF (default: 178956970)",
    )
    where = "by a Ray cluster: that of HOST:PORT or RAY_ADDRESS, or else all cores of this machine"
    one.add_argument("--ray", nargs="?", const="", metavar="HOST:PORT", help=where)
    one.add_argument("--overwrite", action="store_true", help=f"write all again; {OVERWRITE}")
    one.set_defaults(run=_predict)

    one = commands.add_parser("try", help="open a page on this machine: drop an image, see what each depth makes of it")
    one.add_argument("model", nargs="?", default="models/train", help="as of predict --model (default: models/train)")
    one.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: any that is free)")
    one.add_argument("--no-browser", dest="browser", action="store_false", help="print where it is, and open nothing")
    one.set_defaults(run=_try)

    one = commands.add_parser("export", help="write a model for other programs: safetensors, and pt2, ONNX, int8")
    one.add_argument("--model", default="models/train", help="folder of a trained model, or a models:/NAME@ALIAS URI")
    one.add_argument("--out", type=Path, required=True, help="folder for L1/model.onnx ...")
    one.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    one.add_argument("--depth", type=int, help="this depth alone (default: all that the model has)")
    one.add_argument(
        "--formats", nargs="*", default=["onnx"], choices=["onnx", "pt2", "onnx-int8"], help="(default: onnx)"
    )
    one.add_argument("--opset", type=int, default=20, choices=range(18, 24), help="of ONNX (default: 20)")
    one.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed (default: 1e-4)")
    one.add_argument("--prepared", type=Path, help="folder of the prepare stage; onnx-int8 is scaled by its val images")
    one.set_defaults(run=_export)

    one = commands.add_parser("bench", help="what each engine makes of each depth here: IoU, ms, images/s, memory")
    one.add_argument("model", help="folder of a trained or exported model, an .onnx, or models:/NAME@ALIAS")
    one.add_argument("--depth", type=int, help="this depth alone (default: all)")
    one.add_argument("--size", type=int, help="side of the images in px (default: that of training, or 256)")
    one.add_argument("--batch", type=int, default=16, help="images at once, for images/s (default: 16)")
    one.add_argument("--exports", type=Path, default=Path("models/export"), help="folder of its exports")
    measured = Path("reports/evaluate/engines.json")
    one.add_argument("--measured", type=Path, default=measured, help="evaluate's engines.json, for the IoU")
    one.set_defaults(run=_bench)

    one = commands.add_parser("doctor", help="versions, devices, and what to do about what is wrong")
    one.set_defaults(run=_doctor)

    one = commands.add_parser("summary", help="the depth table of the last evaluation, and where to look")
    one.add_argument("--reports", type=Path, default=Path("reports"), help="folder of reports (default: reports)")
    one.set_defaults(run=_summary)

    one = commands.add_parser("lineage", help="what a registered version was made from")
    one.add_argument("model", help="NAME, NAME@ALIAS or NAME/VERSION")
    one.set_defaults(run=_lineage)

    one = commands.add_parser("reproduce", help="check out what a registered version was made from, and run it again")
    one.add_argument("model", help="NAME, NAME@ALIAS or NAME/VERSION")
    one.add_argument("--out", type=Path, required=True, help="the new folder")
    one.add_argument("--run", dest="again", action="store_true", help="run the pipeline there, and compare")
    one.set_defaults(run=_reproduce)

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
    one.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    one.set_defaults(run=_compare)

    one = commands.add_parser("mlflow", help="open the MLflow page on this machine")
    one.add_argument("--port", type=int, default=5000)
    one.set_defaults(run=_mlflow)

    one = commands.add_parser("job", help="a stage for a cluster that this machine does not reach")
    actions = one.add_subparsers(required=True, dest="action", metavar="ACTION")
    stages = ("search", "train")
    action = actions.add_parser("pack", help="its code, params and inputs as a zip; data go to cluster.storage")
    action.add_argument("stage", choices=stages)
    action.add_argument("--out", required=True, help="path or s3://bucket/name.zip of the zip")
    action.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    action = actions.add_parser("fetch", help="its results from cluster.storage, verified")
    action.add_argument("stage", choices=stages)
    one.set_defaults(run=_job)

    one = commands.add_parser("promote", help="make a registered version the champion, which production loads")
    one.add_argument("model", help="NAME@ALIAS or NAME/VERSION; NAME alone is its challenger")
    one.add_argument("--why", required=True, help="the reason, kept beside the version")
    one.set_defaults(run=_promote)

    one = commands.add_parser(
        "seal", help="seal versions that were registered without sums; compare those that have them"
    )
    one.add_argument("model", help="NAME (all of its versions), NAME@ALIAS or NAME/VERSION")
    one.set_defaults(run=_seal)

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
