r"""What a remote reward and its server say to each other: version 1 of the schema, written and checked here for both.

A request is an HTTP POST with a JSON object as its body,

    version      1
    images       a list of strings, each a PNG file in base64, grey or RGB, all of one size;
                 or {"shape": [n, h, w, c], "uint8": the bytes of that array in base64, row by row}, c = 1 or 3
    condition    a list of n integers, the classes
    prompts      a list of n strings; left out where there are none

and an answer with status 200

    version      1
    scores       {name: a list of n numbers or nulls}; null says that the reward does not apply to that image

NaN and infinity are not JSON: a server that has no number says null, or answers with an error. An error is any other status with
{"version": 1, "error": one line}; status 503 with the header `Retry-After: seconds` says that the server is busy, and to ask again.
"""

import base64
import io
import json
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

VERSION = 1
FORMATS = ("png", "uint8")
_MOST_PIXELS = 1 << 30  # of all images of a request: what decoding may fill


class SchemaError(ValueError):
    """A message that is not of this schema; one line."""


class Request(NamedTuple):
    """What a server is asked.

    Attributes:
        images: Bytes.
        condition: Classes.
        prompts: One an image, or none at all.
    """

    images: UInt8[np.ndarray, "n h w c"]
    condition: Int[np.ndarray, " n"]
    prompts: tuple[str, ...] | None = None


def encode_request(request: Request, form: str = "png") -> bytes:
    """Writes a request.

    Args:
        request: With at least one image.
        form: Of the images, one of `FORMATS`: PNG is smaller, uint8 quicker and simpler to read.

    Returns:
        The body.
    """
    images = request.images
    if form == "png":
        written: Any = [base64.b64encode(_png(image)).decode() for image in images]
    else:
        content = np.ascontiguousarray(images).tobytes()
        written = {"shape": list(images.shape), "uint8": base64.b64encode(content).decode()}
    said = {"version": VERSION, "images": written, "condition": [int(label) for label in request.condition]}
    return json.dumps(said if request.prompts is None else said | {"prompts": list(request.prompts)}).encode()


def decode_request(body: bytes) -> Request:
    """Reads and checks a request.

    Args:
        body: What was sent.

    Returns:
        The request.

    Raises:
        SchemaError: If it is not of the schema.
    """
    said = _object(body, "request")
    images = _images(said.get("images"))
    condition, prompts = said.get("condition"), said.get("prompts")
    if not _is_list(condition, len(images), int):
        raise SchemaError(f"condition must be a list of {len(images)} integers, one an image")
    if prompts is not None and not _is_list(prompts, len(images), str):
        raise SchemaError(f"prompts must be a list of {len(images)} strings, one an image, or left out")
    try:
        labels = np.array(condition, np.int32)
    except OverflowError:
        raise SchemaError("condition must be integers of 32 bits") from None
    return Request(images, labels, None if prompts is None else tuple(prompts))


def encode_scores(scores: dict[str, Float[np.ndarray, " n"]]) -> bytes:
    """Writes an answer.

    Args:
        scores: Values by name; NaN: does not apply.

    Returns:
        The body.

    Raises:
        SchemaError: If a value is infinite.
    """
    infinite = [name for name, values in scores.items() if np.isinf(values).any()]
    if infinite:
        raise SchemaError(f"scores of {', '.join(infinite)} are not finite")
    plain = {name: [None if math.isnan(value) else float(value) for value in values] for name, values in scores.items()}
    return json.dumps({"version": VERSION, "scores": plain}, allow_nan=False).encode()


def decode_scores(body: bytes, count: int, field: str = "") -> Float[np.ndarray, " n"]:
    """Reads and checks an answer.

    Args:
        body: What was answered.
        count: How many images were sent.
        field: Which of the scores; empty: the only one.

    Returns:
        float32, NaN for null.

    Raises:
        SchemaError: If it is not of the schema, or has no such score.
    """
    scores = _object(body, "answer").get("scores")
    if not isinstance(scores, dict) or not scores:
        raise SchemaError("scores must be an object with a list of numbers by name")
    if field not in scores and (field or len(scores) > 1):
        asked = f"no score {field!r}" if field else "several scores and field does not say which"
        raise SchemaError(f"the answer has {asked}: it has {', '.join(sorted(scores))}")
    values = scores[field] if field in scores else next(iter(scores.values()))
    if not isinstance(values, list) or len(values) != count:
        found = len(values) if isinstance(values, list) else "no list"
        raise SchemaError(f"scores must be {count} numbers, one an image; got {found}")
    wrong = [value for value in values if value is not None and (isinstance(value, bool) or not isinstance(value, int | float))]
    if wrong:
        raise SchemaError(f"scores must be numbers or null, got {str(wrong[0])[:40]!r}")
    return np.array([math.nan if value is None else value for value in values], np.float32)


def encode_error(message: str) -> bytes:
    """Writes an error.

    Args:
        message: What is wrong, and what to do.

    Returns:
        The body.
    """
    return json.dumps({"version": VERSION, "error": " ".join(message.split())}).encode()


def decode_error(body: bytes) -> str:
    """Reads an error, of whatever form.

    Args:
        body: What was answered with a status that is not 200.

    Returns:
        One line of at most 120 characters, empty if nothing was said.
    """
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
        text = said["error"] if isinstance(said, dict) and isinstance(said.get("error"), str) else text
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:120]


def _object(body: bytes, what: str) -> dict[str, Any]:
    try:
        said = json.loads(body, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"the {what} is not JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(said, dict) or said.get("version") != VERSION:
        found = said.get("version") if isinstance(said, dict) else None
        raise SchemaError(f"the {what} must be a JSON object with version {VERSION}, got version {str(found)[:20]}")
    return said


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON; null says that there is none")


def _is_list(values: Any, count: int, kind: type) -> bool:
    return isinstance(values, list) and len(values) == count and all(type(value) is kind for value in values)


def _images(said: Any) -> UInt8[np.ndarray, "n h w c"]:
    if isinstance(said, dict):
        return _block(said.get("shape"), said.get("uint8"))
    if not isinstance(said, list) or not said:
        raise SchemaError("images must be a list of PNG files in base64, or an object with shape and uint8; at least one image")
    found = [_picture(text, index, len(said)) for index, text in enumerate(said)]
    if len({image.shape for image in found}) > 1:
        raise SchemaError(f"images must be of one size, got {sorted({image.shape for image in found})}")
    return np.stack(found)


def _block(shape: Any, content: Any) -> UInt8[np.ndarray, "n h w c"]:
    if not _is_list(shape, 4, int) or min(shape) < 1 or shape[3] not in (1, 3):
        raise SchemaError("images.shape must be [n, h, w, 1 or 3]")
    data = _bytes(content, "images.uint8")
    if len(data) != math.prod(shape):
        raise SchemaError(f"images.uint8 has {len(data)} bytes, shape {shape} asks for {math.prod(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _picture(text: Any, index: int, count: int) -> UInt8[np.ndarray, "h w c"]:
    from PIL import Image

    data = _bytes(text, f"images[{index}]")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in ("L", "RGB"):
                raise SchemaError(f"images[{index}] must be grey or RGB with 8 bits, got {image.mode}")
            # Before it is decoded: a small file may claim to be a huge picture.
            if image.width * image.height * count > _MOST_PIXELS:
                raise SchemaError(f"images[{index}] is too large: {image.width} x {image.height}")
            pixels = np.asarray(image)
    except SchemaError:
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise SchemaError(f"images[{index}] is not a PNG file ({' '.join(str(error).split())[:60]})") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _bytes(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise SchemaError(f"{what} is not base64") from None


def _png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG", compress_level=1)
    return file.getvalue()
