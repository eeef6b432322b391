"""What stands out in a fingerprint, in plain sentences."""

from collections.abc import Iterator

from unetpp.images.frame import say_size

SHRUNK = 0.95  # resizing by less is not reported
THIN_PX = 8  # narrower objects have no inside that a second level could see
UNLIKE = 1.5  # longer side by shorter
MANY_EMPTY = 0.5
MUCH_OVERLAP = 0.01  # of the foreground: adjacent outlines may share a pixel
MUCH_IGNORED = 0.5  # of the pixels
FAR = 3.0  # standard errors by which a split differs from the whole


def find_what_stands_out(fingerprint: dict) -> dict[str, list[str]]:
    """Warnings, which call for a check or a change before training, and notes.

    Args:
        fingerprint: with its "advice" (`pipelines.planning.advice`).
    """
    found = [*_sizes(fingerprint), *_pixels(fingerprint), *_classes(fingerprint), *_splits(fingerprint)]
    found += [*_labels(fingerprint), *_files(fingerprint)]
    return {
        "warnings": [text for text, calls in found if calls],
        "notes": [text for text, calls in found if not calls],
    }


Finding = tuple[str, bool]  # a sentence, and whether it is a warning


def _sizes(fingerprint: dict) -> Iterator[Finding]:
    objects, size = fingerprint["objects"], fingerprint["prepared"]["size"]
    if fingerprint["advice"]["depth"] is None:
        yield "No mask has any foreground: there is nothing to learn.", True
        return
    seen_px = objects["width_px"] * objects["shrunk"]
    if size is not None and objects["shrunk"] < SHRUNK and seen_px < THIN_PX:
        text = f"Resizing to {say_size(size)} px makes objects {seen_px:.1f} px wide, which are "
        yield f"{text}{objects['width_px']:.1f} px wide in the files: crops at full size keep them.", True
    aspect, squeezed = fingerprint["images"]["aspect"]["max"], fingerprint["prepared"]["fit"] == "stretch"
    if size and squeezed and aspect > UNLIKE and (isinstance(size, int) or fingerprint["images"]["num_sizes"] > 1):
        text = f"Images of up to {aspect:.1f} to 1 are distorted to {say_size(size)} px: prepare.fit=pad avoids it."
        yield text, True
    if len(objects["counted_by"]) > 1:
        yield "Objects were separated in more than one way; without object numbers, touching ones count as one.", False


def _pixels(fingerprint: dict) -> Iterator[Finding]:
    masks, intensity = fingerprint["masks"], fingerprint["intensity"]
    if lost := masks["lost"]["num"]:
        which = _count(lost, "mask loses", "masks lose")
        yield f"{which} all foreground when resized to {say_size(fingerprint['prepared']['size'])} px.", True
    if full := masks["nearly_full"]["num"]:
        which = _count(full, "mask is", "masks are")
        yield f"{which} foreground nearly everywhere: is 0 the background there?", True
    if blank := fingerprint["images"]["blank"]["num"]:
        yield f"{_count(blank, 'image has', 'images have')} the same value in every pixel.", True
    if len({row["bits"] for row in intensity}) > 1:
        yield "Images of different bit depths are mixed; each is standardised separately.", False
    if saturated := sum(row["saturated"] for row in intensity):
        which = _count(saturated, "image has", "images have")
        yield f"{which} at least 1 % of their values at the upper end of the scale.", False


def _classes(fingerprint: dict) -> Iterator[Finding]:
    classes, num = fingerprint["classes"], fingerprint["splits"]["all"]["num_images"]
    first = int(fingerprint["prepared"]["background"])
    for row in classes[first:] if len(classes) > first + 1 else ():
        if not row["pixels"]:
            yield f"Class {row['name']} occurs in no mask.", True
        elif missing := " and ".join(row["missing_in"]):
            has = f"{row['num_images']:,} of {num:,} images have it"
            yield f"Class {row['name']} is missing in {missing} ({has}).", True


def _splits(fingerprint: dict) -> Iterator[Finding]:
    for row in fingerprint["balance"]:
        for split, found in row["splits"].items():
            if found["errors"] is not None and abs(found["errors"]) >= FAR:
                text = f"Split {split} differs from the whole in its {row['measure']}: {found['value']:.3g} against "
                yield f"{text}{row['all']:.3g}, {abs(found['errors']):.1f} standard errors.", True


def _labels(fingerprint: dict) -> Iterator[Finding]:
    """About masks: overlapping classes, ignored pixels, no foreground."""
    masks, prepared, whole = fingerprint["masks"], fingerprint["prepared"], fingerprint["splits"]["all"]
    if masks["shaded"]:
        text = f"{_count(masks['shaded'], 'mask has', 'masks have')} values between 0 and the highest, on "
        text += (
            f"{masks['shades_share']:.1%} of the foreground, such as the grey rims of smoothed edges: each counts as "
        )
        yield f"{text}foreground. prepare.mask_threshold (128 for 8-bit masks) takes only values from it on.", True
    if masks["overlapping"]:
        which = _count(masks["overlapping"], "image", "images")
        text = f"In {which} classes overlap, on {masks['overlap_share']:.1%} of the foreground"
        if prepared["multilabel"]:
            yield f"{text}: such a pixel has all of these labels.", False
        else:
            text += ". There the later class was taken; to keep all, set prepare.multilabel=true and "
            much = masks["overlap_share"] > MUCH_OVERLAP
            yield f"{text}prepare.num_classes={prepared['num_classes'] - 1}.", much
    if masks["ignored"]:
        which, share = _count(masks["ignored"], "image has", "images have"), whole["ignored_share"]
        yield (
            f"{which} pixels that count nowhere (prepare.ignore, prepare.values), {share:.1%} of all pixels.",
            share > MUCH_IGNORED,
        )
    if empty := masks["empty"]["num"]:
        share = empty / whole["num_images"]
        yield f"{_count(empty, 'mask is', 'masks are')} empty ({share:.1%}).", share > MANY_EMPTY


def _files(fingerprint: dict) -> Iterator[Finding]:
    duplicates = fingerprint["duplicates"]
    for leak in fingerprint.get("leaks", ()):
        yield leak, True
    if (across := duplicates["across"]) and not fingerprint.get("leaks"):
        which = _count(across, "pair of near-duplicates is", "pairs of near-duplicates are")
        yield f"{which} in different splits.", True
    if broken := fingerprint["quarantine"]["num_files"]:
        yield f"{_count(broken, 'file was', 'files were')} set aside as unusable.", True
    if pairs := duplicates["num_pairs"]:
        which = _count(pairs, "pair", "pairs")
        yield f"{which} of near-duplicates among {duplicates['num_images']:,} images were found.", False


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
