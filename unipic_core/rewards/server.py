"""python -m unipic_core.rewards.server --reward '{"kind": "geneval"}': any reward for other machines.

POST /score takes {"images": [base64 PNG], "prompts": [...], "metadata": [...], "sources": [...] or null} and answers
{"scores": [number or null]}; GET /health answers once the reward is loaded.
"""

import argparse
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from .base import Reward
from .registry import open_reward
from .web import from_base64

LARGEST_REQUEST = 512 * 2**20  # bytes


def make_server(reward: Reward, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server that answers with the reward's scores; port 0 takes a free one."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._reply(*((200, {"status": "ready"}) if self.path == "/health" else (404, {"error": "POST /score"})))

        def do_POST(self):
            if self.path != "/score":
                return self._reply(404, {"error": f"there is no {self.path}; POST /score"})
            try:
                batch = read_request(self._body())
            except ValueError as error:
                return self._reply(400, {"error": str(error)})
            try:
                with one_at_a_time:
                    scores = score(reward, *batch)
            except ValueError as error:
                return self._reply(400, {"error": str(error)})
            except Exception as error:
                return self._reply(500, {"error": f"{type(error).__name__}: {error}"})
            self._reply(200, {"scores": [value if math.isfinite(value) else None for value in scores]})

        def _body(self) -> bytes:
            length = int(self.headers.get("Content-Length", 0))
            if length > LARGEST_REQUEST:
                raise ValueError(f"the request has {length} bytes, more than {LARGEST_REQUEST}; send fewer pictures")
            return self.rfile.read(length)

        def _reply(self, status: int, answer: dict) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return ThreadingHTTPServer((host, port), Handler)


def read_request(body: bytes) -> tuple[list, list[str], list[dict], list | None]:
    """Images, prompts, metadata and sources of a request. ValueError: what is wrong with it."""
    request = json.loads(body)
    if not isinstance(request, dict) or not isinstance(request.get("images"), list):
        raise ValueError('the request must be a JSON object with "images", "prompts" and "metadata"')
    images = [from_base64(text) for text in request["images"]]
    prompts, metadata = request.get("prompts"), request.get("metadata") or [{}] * len(images)
    sources = request.get("sources")
    for name, values in (("prompts", prompts), ("metadata", metadata), ("sources", sources or images)):
        if not isinstance(values, list) or len(values) != len(images):
            raise ValueError(f'"{name}" must be a list of {len(images)}, one for each picture')
    return images, prompts, metadata, sources and [from_base64(text) for text in sources]


@torch.no_grad()
def score(reward: Reward, images, prompts, metadata, sources) -> list[float]:
    """Scores in the order of the request, whose pictures may differ in size."""
    scores = [math.nan] * len(images)
    sizes = {}
    for row, image in enumerate(images):
        sizes.setdefault((image.shape, sources and sources[row].shape), []).append(row)
    for rows in sizes.values():
        together = None if not sources else torch.stack([sources[row] for row in rows])
        found = reward.score(
            torch.stack([images[row] for row in rows]),
            [prompts[row] for row in rows],
            [metadata[row] for row in rows],
            together,
        )
        for row, value in zip(rows, found.tolist(), strict=True):
            scores[row] = value
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, help="the reward as in a run's configuration, in JSON")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines ask; there is no password")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    server = make_server(open_reward(json.loads(args.reward)).to(args.device), args.host, args.port)
    print(f"ready at http://{args.host}:{server.server_port}/score", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
