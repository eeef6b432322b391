"""Displays images and masks: stretched contrast, classes and errors in their colours."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

RGBA = tuple[int, int, int, int]
BLOCK_PX = 2**19  # that are counted at once
FILL = 0.6  # the opacity of a class's colour over the image

# The result of a prediction for a pixel. Okabe and Ito's colours, which colour-blind readers can distinguish; missed
# pixels are also striped where a picture allows it.
ERRORS: dict[str, RGBA] = {
    "right": (0, 0, 0, 0),
    "found": (0, 114, 178, 120),
    "extra": (240, 228, 66, 200),
    "missed": (213, 94, 0, 245),
    "stripe": (213, 94, 0, 115),
    "confused": (204, 121, 167, 210),
    "ignored": (128, 128, 128, 150),
}
SAID = {
    "found": "found",
    "extra": "extra: predicted, not there",
    "missed": "missed: there, not predicted",
    "confused": "taken for another class",
    "ignored": "unlabelled, not counted",
}
CODES = {name: code for code, name in enumerate(ERRORS)}
# Of the classes 0, 1, ... 254, RRGGBB, all different. After the first three each is the one that is
# farthest from all before it, from ERRORS, and from black, grey and white: in Oklab, as seen with full colour vision
# and without red or green cones (tests/unetpp/images/test_display.py).
_CLASSES = (
    "77003356b4e9e69f009900ff3300aa00cc77555500eebbccdd00bb0044667777ff99448855ffaabb002288eeffff3366ff88ff0000ff009944"
    "7711aa5544dd884444ee33ff88bbaabb55ddff55ccbbcc44ff99775533004477559988cccccc9900dddd880077bbccff550088aa9911cc3366"
    "dd99cc444488ffdd99ff66555599aaaa55332233cc00ff66cceecc8855cc66996699669933667777880077bb00553355aa0099ee2299bb8888"
    "0055ff6644aa6600dd990033aaaaffff889999bb556677aa0066553399ee55bb8855ffee9922cc5577dd9933000000cccc77dd88dd77117733"
    "77aa445511ffeebb00880000664466115522004444bb66777755ee77ddaaccdd00115599223399aaee88dd5588bb9966dd7777bb00ffbb11bb"
    "886644bb1177ee0044880055ff11bb5500bbdd77ffffaadd7733eebb44883388bb22dd33cc44aa55337777aa99ee88dd99ccbb3322eeee77bb"
    "9966ee0055665533bb00cceecc3322ee00ddcc77333355cc66ee66aa66cc9944aa660077664433008866662244bbbb88774488aaddeeffbb55"
    "88660033ddff0044aa662222bbddbb993355ff88bb88eedd66ff00440099cc66eeffcccc11999988339966226677993322cc9900aa55aa33ee"
    "9977338899779999cc660099ff66eeccaa44eeaa9966dd55eedd779999eeffbbaa996677ee99aaaabbee8822dd7700cc33661166ccdd8844dd"
    "443388882244775577ddaaccffbb88ddee77dd11778800bb007766991166ffddbbcc55ff55aaff77aabbcc66bb2266ee9911aa4499cceeccee"
    "6655bbcc00cc2200dd88aaddbb555577bb66bbdd992200bbaa775577774466ee0033bb33559911aa44994400cc11eeaaaacc00aa4433444411"
    "aaeebb996655ddee00666699bb1144cceeaa6622ee66eeccaa00336666bb77886688668877224455668899ff55ccaa77ee66aaee9966995566"
    "ff3322eeaaeecccc668822222222aa66115500ccbbdddd55bb3355dd55aadd669900aaddaaff885566ccee7733cc9988ee8844224433bbcc88"
    "ee77ddffaabb00ff997744223333aaee44cc33ee88ccbb66"
)


def class_colour(number: int) -> tuple[int, int, int]:
    """RGB of a class by its number in masks, or of a label counted from 1: the same in every picture and page."""
    red, green, blue = bytes.fromhex(_CLASSES[6 * number : 6 * number + 6])
    return red, green, blue


def find_middle(parts: Callable[[], Iterable[np.ndarray]]) -> tuple[float, float]:
    """Between which values the middle 99 % of an image's first three channels lie, without holding or sorting them.

    Args:
        parts: gives (h, W, C) of one type, which together are the image: floats twice, uint8 and uint16 once.
    """
    counts, is_whole = np.zeros(2**16, np.int64), True
    for part in parts():
        for keys, is_whole in _sortable(part):
            counts += np.bincount(keys if is_whole else keys >> 16, minlength=2**16)
    sums, num, found = np.cumsum(counts), int(counts.sum()), []
    at = [share * (num - 1) for share in (0.005, 0.995)]
    ranks = sorted({min(int(one) + more, num - 1) for one in at for more in (0, 1)})
    bins = np.searchsorted(sums, ranks, side="right")
    values = dict(zip(ranks, bins.astype(float).tolist(), strict=True))
    if not is_whole:  # by the upper half of their bits so far: now by the lower one, in the bins that count
        within = {int(one): np.zeros(2**16, np.int64) for one in bins}
        for part in parts():
            for keys, _ in _sortable(part):
                for one, lower in within.items():
                    lower += np.bincount(keys[keys >> 16 == one] & 0xFFFF, minlength=2**16)
        for rank, one in zip(ranks, bins.tolist(), strict=True):
            lower = int(np.searchsorted(np.cumsum(within[one]), rank - (sums[one] - counts[one]), side="right"))
            bits = np.array(one << 16 | lower, np.uint32)
            values[rank] = float((bits & 0x7FFFFFFF if bits >> 31 else ~bits).view(np.float32))
    for one in at:
        lower, upper = values[int(one)], values[min(int(one) + 1, num - 1)]
        found.append(lower + (upper - lower) * (one - int(one)))
    return found[0], found[1]


def _sortable(part: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Whole numbers that are in order as the values are, and whether they are the values; some rows at a time."""
    step = max(1, BLOCK_PX // part.shape[1])
    for top in range(0, len(part), step):  # bincount makes eight bytes of each
        rows = part[top : top + step, :, : 3 if part.shape[2] >= 3 else 1]
        if part.dtype in (np.uint8, np.uint16):
            yield rows.reshape(-1), True
        else:
            bits = rows.astype(np.float32).reshape(-1).view(np.uint32)
            yield np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)), False


def display(image: np.ndarray, middle: tuple[float, float] | None = None) -> np.ndarray:
    """(H, W, C) of any channels and range to (H, W, 3) uint8, contrast stretched to the middle 99 %.

    Args:
        middle: that of the whole image where it is a part of one (`find_middle`).
    """
    channels = image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    low, high = middle or find_middle(lambda: [image])
    # Less than a grey level is not stretched; for floats the size of a level is unknown.
    least = 1.0 if channels.dtype.kind == "u" else np.finfo(np.float32).tiny
    stretched = (channels.astype(np.float32) - low) / max(float(high - low), least)
    return (stretched.clip(0, 1) * 255).round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels that touch another value."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.any([near != mask for near in neighbours], axis=0)


def fill(base: np.ndarray, places: Iterable[tuple[RGBA, np.ndarray]]) -> np.ndarray:
    """A picture (H, W, 3) uint8 with translucent colours over it, each in its area (H, W) bool."""
    filled = base.astype(np.float32)
    for colour, inside in places:
        filled[inside] += colour[3] / 255 * (np.array(colour[:3]) - filled[inside])
    return filled.round().astype(np.uint8)


def fill_classes(base: np.ndarray, places: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """`fill` with the colours of classes: pairs of number and area, as `find_classes` returns them for a mask."""
    return fill(base, (((*class_colour(number), round(255 * FILL)), inside) for number, inside in places))


def error_map(mask: np.ndarray, mask_hat: np.ndarray, known: np.ndarray, background: bool = True) -> np.ndarray:
    """The result of a prediction for each pixel of (H, W) masks, as indices into ERRORS, uint8, without stripes.

    Confused is one class taken for another, or not the same labels.

    Args:
        known: (H, W) bool, False where the true mask is unlabelled.
        background: class 0 is the background; else it is a class, so that nothing is extra or missed.
    """
    cases = (
        (~known, "ignored"),
        (((mask > 0) | (not background)) & (mask_hat == mask), "found"),
        ((mask == 0) & (mask_hat > 0) & background, "extra"),
        ((mask > 0) & (mask_hat == 0) & background, "missed"),
        (mask_hat != mask, "confused"),
    )
    chosen = np.select([where for where, _ in cases], [CODES[name] for _, name in cases], CODES["right"])
    return chosen.astype(np.uint8)


def stripe(errors: np.ndarray) -> np.ndarray:
    """Every other diagonal of missed areas in the paler colour."""
    rows, columns = np.indices(errors.shape)
    pale = (errors == CODES["missed"]) & ((rows + columns) % 4 < 2)
    return np.where(pale, CODES["stripe"], errors).astype(np.uint8)
