"""What stands out in a fingerprint, in plain sentences."""

PAPER_DEPTH = 4
SMALL_SHARE = 0.1  # of the objects, below a pixel of the deepest level
SHRUNK = 0.95  # a resizing by less is not worth a word
UNLIKE = 1.5  # longer side by shorter
MANY_EMPTY = 0.5
MUCH_OVERLAP = 0.01  # of the foreground: two outlines that meet share a pixel here and there
MUCH_IGNORED = 0.5  # of the pixels
FAR = 3.0  # standard errors from which on a split differs from the whole


def find_what_stands_out(fingerprint: dict) -> dict[str, list[str]]:
    """Warnings, which call for a look or a change before training, and notes.

    Args:
        fingerprint: with its "advice" (`advice.advise`).
    """
    warnings, notes = [*_sizes(fingerprint), *_masks(fingerprint)], []
    num = fingerprint["splits"]["all"]["num_images"]
    if blank := fingerprint["images"]["blank"]["num"]:
        warnings.append(f"{_count(blank, 'image has', 'images have')} one value in every pixel.")
    warnings += [*_classes(fingerprint["classes"], num), *_splits(fingerprint["balance"])]
    (warnings if _loses_overlap(fingerprint) else notes).extend(_overlap(fingerprint))
    if ignored := fingerprint["masks"]["ignored"]:
        share = fingerprint["splits"]["all"]["ignored_share"]
        which = _count(ignored, "image has", "images have")
        text = f"{which} pixels that prepare.ignore leaves out, {share:.1%} of all pixels."
        (warnings if share > MUCH_IGNORED else notes).append(text)
    duplicates = fingerprint["duplicates"]
    if across := duplicates["across"]:
        warnings.append(f"{_count(across, 'pair', 'pairs')} of near-duplicates stand in different splits.")
    if broken := fingerprint["quarantine"]["num_files"]:
        warnings.append(f"{_count(broken, 'file was', 'files were')} set aside as unusable.")
    empty = fingerprint["masks"]["empty"]["num"]
    if empty:
        text = f"{_count(empty, 'mask is', 'masks are')} empty ({empty / num:.1%})."
        (warnings if empty > MANY_EMPTY * num else notes).append(text)
    if pairs := duplicates["num_pairs"]:
        which = _count(pairs, "pair", "pairs")
        notes.append(f"{which} of near-duplicates among {duplicates['num_images']:,} images were found.")
    if len({row["bits"] for row in fingerprint["intensity"]}) > 1:
        notes.append("Images of different bit depths are mixed; each is standardised by itself.")
    if saturated := sum(row["saturated"] for row in fingerprint["intensity"]):
        which = _count(saturated, "image has", "images have")
        notes.append(f"{which} 1 % of the values or more at the upper end of the scale.")
    if len(fingerprint["objects"]["counted_by"]) > 1:
        notes.append("Objects were told apart in more than one way; touching ones count as one where no numbers do it.")
    return {"warnings": warnings, "notes": notes}


def _sizes(fingerprint: dict) -> list[str]:
    objects, advice, size = fingerprint["objects"], fingerprint["advice"], fingerprint["prepared"]["size"]
    if advice["depth"] is None:
        return ["No mask has any foreground: there is nothing to learn."]
    lines = []
    shrunk = size is not None and objects["shrunk"] < SHRUNK
    smaller = objects["depths"][PAPER_DEPTH - 1]["smaller"]
    if advice["depth"] < PAPER_DEPTH and smaller > SMALL_SHARE:
        after = f" after resizing to {size} px" if shrunk else ""
        lines.append(
            f"{smaller:.0%} of the {objects['prepared']['num_objects']:,} objects are smaller than "
            f"2^{PAPER_DEPTH} = {2**PAPER_DEPTH} px{after}: less than one pixel of the coarsest level of a network of "
            f"depth {PAPER_DEPTH}, the paper's. Their sizes suggest depth {advice['depth']}."
        )
    if shrunk and advice["depth"] < PAPER_DEPTH:
        deeper = advice["own_depth"] > advice["depth"]
        lines.append(
            f"Resizing to {size} px makes objects smaller: the median one is {objects['stored']['p50']:.1f} px wide in "
            f"the files and {objects['prepared']['p50']:.1f} px in what the network sees."
            + f" At their own size they would suggest depth {advice['own_depth']}."
            * deeper
        )
    if size and fingerprint["images"]["aspect"]["max"] > UNLIKE:
        lines.append(f"Images of up to {fingerprint['images']['aspect']['max']:.1f} to 1 are squeezed into squares.")
    return lines


def _masks(fingerprint: dict) -> list[str]:
    masks, lines = fingerprint["masks"], []
    if lost := masks["lost"]["num"]:
        which = _count(lost, "mask loses", "masks lose")
        lines.append(f"{which} all foreground by resizing to {fingerprint['prepared']['size']} px.")
    if full := masks["nearly_full"]["num"]:
        which = _count(full, "mask is", "masks are")
        lines.append(f"{which} foreground nearly everywhere: is 0 the background there?")
    return lines


def _classes(classes: list[dict], num: int) -> list[str]:
    if len(classes) == 2:
        return []
    lines = []
    for row in classes[1:]:
        if not row["pixels"]:
            lines.append(f"Class {row['name']} occurs in no mask.")
        elif missing := " and ".join(row["missing_in"]):
            lines.append(
                f"Class {row['name']} is missing in {missing} ({row['num_images']:,} of {num:,} images have it)."
            )
    return lines


def _loses_overlap(fingerprint: dict) -> bool:
    lost = not fingerprint["prepared"]["multilabel"]
    return lost and fingerprint["masks"]["overlap_share"] > MUCH_OVERLAP


def _overlap(fingerprint: dict) -> list[str]:
    masks, prepared = fingerprint["masks"], fingerprint["prepared"]
    if not masks["overlapping"]:
        return []
    which = _count(masks["overlapping"], "image", "images")
    text = f"In {which} classes lie over each other, on {masks['overlap_share']:.1%} of the foreground"
    if prepared["multilabel"]:
        return [f"{text}: such a pixel has all of these labels."]
    return [
        f"{text}. Of these the later class was taken; to keep all, set prepare.multilabel=true and "
        f"prepare.num_classes={prepared['num_classes'] - 1}."
    ]


def _splits(balance: list[dict]) -> list[str]:
    return [
        f"Split {split} differs from the whole in its {row['measure']}: {found['value']:.3g} beside {row['all']:.3g}, "
        f"{abs(found['errors']):.1f} standard errors."
        for row in balance
        for split, found in row["splits"].items()
        if found["errors"] is not None and abs(found["errors"]) >= FAR
    ]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
