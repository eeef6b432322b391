"""The commands that use a model: predict and export."""

import argparse
from dataclasses import replace
from pathlib import Path

from pipelines.commandline.group import MODEL, OVERWRITE, Group, above_0, count, depth

KINDS = ("mask", "values", "probs", "probs8", "overlay", "labels", "measurements")


def add(group: Group) -> None:
    example = "unetpp predict scans/ --depth 2 --out masks/"
    one = group.add("predict", "write a mask, or more, for each image", example, _predict)
    what = "image files, folders, patterns such as 'scans/*.png', s3://bucket/prefix"
    one.add_argument("images", nargs="+", help=what)
    one.add_argument("--model", default="models/train", help=f"{MODEL} (default: models/train)")
    one.add_argument("--depth", type=depth, help="prune to this depth, or auto (default: the model's deepest)")
    one.add_argument("--max-latency-ms", type=above_0, help="the deepest depth that is this fast per image here")
    one.add_argument("--heads", help="average heads instead: mean (of all), or depths with weights, such as 2:1,4:3")
    one.add_argument("--out", required=True, help="folder or s3://bucket/prefix for the masks, <image name>.png")
    what = "what to write (default: mask, and labels of a model that separates objects)"
    one.add_argument("--save", nargs="+", choices=KINDS, help=what)
    one.add_argument("--engine", default="auto", help="such as torch or openvino-int8 (default: auto, the fastest)")
    what = "test-time augmentation: average over mirrored (and turned) copies"
    one.add_argument("--tta", choices=["none", "flips", "all"], default="none", help=what)
    what = "threads that compute (default: OMP_NUM_THREADS, or one per physical core)"
    one.add_argument("--threads", type=count, help=what)
    what = "largest number of pixels decoded at once: a PNG or JPEG, a strip or tile of a TIFF (default: 178956970)"
    one.add_argument("--max-pixels", type=count, help=what)
    what = "run on a Ray cluster: HOST:PORT, else RAY_ADDRESS, else all cores of this machine"
    one.add_argument("--ray", nargs="?", const="", metavar="HOST:PORT", help=what)
    one.add_argument("--overwrite", action="store_true", help=f"write all outputs again; {OVERWRITE}")

    example = "unetpp export --model models/train --out exported"
    one = group.add("export", "write a model for other programs: safetensors, pt2, ONNX, int8", example, _export)
    what = "folder of a trained model, or models:/NAME@ALIAS (default: models/train)"
    one.add_argument("--model", default="models/train", help=what)
    one.add_argument("--out", type=Path, required=True, help="folder for L1/model.onnx ...")
    one.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    one.add_argument("--depth", type=count, help="this depth alone (default: all that the model has)")
    formats = ["onnx", "pt2", "onnx-int8"]
    one.add_argument("--formats", nargs="*", default=["onnx"], choices=formats, help="(default: onnx)")
    one.add_argument("--opset", type=int, default=20, choices=range(18, 24), help="ONNX opset (default: 20)")
    one.add_argument("--tolerance", type=above_0, default=1e-4, help="largest difference allowed (default: 1e-4)")
    what = "folder of the prepare stage, whose val images calibrate onnx-int8"
    one.add_argument("--prepared", type=Path, help=what)


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
