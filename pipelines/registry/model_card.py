"""How a registered version describes itself in MLflow: its tags, and the Markdown from which a person decides."""

import json
import re
from dataclasses import dataclass, field

from pipelines.core.numbers import points
from pipelines.evaluation.cautions import find_cautions
from unetpp.data.manifest import Manifest
from unetpp.images.frame import plain, say_size
from unetpp.models.model_file import Trained

# Of the machine's facts in report.json, those on which latency depends most.
MACHINE = ("device", "processor", "engine", "threads", "precision", "size_px")
HISTORY = "**Champion and challengers, the latest first**"


@dataclass(frozen=True)
class Family:
    """What is registered: a trained network, its measurements, and the origin of both."""

    name: str  # name of the registered model
    trained: Trained
    metrics: dict  # reports/evaluate/report.json
    manifest: Manifest  # data/prepared/manifest.json
    data_sha256: str  # sha256 of that manifest
    fingerprint: str
    commit: str
    dirty: bool
    licence: str | None = None
    intended_use: str | None = None
    leak_check: str = "not known"  # a sentence on whether test images may have been in the training data
    exports: list[dict] = field(default_factory=list)  # entries of exports.json that versions carry

    @property
    def recommended(self) -> int | None:
        return self.metrics["recommended_depth"]

    def tags(self, depth: int) -> dict[str, str]:
        """The facts about a version, as tags by which MLflow can filter."""
        return {
            "depth": str(depth),
            "widths": ", ".join(map(str, self.trained.network.widths[: depth + 1])),
            **({"encoder": encoder} if (encoder := self.trained.network.encoder) else {}),
            **({"targets": ", ".join(self.trained.network.targets)} if self.trained.about.separation() else {}),
            "recommended": str(depth == self.recommended).lower(),
            # What `unetpp predict` needs to know about a registered version.
            "in_channels": str(self.trained.network.in_channels),
            "size_px": json.dumps(plain(self.trained.size)),
            "fit": self.trained.fit,
            "multilabel": str(self.trained.network.multilabel).lower(),
            "classes": json.dumps(self.trained.classes),
            "background": str(self.trained.network.background).lower(),
            "fingerprint": self.fingerprint,
            "data_sha256": self.data_sha256,
            "test_sha256": self.manifest.splits["test"].sha256,
            "git_commit": self.commit,
            "git_dirty": str(self.dirty).lower(),
            "seed": self._trained_with("seed"),
            "precision": self._trained_with("precision"),
            "licence": self.licence or "not stated",
            "intended_use": self.intended_use or "not stated",
            "leak_check": self.leak_check,
        }

    def _trained_with(self, key: str) -> str:
        return str(self.trained.info.get("params", {}).get("train", {}).get(key, "not known"))

    @property
    def candidate(self) -> int:
        """The depth to deploy: the recommended one, or else the nearest to a recommendation."""
        return self.recommended or self.metrics.get("nearest_depth") or self.trained.depths[-1]


@dataclass(frozen=True)
class Event:
    """What happened to a version: for example, it became champion or challenger."""

    when: str
    who: str
    version: str
    what: str
    why: str

    def same_as(self, other: "Event") -> bool:
        """Whether both record the same change, regardless of when and by whom."""
        return (self.version, self.what, self.why) == (other.version, other.what, other.why)


def version_description(family: Family, versions: dict[int, str], depth: int) -> str:
    """The Markdown of one version: first the decision, then its basis, then how to use the version."""
    return "\n\n".join(
        [
            _decision(family, versions, depth),
            *_cautions(family),
            *_remarks(family),
            _table(family, versions, depth),
            *_engines(family, depth),
            f"**Load this version**\n\n{_snippet(family, versions[depth])}",
            *_notes(family),
        ]
    )


def family_description(family: Family, versions: dict[int, str]) -> str:
    """The Markdown of the registered model: the same about the family that its aliases point to."""
    best = family.recommended
    title = (
        f"**Deploy L{best} of the latest registered run: version {versions[best]} (`recommended`).**"
        if best is not None
        else f"**No depth is recommended{_nearest(family)}.**"
    )
    return "\n\n".join(
        [
            f"{title} {family.metrics['recommendation']}",
            *_cautions(family),
            *_remarks(family),
            _table(family, versions, best),
            *_engines(family, best or family.candidate),
            f"**Load it**\n\n{_snippet(family, '@recommended' if best is not None else f'@L{max(versions)}')}\n\n"
            f"The aliases {', '.join(f'`L{depth}`' for depth in versions)} "
            f"are the depths of the latest registered family. Production loads `models:/{family.name}@champion`: the "
            "history below says which version that is, since when, and why.",
            *_notes(family),
        ]
    )


def _cautions(family: Family) -> list[str]:
    return [f"**Caution.** {one}" for one in find_cautions(family.metrics)]


def _remarks(family: Family) -> list[str]:
    return [remark] if (remark := (family.metrics.get("objects") or {}).get("remark")) else []


def _decision(family: Family, versions: dict[int, str], depth: int) -> str:
    # Plain text: in its list of versions, the page shows the beginning of this without rendering it.
    best = family.recommended
    if best is None:
        title = f"L{depth}: no depth is recommended{_nearest(family)}."
    elif depth == best:
        title = f"L{depth}: the depth to deploy from this run."
    else:
        title = f"L{depth}: deploy L{best} of this run, version {versions[best]}, instead."
    return f"{title} {family.metrics['recommendation']}"


def _nearest(family: Family) -> str:
    nearest = family.metrics.get("nearest_depth")
    return f"; L{nearest} is the nearest" if nearest else ""


def _table(family: Family, versions: dict[int, str], marked: int | None) -> str:
    objects = family.metrics.get("objects") is not None  # reports of earlier versions have no interval for AP
    head = ["depth", "version", "IoU (95 %)", "Dice", *["AP (95 %)"] * objects, "ms (p95)", "images/s", "parameters"]
    head += ["file", "gates"]
    rows = [_row(head), "|" + " :-- |" * len(head)]
    for depth, version in versions.items():
        m = family.metrics["depths"][f"L{depth}"]
        cells = [
            f"L{depth}" + (" recommended" if depth == family.recommended else ""),
            f"{version}",
            f"{_fixed(m, 'iou_image')} ({_fixed(m, 'iou_image_low')} to {_fixed(m, 'iou_image_high')})",
            _fixed(m, "dice_image"),
            *[f"{_fixed(m, 'dsb_ap')} ({_fixed(m, 'dsb_ap_low')} to {_fixed(m, 'dsb_ap_high')})"] * objects,
            f"{_fixed(m, 'latency_ms', 1)} ({_fixed(m, 'latency_p95_ms', 1)})",
            _fixed(m, "images_per_s", 0),
            _fixed(m, "parameters", 0),
            f"{_fixed(m, 'size_mib', 1)} MiB",
            _gates(family.metrics, depth),
        ]
        rows.append(_row([f"**{cell}**" for cell in cells] if depth == marked else cells))
    return "\n".join(rows)


def _engines(family: Family, depth: int) -> list[str]:
    """The scores and costs of this depth in each engine of the machine that evaluated."""
    engines = family.metrics.get("engines") or {}
    rows = [row for row in engines.get("rows", []) if row["depth"] == f"L{depth}"]
    if not rows:
        return []
    lines = [_row(["engine", "ms (p95)", "images/s", "IoU on val", "points against fp32", "file", "in tolerance"])]
    lines.append("| :-- | :-- | :-- | :-- | :-- | :-- | :-- |")
    for row in rows:
        cells = [
            row["engine"] + (" (auto)" if row["auto"] else ""),
            f"{_fixed(row, 'latency_ms', 1)} ({_fixed(row, 'latency_p95_ms', 1)})",
            _fixed(row, "images_per_s", 0),
            _fixed(row, "val_iou_image"),
            points(row["val_difference_iou"], 2),
            f"{_fixed(row, 'size_mib', 1)} MiB",
            "yes" if row["within"] else "no",
        ]
        lines.append(_row([f"**{cell}**" for cell in cells] if row["auto"] else cells))
    carried = [one for one in family.exports if int(one["depth"][1:]) <= depth]
    size = sum(one["bytes"] for one in carried) / 2**20
    holds = f" The version carries the exports of L1 to L{depth}: {size:.1f} MiB." if carried else ""
    also = ", and AP at most `evaluate.tolerance_ap` below" if "val_ap" in rows[0] else ""
    said = (
        f"**Engines of L{depth}.** `auto` is the fastest engine, on the machine that evaluated, whose IoU on val is at "
        f"most {engines['tolerance_iou'] * 100:.2f} points below that of eager fp32{also}.{holds}"
    )
    return [f"{said}\n\n" + "\n".join(lines)]


def _fixed(values: dict, key: str, digits: int = 3) -> str:
    """A number from report.json; a dash if it could not be computed."""
    return "-" if values.get(key) is None else f"{values[key]:,.{digits}f}"


def _gates(metrics: dict, depth: int) -> str:
    gates = metrics.get("gates", {}).get(f"L{depth}", [])
    judged = [gate["passed"] for gate in gates if gate["passed"] is not None]
    return f"{sum(judged)} of {len(judged)}" if judged else "not judged"


def _row(cells: list[str]) -> str:
    # MLflow's page renders tables without space between columns.
    return "| " + " | ".join(f"{cell}&nbsp;&nbsp;&nbsp;" for cell in cells) + " |"


def _notes(family: Family) -> list[str]:
    """What the table was measured on, the model's inputs and outputs, and its origin."""
    network, splits = family.trained.network, family.manifest.splits
    machine = ", ".join(f"{key} {value}" for key, value in family.metrics["machine"].items() if key in MACHINE)
    kinds = ", ".join(f"{count} {kind}" for kind, count in splits["test"].kinds.items())
    kinds = f" ({kinds})" if kinds else ""
    size, fitted = family.trained.size, "padded" if family.trained.fit == "pad" else "resized"
    resized = f" (trained on images {fitted} to {say_size(size)} px)" if size else ""
    out = "the foreground's probability"
    if network.multilabel:
        out = f"a probability for each label, each from 0 to 1 ({', '.join(family.trained.classes)})"
    elif network.num_classes > 1:
        out = f"a probability for each class, which add up to 1 ({', '.join(family.trained.names)})"
    if len(network.targets) > 1:
        out += '; then boundary and distance; with `{"mode": "instances"}` the numbers of objects, `(H, W)` int32'
    counted = "of the foreground only" if network.background else "of all classes"
    counts = ", ".join(f"{split.num_images} {name}" for name, split in splits.items())
    return [
        f"**Network:** {describe_network(family)}.",
        f"**Table:** IoU and Dice: mean over the {splits['test'].num_images} test images{kinds}, "
        f"{counted}{_objects(family)}. ms: one image at a time, median (95th percentile); images/s: in batches; "
        f"both on {machine}.",
        f"**In:** images of any size and number, uint8 arrays `(H, W, C)` or bytes of PNG, JPEG or TIFF{resized}. "
        '**Out:** masks `(H, W)` uint8; with `{"mode": "probabilities"}` float32 '
        f"`({network.num_outputs}, H, W)`, {out}.",
        f"**Data:** {counts} images; manifest `{family.data_sha256[:12]}`. "
        f"**Code:** commit `{family.commit[:12]}`{', with uncommitted changes' if family.dirty else ''}. "
        "**Run:** the source run of this version contains the report, the curves, `dvc.lock` and `params.yaml`; "
        "the version's own folder `evidence` contains the report, the IoU of every test image, and overlays.",
        f"**Leak check:** {family.leak_check}. **Intended use:** {family.intended_use or 'not stated'}. "
        f"**Licence:** {family.licence or 'not stated'}.",
    ]


def describe_network(family: Family) -> str:
    """The trained network, and the initial weights of its encoder."""
    network, begun = family.trained.network, family.trained.info.get("encoder_weights")
    began = f" initialised from {begun['uri']}, sha256 `{begun['sha256']}`" if begun else ""
    encoder = f"encoder {network.encoder}{began}; " if network.encoder else ""
    targets = f"; targets {', '.join(network.targets)}" if len(network.targets) > 1 else ""
    return f"{encoder}widths {', '.join(map(str, network.widths))}; skips {network.skips}{targets}"


def _objects(family: Family) -> str:
    """Which objects average precision compares, if the report says it."""
    about = family.metrics.get("objects")
    if about is None:
        return ""
    true = {"numbers": "the objects numbered in the data", "components": "connected pixels of a class"}
    true["both"] = "the objects numbered in the data, or connected pixels of a class"
    hat = "separated by a watershed" if about["predicted"] == "watershed" else "connected pixels"
    return f"; AP: of predicted objects ({hat}) against {true[about['true']]}, at IoU 0.5 to 0.95"


def with_history(description: str, events: list[Event]) -> str:
    """A description whose last section is the history of the version, or the model."""
    body = re.sub(r"\n\n\*\*Now:\*\*.*", "", description.partition(f"\n\n{HISTORY}")[0])
    if not events:
        return body
    # The outcome comes second, below the decision, so that a reader need not look for it at the end.
    first, _, rest = body.partition("\n\n")
    body = f"{first}\n\n**Now:** version {events[-1].version} is {events[-1].what}.\n\n{rest}"
    # A reason was typed by a person: keep it on one line.
    lines = [
        f"- {one.when}, {one.who}: version {one.version}: **{one.what}**. {' '.join(one.why.split())}"
        for one in reversed(events)
    ]
    return f"{body}\n\n{HISTORY}\n\n" + "\n".join(lines)


def _snippet(family: Family, version: str) -> str:
    uri = f"models:/{family.name}{version if version.startswith('@') else f'/{version}'}"
    return (
        "```python\nimport mlflow\nfrom pathlib import Path\n\n"
        f'model = mlflow.pyfunc.load_model("{uri}")\n'
        'mask = model.predict(Path("image.png").read_bytes())  # (H, W) uint8; or an array, or a list\n```\n\n'
        f"or `unetpp predict IMAGES --model {uri} --out masks`, or `mlflow models serve -m {uri} --env-manager local`"
    )
