"""What a reader of a depth report must know before reading the numbers: which of them are reliable."""

NOISY = 0.25  # spread of latency above which the machine was too busy for measurements
BUSY = 0.25  # share of the processors used by other work above which latencies are too long, even if steady
FEW_GROUPS = 10


def find_cautions(report: dict) -> list[str]:
    """Warnings about report.json, shown next to the recommendation; empty if all is well."""
    cautions = []
    number = report.get("num_groups")
    if number is not None and number < FEW_GROUPS:
        what = f"{number} group{'s' if number > 1 else ''}"
        verb = "are" if number > 1 else "is"
        cautions.append(f"{what} of test images {verb} too few for reliable intervals.")
    cautions += report.get("leaks", ())
    objects = report.get("objects") or {}
    if (objects.get("true"), objects.get("predicted")) == ("components", "watershed"):
        cautions.append("The test masks do not number objects: touching ones count as one, however they are separated.")
    machine = report.get("machine", {})
    spread, others = machine.get("spread") or 0, machine.get("others_share") or 0
    signs = [f"the middle half of the latencies spreads over {spread:.0%} of the median"] * (spread > NOISY)
    signs += [f"other work used {others:.0%} of it"] * (others > BUSY or bool(signs and others))
    if signs:
        cautions.append(
            f"The machine was busy: {'; '.join(signs)}. "
            "Latency and throughput are not reliable; rerun evaluate when it is idle."
        )
    return cautions


def says_objects(report: dict) -> bool:
    """Whether scores of objects add anything to those of masks: objects are more than connected pixels."""
    about = report.get("objects") or {}
    return about.get("true", "components") != "components" or about.get("predicted") == "watershed"
