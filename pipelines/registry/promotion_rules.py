"""When a newly registered depth becomes the version that production loads: the rules, without MLflow.

The candidate is the depth that its report recommends. It becomes `champion` if it finds some of the foreground, is not
worse than the current champion on the same test images (by IoU and, if the model separates objects, by their average
precision, AP), and passes every gate; otherwise it becomes `challenger`, with the reason.
"""

from dataclasses import dataclass

from pipelines.evaluation.compare import paired_difference
from pipelines.evaluation.decision import knows_nothing
from pipelines.evaluation.scored import Scored


@dataclass(frozen=True)
class Champion:
    """The champion's version and scores, or why its scores cannot be read."""

    version: str
    scored: Scored | None
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate becomes champion, and a sentence with the reason."""

    promote: bool
    reason: str


def judge(
    report: dict,
    candidate: Scored,
    champion: Champion | None,
    tolerance_iou: float,
    min_images: int,
    tolerance_ap: float = 0.0,
) -> Verdict:
    """Decide from the candidate's report.json and the scores of both.

    Args:
        champion: None if there is none.
        tolerance_iou, tolerance_ap: how far below 0 the interval of the difference may begin.
        min_images: how many common images a comparison needs if the test images are not all the same.
    """
    if report["recommended_depth"] is None:
        return Verdict(False, f"no depth is recommended: {report['recommendation']}")
    row = report.get("depths", {}).get(candidate.depth, {})
    if "recall" in row and (
        unknown := knows_nothing([row["recall"]])
    ):  # reports of earlier versions recommend a depth all the same
        return Verdict(False, unknown)
    passed, gates = judge_gates(report, candidate.depth)
    if not passed:
        return Verdict(False, gates)
    if champion is None:
        return Verdict(True, f"there was no champion; {gates}")
    if champion.scored is None:
        return Verdict(False, f"cannot be compared with the champion: version {champion.version} {champion.reason}")
    theirs = champion.scored
    common = candidate.common(theirs)
    if not common and candidate.iou.keys() & theirs.iou.keys():
        return Verdict(
            False,
            f"cannot be compared with the champion: version {champion.version} was scored on these images at "
            "another size; evaluate its network on these data, or promote by hand",
        )
    same = candidate.test_sha256 == theirs.test_sha256
    if not common or (not same and len(common) < min_images):
        return Verdict(
            False,
            f"was tested on different images than the champion, version {champion.version}: {len(common)} in common, "
            f"at least {min_images} are needed (register.promotion_min_images)",
        )
    which = f"the same {len(common)} test images" if same else f"{len(common)} common test images"
    scores = [("IoU", candidate.iou, theirs.iou, tolerance_iou)]
    unknown = ""
    if (report.get("objects") or {}).get("predicted") == "watershed":
        scores += [("AP", candidate.ap, theirs.ap, tolerance_ap)] if theirs.ap else []
        unknown = "" if theirs.ap else ", whose AP was not measured"  # registered before
    groups, found = candidate.groups or theirs.groups, []
    for name, ours, others, tolerance in scores:
        one = paired_difference({id_: ours[id_] for id_ in common if id_ in ours}, others, groups)
        found.append((name, one, tolerance))
    said = " and ".join(f"{name} {one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" for name, one, _ in found)
    compared = (
        f"{said} relative to the champion, version {champion.version} ({theirs.depth}){unknown}, on {which} in "
        f"{found[0][1].num_groups} groups"
    )
    for name, one, tolerance in found:
        if one.low < -tolerance:
            worse = "worse" if one.high < 0 else "possibly worse"
            of = f" of {name}" if len(found) > 1 else ""
            return Verdict(False, f"{worse}: {compared}; the interval{of} begins below the tolerance of -{tolerance:g}")
    if all(one.low > 0 for _, one, _ in found):
        return Verdict(True, f"better: {compared}; {gates}")
    tolerances = " and ".join(f"{tolerance:g}" for tolerance in dict.fromkeys(each[2] for each in found))
    return Verdict(True, f"not worse: {compared}, within the tolerance of {tolerances}; {gates}")


def judge_gates(report: dict, depth: str) -> tuple[bool, str]:
    """Whether a depth passes its gates, and a sentence about it; a report without gates was not judged."""
    gates = report.get("gates", {}).get(depth)
    if not gates:
        return True, "its behaviour was not judged: the report has no gates"
    off = [gate["name"] for gate in gates if gate["passed"] is None]
    failed = [gate for gate in gates if gate["passed"] is False]
    number = len(gates) - len(off)
    if failed:
        found = "; ".join(f"{gate['name']} {_value(gate['value'])}, limit {_value(gate['limit'])}" for gate in failed)
        return False, f"fails {len(failed)} of {number} gates: {found}"
    return True, f"all {number} gates passed" + (f" ({', '.join(off)} does not apply)" if off else "")


def _value(number: float | None) -> str:
    return "not measured" if number is None else f"{number:g}"
