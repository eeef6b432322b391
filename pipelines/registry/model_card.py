"""What a registered version says of itself in MLflow: its tags, and the markdown that a person decides from."""

import json
import re
from dataclasses import dataclass, field

from pipelines.core.numbers import points
from pipelines.evaluation.cautions import find_cautions
from unetpp.data.manifest import Manifest
from unetpp.images.frame import plain, say_size
from unetpp.models.model_file import Trained

# What a latency depends on most, of what report.json says of the machine.
MACHINE = ("device", "processor", "engine", "threads", "precision", "size_px")
HISTORY = "**Champion and challengers, the latest first**"


@dataclass(frozen=True)
class Family:
    """What is registered: a trained network with what was measured, and where it all comes from."""

    name: str  # of the registered model
    trained: Trained
    metrics: dict  # of reports/evaluate/report.json
    manifest: Manifest  # of data/prepared/manifest.json
    data_sha256: str  # of that manifest
    fingerprint: str
    commit: str
    dirty: bool
    licence: str | None = None
    intended_use: str | None = None
    leak_check: str = "not known"  # whether what was tested on could have been trained on, in one sentence
    exports: list[dict] = field(default_factory=list)  # entries of exports.json, of what versions carry

    @property
    def recommended(self) -> int | None:
        return self.metrics["recommended_depth"]

    def tags(self, depth: int) -> dict[str, str]:
        """What a version says of itself, as tags that MLflow can filter by."""
        return {
            "depth": str(depth),
            "widths": ", ".join(map(str, self.trained.network.widths[: depth + 1])),
            **({"encoder": encoder} if (encoder := self.trained.network.encoder) else {}),
            **({"targets": ", ".join(self.trained.network.targets)} if self.trained.about.separation() else {}),
            "recommended": str(depth == self.recommended).lower(),
            # What `unetpp predict` has to know of a registered version.
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
        """The depth to deploy; where none is recommended, the one that came nearest."""
        return self.recommended or self.metrics.get("nearest_depth") or self.trained.depths[-1]


@dataclass(frozen=True)
class Event:
    """What happened to a version: it became champion or challenger, or was one."""

    when: str
    who: str
    version: str
    what: str
    why: str

    def same_as(self, other: "Event") -> bool:
        """Whether both say the same, whenever and by whomever."""
        return (self.version, self.what, self.why) == (other.version, other.what, other.why)


def version_description(family: Family, versions: dict[int, str], depth: int) -> str:
    """Markdown of one version: the decision first, then what it rests on, then how to use it."""
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
    """Markdown of the registered model: the same for the family that its aliases point to."""
    best = family.recommended
    title = (
        f"**Of the run registered last, deploy L{best}, version {versions[best]} (`recommended`).**"
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
            f"are the depths of the family registered last. Production loads `models:/{family.name}@champion`: which "
            "version that is, since when and why, stands in the history below.",
            *_notes(family),
        ]
    )


def _cautions(family: Family) -> list[str]:
    return [f"**Caution.** {one}" for one in find_cautions(family.metrics)]


def _remarks(family: Family) -> list[str]:
    return [remark] if (remark := (family.metrics.get("objects") or {}).get("remark")) else []


def _decision(family: Family, versions: dict[int, str], depth: int) -> str:
    # Plain text: the page lists the versions with the first words of this, as they are.
    best = family.recommended
    if best is None:
        title = f"L{depth}: no depth is recommended{_nearest(family)}."
    elif depth == best:
        title = f"L{depth}: the depth to deploy of this run."
    else:
        title = f"L{depth}: of this run deploy L{best}, version {versions[best]}, instead."
    return f"{title} {family.metrics['recommendation']}"


def _nearest(family: Family) -> str:
    nearest = family.metrics.get("nearest_depth")
    return f", L{nearest} comes nearest" if nearest else ""


def _table(family: Family, versions: dict[int, str], marked: int | None) -> str:
    objects = family.metrics.get("objects") is not None  # a report of before has no interval of AP
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
    """What this depth scores and costs in each runtime that the evaluating machine had."""
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
    said = (
        f"**Engines of L{depth}.** `auto` is the fastest on the machine that evaluated whose IoU on val is at most "
        f"{engines['tolerance_iou'] * 100:.2f} points below that of eager fp32.{holds}"
    )
    return [f"{said}\n\n" + "\n".join(lines)]


def _fixed(values: dict, key: str, digits: int = 3) -> str:
    """A number of report.json; a dash for one that could not be computed."""
    return "-" if values.get(key) is None else f"{values[key]:,.{digits}f}"


def _gates(metrics: dict, depth: int) -> str:
    gates = metrics.get("gates", {}).get(f"L{depth}", [])
    judged = [gate["passed"] for gate in gates if gate["passed"] is not None]
    return f"{sum(judged)} of {len(judged)}" if judged else "not judged"


def _row(cells: list[str]) -> str:
    # MLflow's page sets tables without any space between columns.
    return "| " + " | ".join(f"{cell}&nbsp;&nbsp;&nbsp;" for cell in cells) + " |"


def _notes(family: Family) -> list[str]:
    """What the table was measured on, what goes in and out, and where it comes from."""
    network, splits = family.trained.network, family.manifest.splits
    machine = ", ".join(f"{key} {value}" for key, value in family.metrics["machine"].items() if key in MACHINE)
    kinds = ", ".join(f"{count} {kind}" for kind, count in splits["test"].kinds.items())
    kinds = f" ({kinds})" if kinds else ""
    size, fitted = family.trained.size, "padded" if family.trained.fit == "pad" else "resized"
    resized = f" (trained on images {fitted} to {say_size(size)} px)" if size else ""
    names = ", ".join(family.trained.classes)
    out = "the foreground's probability"
    if network.multilabel:
        out = f"a probability for each label, each from 0 to 1 ({names})"
    elif network.num_classes > 1:
        out = f"a probability for each class, together 1 ({', '.join(family.trained.names)})"
    counted = "foreground alone" if network.background else "of all classes"
    counts = ", ".join(f"{split.num_images} {name}" for name, split in splits.items())
    return [
        f"**Network:** {describe_network(family)}.",
        f"**Table:** IoU and Dice: mean over the {splits['test'].num_images} test images{kinds}, "
        f"{counted}{_objects(family)}. ms: one image at a time, median (95th percentile); images/s: in batches; "
        f"both on {machine}.",
        f"**In:** images of any size and number, uint8 arrays `(H, W, C)` or bytes of PNG, JPEG or TIFF{resized}. "
        '**Out:** masks `(H, W)` uint8; with `{"mode": "probabilities"}` float32 '
        f"`({network.num_classes}, H, W)`, {out}.",
        f"**Data:** {counts} images; manifest `{family.data_sha256[:12]}`. "
        f"**Code:** commit `{family.commit[:12]}`{', with changes that were not committed' if family.dirty else ''}. "
        "**Run:** the source run of this version has the report, the curves, `dvc.lock` and `params.yaml`; "
        "the version's own `evidence` has the report, the IoU of every test image, and overlays.",
        f"**Leak check:** {family.leak_check}. **Intended use:** {family.intended_use or 'not stated'}. "
        f"**Licence:** {family.licence or 'not stated'}.",
    ]


def describe_network(family: Family) -> str:
    """What was trained, and the weights that an encoder began with."""
    network, begun = family.trained.network, family.trained.info.get("encoder_weights")
    began = f" with the weights {begun['uri']}, sha256 `{begun['sha256']}`" if begun else ""
    encoder = f"encoder {network.encoder}{began}; " if network.encoder else ""
    return f"{encoder}widths {', '.join(map(str, network.widths))}; skips {network.skips}"


def _objects(family: Family) -> str:
    """What average precision is of, of a report that says it."""
    about = family.metrics.get("objects")
    if about is None:
        return ""
    true = {"numbers": "the objects that the data number", "components": "connected pixels of a class"}
    true["both"] = "the objects that the data number, or connected pixels of a class"
    hat = "parted by a watershed" if about["predicted"] == "watershed" else "connected pixels"
    return f"; AP: of predicted objects, {hat}, against {true[about['true']]}, at IoU 0.5 to 0.95"


def with_history(description: str, events: list[Event]) -> str:
    """A description with what happened to the version, or the model, as its last section."""
    body = re.sub(r"\n\n\*\*Now:\*\*.*", "", description.partition(f"\n\n{HISTORY}")[0])
    if not events:
        return body
    # Second, below the decision, what came of it: who looks at a challenger need not read to the end.
    first, _, rest = body.partition("\n\n")
    body = f"{first}\n\n**Now:** version {events[-1].version} is {events[-1].what}.\n\n{rest}"
    # A reason is what somebody typed: it stays in its line.
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
