"""JSON over HTTP, with patience: time limits, retries with growing pauses, and errors that say what happened."""

import base64
import http.client
import io
import json
import random
import time
import urllib.error
import urllib.request
from email.message import Message

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..stopping import ASKED

WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 30.0  # seconds


class NoAnswer(RuntimeError):
    """The server gave no usable answer, however often it was asked."""


class Refused(NoAnswer):
    """The server understood and said no; asking again will not help."""


def ask(url: str, payload: dict, headers: dict[str, str], timeout: float, patience: float) -> dict:
    """POST a JSON object and get one back, asking again for `patience` seconds while the server is down or busy.

    timeout: seconds that one try may take.
    Raises Refused for errors that another try cannot mend, NoAnswer when the patience is over.
    """
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json", **headers})
    deadline, pause = time.monotonic() + patience, 0.5
    while True:
        wait = 0.0
        try:
            status, answered, body = post(request, timeout)
            if status >= 300:
                problem = f"HTTP {status}: {body[:300].decode(errors='replace')}"
                if status not in WORTH_ANOTHER_TRY:
                    raise Refused(f"{url} refuses: {problem}")
                wait = seconds(answered.get("Retry-After"))
            elif isinstance(answer := json.loads(body), dict):
                return answer
            else:
                problem = f"it answered {str(answer)[:80]!r} in place of a JSON object"
        except ValueError:
            problem = "it answered something that is not JSON"
        except (OSError, http.client.HTTPException) as error:  # no, broken or garbled connections, and time-outs
            problem = f"{type(error).__name__}: {error}"
        wait = max(wait, pause * random.uniform(0.8, 1.2))
        if time.monotonic() + wait > deadline:
            raise NoAnswer(f"{url} gave no answer within {patience:g} seconds; the last problem: {problem}")
        if ASKED.wait(wait):
            raise NoAnswer(f"{url} had given no answer when the run was asked to stop")
        pause = min(2 * pause, LONGEST_PAUSE)


def post(request: urllib.request.Request, timeout: float) -> tuple[int, Message, bytes]:
    """Status, headers and body of the answer, errors too."""
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, response.headers, response.read()


def seconds(retry_after: str | None) -> float:
    """The Retry-After header, where it is a number of seconds."""
    return min(float(retry_after), LONGEST_PAUSE) if retry_after and retry_after.isdigit() else 0.0


def to_base64(image: torch.Tensor) -> str:
    """A picture [3, H, W] in [0, 1] as a PNG."""
    buffer = io.BytesIO()
    to_pil_image((image.float().cpu().clamp(0, 1) * 255).round().byte()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def from_base64(text: str) -> torch.Tensor:
    """A picture file in base64 as [3, H, W] in [0, 1]. ValueError: it is none."""
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True))).convert("RGB")
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"a picture cannot be read: {error}") from None
    return pil_to_tensor(picture) / 255
