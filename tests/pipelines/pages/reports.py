"""What evaluate writes, made up: report.json of schema 2, whole and as small as it may be, rows, and samples."""

import numpy as np

from pipelines.pages import depth_page

HOSTILE = '<script>alert(1)</script>" onerror="alert(2)'
RULE = {"tolerance_iou": 0.01, "max_latency_ms": None, "resamples": 2000}
SCORES = ("iou_image", "iou_pixels", "iou_paper", "dice_image", "dice_pixels", "dice_paper", "precision", "recall")
SCORES += ("boundary_f1", "object_f1", "dsb_ap", "iou_image_at_threshold")
COSTS = {"latency_ms": 8.3, "latency_p95_ms": 93.2, "latency_p99_ms": 99.0, "latency_spread": 0.1}
COSTS |= {"images_per_s": 136.7, "best_batch": 8, "peak_memory_mib": 4.1, "cold_start_ms": 200.0, "size_mib": 0.15}
COSTS |= {"macs": 92307456, "parameters": 33009}


def smallest(name="L1") -> dict:
    """One depth, one image, and nothing measured but IoU."""
    return {
        "schema": 2,
        "recommended_depth": None,
        "recommendation": "No depth is recommended.",
        "num_images": 1,
        "depths": {name: {"iou_image": 0.5}},
    }


def whole(names=("L1", "L2", "mean"), depth: int | None = 1) -> dict:
    """Every key that a report may have."""
    row = {key: 0.8 for key in SCORES} | COSTS | {"hd95_px": 3.2, "ece": 0.02, "threshold": 0.45}
    for key in ("iou_image", "dice_image", "object_f1", "dsb_ap", "boundary_f1"):
        row |= {f"{key}_low": 0.75, f"{key}_high": 0.85}
    for key in ("difference_iou", "difference_ap"):
        row |= {key: -0.02, f"{key}_low": -0.03, f"{key}_high": -0.01}
    depths = {name: row | {"latency_ms": 8.3 + index} for index, name in enumerate(names)}
    single = [name for name in names if name != "mean"]
    machine = {"device": "cpu", "processor": "a <b>processor</b>", "cores": 2, "threads": 2}
    machine |= {"precision": "fp32", "size_px": 96, "latency_rounds": 30, "throughput_batch": 8}
    machine |= {"latency_ended": "the limit of 120 s was reached"}
    below = {"below_best": 0.02, "below_best_low": 0.01, "below_best_high": 0.03}
    candidate = {"within_tolerance": False, "within_budget": True, "why": "2.0 IoU points below the <best>"}
    engine = {"file": "L1/<model>.onnx", "sha256": "0" * 64, "latency_ms": 3.0, "latency_p95_ms": 4.0}
    engine |= {"images_per_s": 200.0, "peak_memory_mib": None, "size_mib": 0.1, "auto": False, "within": True}
    engine |= {"test_images": 3, "test_iou_image": 0.7, "test_difference_iou": -0.1, "why": "the IoU of eager fp32"}
    engine |= {"val_images": 2, "val_iou_image": 0.7, "val_difference_iou": -0.0012}
    lost = {"within": False, "why": "it loses <more> than the tolerance"}
    gain = {"copies": "all", "num_images": 2, "iou_image": 0.71, "gain_iou": 0.01, "gain_iou_low": -0.01}
    gain |= {"gain_iou_high": 0.03, "cost_factor": 8.1}
    gate = {"name": "flips", "value": 0.02, "limit": 0.03, "passed": True, "what": "what a <mirror> changes"}
    empty = {"confidence": None, "accuracy": None, "share": 0.0}
    part = {name: {"iou_image": 0.7, "recall": None} for name in names}
    return {
        "schema": 2,
        "recommended_depth": depth,
        "nearest_depth": None if depth else int(single[0][1:]),
        "recommendation": "L1 is recommended: IoU 0.800.",
        "num_images": 3,
        "num_groups": 2,
        "intervals": {"level": 0.95, "resamples": 2000, "over": "groups"},
        "depths": depths,
        "decision": {
            "tolerance_iou": 0.01,
            "tolerance_ap": 0.02,
            "max_latency_ms": 20.0,
            "max_memory_mib": None,
            "max_parameters": 100_000,
            "candidates": [{"name": name} | below | candidate for name in single],
        },
        "objects": {"true": "both", "predicted": "watershed", "remark": "Depths differ more for <objects>."},
        "machine": machine,
        "test": {"sha256": "0" * 64, "kinds": {"a": 3}},
        "classes": {name: {HOSTILE: 0.8, "rare": None} for name in names},
        "groups": {
            "class": {HOSTILE: part, "rare": {name: {"iou_image": None} for name in names}},
            "size": {size: {"num_objects": 4} | part for size in ("small", "medium", "large")},
            "kind": {HOSTILE: {"num_images": 2} | part, "": {"num_images": 1} | part},
        },
        "reliability": {name: [{"confidence": 0.1, "accuracy": 0.2, "share": 1.0}, empty] for name in names},
        "gates": {name: [gate, gate | {"name": HOSTILE, "passed": False}] for name in single},
        "engines": {
            "tolerance_iou": 0.002,
            "num_val_images": 9,
            "val_images": 2,
            "rows": [
                {"depth": name}
                | engine
                | {"engine": kind}
                | (lost if kind.endswith("int8") else {})
                | {"auto": kind == "openvino"}
                for name in single
                for kind in (
                    "torch",
                    "torch-bf16",
                    "onnxruntime",
                    "openvino",
                    "openvino-bf16",
                    "onnxruntime-int8",
                    "openvino-int8",
                )
            ],
            "left_out": ["L2 by <openvino>: only 16 of 200 val images, because of the limit of 10 s"],
        },
        "tta": [{"depth": name} | gain for name in single],
    }


def samples_of(rows, names, dtype=np.uint8, channels=3, side=20, num_classes=2) -> list[depth_page.Sample]:
    """A sample for each row: noise, and masks of noise; the first is the best, the last the worst."""
    rng = np.random.default_rng(0)
    return [
        depth_page.Sample(
            "best" if index == 0 else "worst" if index == len(rows) - 1 else None,
            row,
            rng.integers(0, 255, (side, side + 5, channels)).astype(dtype),
            rng.integers(0, num_classes, (side, side + 5)).astype(np.uint8),
            {name: rng.integers(0, num_classes, (side, side + 5)).astype(np.uint8) for name in names},
            *objects_of(names, (side, side + 5)),
        )
        for index, row in enumerate(rows)
    ]


def objects_of(names, shape) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Numbers of true objects that touch, and those of each name, which takes two columns of them for one."""
    (rows, columns), side = np.indices(shape), max(6, shape[0] // 6)
    true = (rows // side * 10 + columns // side + 1).astype(np.int32) * ((rows % side > 0) | (columns % 2 == 0))
    return true, {name: (rows // side * 10 + columns // side // 2 + 1).astype(np.int32) for name in names}


def scenes_of(rows, names, num_classes, side=60) -> list[depth_page.Sample]:
    """A sample for each row: regions of classes as on a street, unlabelled pixels, and mistakes at each depth."""
    rng = np.random.default_rng(0)
    height, width = np.indices((side, side * 4 // 3))
    samples = []
    for row in rows:
        seeds = rng.integers(0, side * 4 // 3, (3 * num_classes, 2))
        near = np.hypot(height - seeds[:, :1, None], width - seeds[:, 1:, None]).argmin(axis=0)
        mask = (near % (num_classes + 1)).astype(np.uint8)
        shade = (near * 37 % 200 + 30)[..., None] + rng.normal(0, 8, (*mask.shape, 3))
        masks_hat = {name: np.roll(mask, 2 + index, axis=1) for index, name in enumerate(names)}
        mask[:4] = 255
        samples.append(depth_page.Sample(None, row, shade.clip(0, 255).astype(np.uint8), mask, masks_hat))
    return samples


def named(metrics, num_classes) -> dict:
    """A report with this many classes that have names, as long as they may be."""
    names = [f"class {number} of a street" if number % 3 else f"c{number}" for number in range(1, num_classes + 1)]
    part = {name: {"iou_image": 0.7} for name in metrics["depths"]}
    groups = metrics["groups"] | {"class": dict.fromkeys(names, part)}
    classes = {name: dict.fromkeys(names, 0.7) for name in metrics["depths"]}
    return metrics | {"classes": classes, "groups": groups, "multilabel": False}


def page_of(metrics, rule=RULE, num_images=3, ids=None, **options) -> str:
    """The page of made-up metrics."""
    names = list(metrics["depths"])
    ids = ids or [f"{HOSTILE}{index}" for index in range(num_images)]
    rows = [
        {"id": id_, "kind": "<i>k</i>", "group": id_} | {f"iou_{name}": 0.9 - 0.1 * index for name in names}
        for index, id_ in enumerate(ids)
    ]
    extremes = {name: {"best": 0, "median": len(rows) // 2, "worst": len(rows) - 1} for name in names}
    scenes = options.pop("scenes", None)
    samples = scenes_of(rows, names, scenes) if scenes else samples_of(rows, names, **options)
    return depth_page.build_report(
        metrics, rows, samples, extremes, names[0], rule, {"Model <x>": "<y>", "Epoch": None}
    )
