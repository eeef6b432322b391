"""What a reader of a depth report must know before its numbers: which of them say something, and are to be trusted."""

NOISY = 0.25  # a spread of latency above which the machine was too busy to be read
BUSY = 0.25  # a share of the processors that other work takes, above which latencies are too long, however steady
FEW_GROUPS = 10


def find_cautions(report: dict) -> list[str]:
    """Sentences about what report.json holds; none where all is well. They stand beside the recommendation."""
    cautions = []
    number = report.get("num_groups")
    if number is not None and number < FEW_GROUPS:
        what = f"{number} group{'s' if number > 1 else ''}"
        cautions.append(f"{what} of test images are too few for intervals that one can trust.")
    cautions += report.get("leaks", ())
    machine = report.get("machine", {})
    spread, others = machine.get("spread") or 0, machine.get("others_share") or 0
    signs = [f"the middle half of the latencies spreads over {spread:.0%} of the median"] * (spread > NOISY)
    signs += [f"other work took {others:.0%} of it"] * (others > BUSY or bool(signs and others))
    if signs:
        cautions.append(
            f"The machine was busy: {'; '.join(signs)}. "
            "Latency and throughput are not to be trusted; rerun evaluate when it is idle."
        )
    return cautions


def says_objects(report: dict) -> bool:
    """Whether the scores of objects are of more than the connected pixels of masks, on which masks say it all."""
    about = report.get("objects") or {}
    return about.get("true", "components") != "components" or about.get("predicted") == "watershed"
