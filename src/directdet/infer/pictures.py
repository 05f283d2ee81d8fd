"""What a `Detector` takes for a picture: a path, an open file, a picture of PIL or an array; all become an array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, TypeGuard

import numpy as np

from directdet.common.errors import UserError
from directdet.common.settings import check_word
from directdet.data.image import read_bytes
from directdet.infer.predict.reading import decode_picture
from directdet.infer.preprocess import Preprocess, fits

if TYPE_CHECKING:
    from PIL.Image import Image

Order: TypeAlias = Literal["bgr", "rgb"]
PictureLike: TypeAlias = "str | os.PathLike[str] | BinaryIO | np.ndarray | Image"

ORDERS = ("bgr", "rgb")
_DEEP = ("I", "F")  # PIL's modes of more than 8 bits a channel, which its own conversion to RGB cuts off at 255


def is_picture(value: object) -> bool:
    """Whether `value` is meant as one picture, rather than as several; a file can be iterated, too."""
    return isinstance(value, (str, bytes, os.PathLike, np.ndarray)) or _is_file(value) or _is_pil(value)


def to_array(picture: PictureLike, preprocess: Preprocess, order: Order = "bgr") -> np.ndarray:
    """The pixels of a picture as the model takes them, by default uint8 [h, w, 3] BGR.

    A file's photo is turned as a viewer shows it; the pixels of PIL and arrays are taken as they are.

    Args:
        order: of an array's colours; files and PIL say theirs themselves.

    Raises:
        UserError: it is no picture, or cannot be read; the message says what to give.
    """
    check_word("order", order, ORDERS)
    if isinstance(picture, (str, os.PathLike)):
        return decode_picture(read_bytes(picture), Path(picture), True, preprocess.pixels)[0]
    if _is_file(picture):
        return _read(picture, preprocess)
    if _is_pil(picture) and preprocess.pixels.is_rgb:
        if picture.mode.startswith(_DEEP):
            raise UserError(f"a picture of PIL in mode {picture.mode}: give its file, or convert it to 8 bits")
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1])
    check_picture(picture, preprocess)
    assert isinstance(picture, np.ndarray)  # check_picture refused the rest
    return picture if order == "bgr" or not preprocess.pixels.is_rgb else np.ascontiguousarray(picture[:, :, ::-1])


def _read(file: BinaryIO, preprocess: Preprocess) -> np.ndarray:
    name = getattr(file, "name", None)
    shown = name if isinstance(name, str) else "the file"
    content = file.read()
    if not isinstance(content, (bytes, bytearray)):
        raise UserError(f"{shown}: opened as text; open it with mode 'rb'")
    return decode_picture(bytes(content), shown, True, preprocess.pixels)[0]


def _is_file(value: Any) -> TypeGuard[BinaryIO]:
    return callable(getattr(value, "read", None)) and not isinstance(value, type)


def _is_pil(value: Any) -> TypeGuard[Image]:
    return type(value).__module__.partition(".")[0] == "PIL" and callable(getattr(value, "convert", None))


def check_picture(image: Any, preprocess: Preprocess) -> None:
    """UserError, in one line that says what to give instead, for anything but a picture as the model takes it.

    That is an array [h, w, C] of its type, by default uint8 [h, w, 3], with h and w at least 1.
    """
    if isinstance(image, np.ndarray):
        shown = f"{image.dtype} {list(image.shape)}"
        if fits(image, preprocess.pixels):
            return
        if not image.size:
            hint = "there are no pixels in it; is it a crop outside of the picture?"
        elif not preprocess.pixels.is_rgb:
            hint = "give what the model was trained on"
            if image.ndim == 2 and preprocess.pixels.channels == 1:
                hint = "image[:, :, None] adds the axis of the channel"
        elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
            hint = "a grey picture; cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) makes three channels"
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = "a picture with transparency; cv2.cvtColor(image, cv2.COLOR_BGRA2BGR) takes it off"
        elif image.ndim == 4:
            hint = "several pictures; give them to detect_batch"
        else:
            hint = "the pixels have to be uint8, 0 to 255, height x width x 3"
    elif isinstance(image, (str, bytes, os.PathLike)):
        shown = f"the path {os.fsdecode(image)!r}"
        missing = "" if os.path.isfile(image) else ", and there is no such file"
        hint = f"give its pixels, as cv2.imread(path) reads them{missing}"
    elif image is None:
        shown, hint = "None", "cv2.imread returns it for a file that it cannot read"
    elif type(image).__module__.split(".")[0] == "PIL":
        shown, hint = "a picture of PIL", "np.asarray(image.convert('RGB'))[:, :, ::-1] makes an array in BGR order"
        hint = hint if preprocess.pixels.is_rgb else "give its file, or an array of its pixels"
    else:
        shown, hint = f"a {type(image).__name__}", "np.asarray makes an array of it"
    who = "a detector" if preprocess.pixels.is_rgb else "this detector"
    raise UserError(f"{who} takes pictures as {preprocess.takes}, not {shown}: {hint}")
