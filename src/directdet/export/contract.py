"""The contract of an artefact in words: what goes into the graph, and what comes out. In meta.json and in README.md.

Both say the same, from the same values. Whoever has only them can run the graph, in any language, and reach the AP that
`directdet eval` measures.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from directdet.export.running import running
from directdet.infer.preprocess import Preprocess

README_FILE = "README.md"

# What each threshold of meta.json means.
_THRESHOLDS: dict[str, Callable[[Any], str]] = {
    "score_threshold": lambda value: f"only scores above {value:g} are returned",
    "nms": lambda value: f"of two boxes of one class with an IoU above {value:g} only the better is returned",
    "detections": lambda value: f"at most {value} detections a picture are returned, the best of all classes",
    "candidates": lambda value: f"the best {value} pairs of box and class enter NMS",
    "test_proposals": lambda value: f"the region proposals are the best {value} of a picture",
}


def contract(preprocess: Preprocess, dtype: str, thresholds: dict[str, Any], masks: bool) -> dict[str, Any]:
    """What meta.json says under "contract": short sentences by name, the numbers of this artefact in them.

    Args:
        preprocess: onto a fixed canvas.
        dtype: of the input, "uint8" or "float32".
        thresholds: as in meta.json.
        masks: whether the graph has the output `masks`.
    """
    height, width = preprocess.size
    scale = f"scale = min({height} / height, {width} / width); new_height = floor(height * scale + 0.5)"
    bounds = f"both at least 1, new_height at most {height}, new_width at most {width}"
    letterbox = f"proportions kept: {scale}, new_width = floor(width * scale + 0.5), {bounds}"
    warp = f"stretched to the whole canvas, proportions not kept: new_height = {height}, new_width = {width}"
    return {
        "picture": _picture(preprocess),
        "resize": warp if preprocess.warp else letterbox,
        "interpolation": "bilinear between the four nearest pixels, without antialiasing; pixel centres lie at halves: "
        "x_source = (x + 0.5) * width / new_width - 0.5, clamped to 0 .. width - 1, and y likewise; "
        + _rounding(preprocess),
        "place": f"canvas of height {height} and width {width}; the resized picture lies in its top left corner"
        + (" and fills it" if preprocess.warp else "; the rest, at the right or below, is padding"),
        **_input(preprocess, dtype),
        "outputs": _outputs(masks),
        "empty_rows": "rows from num on are zero in every output",
        "boxes": f"x0, y0, x1, y1 (left, top, right, bottom) in pixels of the canvas, 0 to {width} and 0 to {height}; "
        "pixel x covers x to x + 1; not normalised",
        "boxes_to_picture": "divide x by new_width / width and y by new_height / height, clip to 0 .. width and "
        "0 .. height, and drop boxes without area: they lie in the padding",
        "labels": "count from 0 (there is no background class): the index into classes, and into category_ids, which "
        "are the ids of the training data's annotation file",
        "scores": "0 to 1, sorted, the best detection first",
        **({"masks": _MASKS} if masks else {}),
        "thresholds": [_THRESHOLDS[name](value) for name, value in thresholds.items()],
    }


_MASKS = (
    "probabilities of the object, row by row from the top, whose equal cells tile the box as it is returned, before it "
    "is clipped to the picture: convert that box to the picture without clipping. A picture's pixel belongs to the "
    "object if its centre (x + 0.5, y + 0.5) lies in the clipped box and the bilinear interpolation of the "
    "probabilities between the cells' centres, with zero beyond the outermost centres as if another ring of cells were "
    "there, is at least 0.5"
)


def _picture(preprocess: Preprocess) -> str:
    """What a picture is before anything is done to it."""
    pixels = preprocess.pixels
    stored = (
        "as stored in the file: `directdet eval` does not apply a photo's EXIF orientation, because annotations count "
        "the stored pixels"
    )
    if pixels.upright:
        stored = "turned and mirrored as the file's EXIF orientation says, as viewers show it"
    if pixels.is_rgb:
        return (
            f"8 bits a channel, 3 channels, 0 to 255, {stored}; grey is repeated in 3 channels, transparency is "
            "dropped, of 16 bits the upper 8 are taken"
        )
    values = "any finite number" if pixels.dtype == "float32" else f"0 to {np.iinfo(pixels.dtype).max}"
    return f"{pixels.kind}, {values}, {stored}; pictures of another kind are not converted"


def _rounding(preprocess: Preprocess) -> str:
    if preprocess.dtype == "float32":
        return "the result is not rounded (OpenCV: resize with INTER_LINEAR on float32 pixels)"
    bits = {"uint8": 8, "uint16": 16}[preprocess.dtype]
    what = "grey levels" if bits == 8 else "numbers"
    return f"the result is rounded to whole {what} (OpenCV: resize with INTER_LINEAR on {bits}-bit pixels)"


def _input(preprocess: Preprocess, dtype: str) -> dict[str, Any]:
    """What depends on the type of the input."""
    pixels = preprocess.pixels
    other = (
        "as in the files that the model was trained on, the first channel first (OpenCV exchanges the first and the "
        "third of three or four)"
    )
    if dtype == "uint8":
        return {
            "channel_order": "blue, green, red" if pixels.is_rgb else other,
            "values": "whole grey levels, 0 to 255; the graph normalises them itself: neither divide nor subtract",
            "padding_value": [int(level) for level in preprocess.pad_colour],
            "layout": "[picture, row, column, channel]",
        }
    mean, std = (", ".join(f"{value:.9g}" for value in values) for values in (preprocess.mean, preprocess.std))
    values = f"(grey level - mean) / std, grey levels 0 to 255, mean {mean} and std {std} of red, green, blue"
    if not pixels.is_rgb:
        values = f"(value - mean) / std, mean {mean} and std {std} of the channels in their order"
    return {
        "channel_order": "red, green, blue" if pixels.is_rgb else other,
        "values": values,
        "padding_value": [0.0] * pixels.channels,
        "layout": "[picture, channel, row, column]",
    }


def _outputs(masks: bool) -> dict[str, str]:
    outputs = {
        "num": "int32 [N, 1]: how many detections the picture has",
        "boxes": "float32 [N, K, 4]",
        "scores": "float32 [N, K]",
        "labels": "int32 [N, K]",
    }
    return outputs | ({"masks": "float32 [N, K, M, M]"} if masks else {})


def readme(meta: dict[str, Any]) -> str:
    """The text of the artefact's README.md, from the content of meta.json."""
    words, given = meta["contract"], meta["input"]
    shape = ", ".join("N" if size is None else str(size) for size in given["shape"])
    batch = meta["shapes"]["batch"]
    if batch["min"] == batch["max"]:
        batch_text = f"always {batch['min']} at once"
    else:
        batch_text = f"{batch['min']} to {batch['max']} at once, usually {batch['opt']}"
    files = ", ".join(f"`{name}`" for name in meta["files"])
    steps = [
        f"Read the picture: {words['picture']}.",
        f"Resize it: {words['resize']}.",
        f"Interpolation: {words['interpolation']}.",
        f"Place: {words['place']}.",
        f"Order of the channels: {words['channel_order']}.",
        f"Values: {words['values']}.",
        f"Padding, in this order of channels: {', '.join(map(str, words['padding_value']))}.",
        f"Layout: {words['layout']}.",
    ]
    about = [
        f"Empty rows: {words['empty_rows']}.",
        f"`boxes`: {words['boxes']}.",
        f"Boxes in the picture: {words['boxes_to_picture']}.",
        f"`labels`: {words['labels']}.",
        f"`scores`: {words['scores']}.",
        *([f"`masks`: {words['masks']}."] if "masks" in words else []),
    ]
    return "\n".join(
        [
            "# An object detector",
            "",
            f"Written by directdet {meta['built_with']['directdet']}: {files} ({meta['kind']}, {meta['precision']}).",
            "`meta.json` says the same as this page, for programs.",
            "",
            "## What goes in",
            "",
            f"One input, `{given['name']}`: {given['dtype']} `[{shape}]`, pictures {batch_text}.",
            "",
            *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
            "",
            "## What comes out",
            "",
            *(f"- `{name}`: {text}" for name, text in words["outputs"].items()),
            "",
            *(f"- {sentence}" for sentence in about),
            "",
            "What was set when it was exported (it is part of the graph):",
            "",
            *(f"- {text}" for text in words["thresholds"]),
            *_suggestion(meta.get("suggested_score")),
            "",
            "## Classes",
            "",
            *_classes(meta),
            "",
            *running(meta),
        ]
    )


def _suggestion(suggested: dict[str, Any] | None) -> list[str]:
    """The score threshold that suits, in a paragraph; nothing where it is not known."""
    if suggested is None:
        return []
    gives = "precision {precision:.2f}, recall {recall:.2f}, F1 {f1:.2f}".format(**suggested)
    where = f"on {suggested['images']} pictures, at an IoU of 0.5 ({gives})"
    lines = ["", f"Keep scores of at least {suggested['score']:g} for the best F1 {where}."]
    if "per_class" in suggested:
        held_out = suggested["held_out_f1"]
        own, common = (" and ".join(f"{f1:.2f}" for f1 in held_out[side]) for side in ("per_class", "common"))
        lines[-1] += (
            " Better is a least score for each class, which the table below has: of each half of the pictures, with "
            f"scores that were chosen on the other half, F1 is {own} with them, {common} with one for all classes."
        )
    return lines


def _classes(meta: dict[str, Any]) -> list[str]:
    """The table of the classes, with the least score of each where the artefact suggests those."""
    suggested = meta.get("suggested_score") or {}
    own = suggested.get("per_class")
    rows = [
        (str(label), str(number), _cell(name), *([] if own is None else [f"{own.get(name, suggested['score']):g}"]))
        for label, (name, number) in enumerate(zip(meta["classes"], meta["category_ids"], strict=True))
    ]
    headers = ("label", "category id", "name", *([] if own is None else ["least score"]))
    return [f"| {' | '.join(row)} |" for row in (headers, ("---",) * len(headers), *rows)]


def _cell(text: str) -> str:
    """Any text in a cell of a Markdown table."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|")
