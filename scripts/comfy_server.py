"""A real ComfyUI server in a child process with a base directory of its own, and a small client for it."""

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import websocket
from PIL import Image


class PromptRejected(Exception):
    """ComfyUI refused a graph before running it; `details` is its answer (`error` and `node_errors`)."""

    def __init__(self, details: dict):
        super().__init__(json.dumps(details, indent=2))
        self.details = details


@dataclass
class Run:
    """What became of one queued graph: websocket messages in order, outputs by node id, the execution error if any.

    Preview pictures are binary messages: four bytes each for the kind, 1, and the format, 1 for JPEG, then the file.
    """

    prompt_id: str
    messages: list[dict] = field(default_factory=list)
    binary: list[bytes] = field(default_factory=list)
    outputs: dict = field(default_factory=dict)

    def data_of(self, kind: str) -> list[dict]:
        return [message["data"] for message in self.messages if message["type"] == kind]

    @property
    def error(self) -> dict | None:
        return next(iter(self.data_of("execution_error")), None)


def link(place: Path, folder: Path) -> None:
    """Symbolic links need a privilege on Windows; junctions do not."""
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(folder), str(place))
    else:
        place.symlink_to(folder, target_is_directory=True)


class ComfyServer:
    """Use as a context manager; `packs` maps names under `custom_nodes` to the folders that are linked there."""

    def __init__(self, comfyui: Path, base: Path, packs: dict[str, Path]):
        self.comfyui, self.base = Path(comfyui), Path(base)
        self.log = self.base / "server.log"
        custom_nodes = self.base / "custom_nodes"
        custom_nodes.mkdir(parents=True)
        (self.base / "user").mkdir()  # for ComfyUI's database
        for name, folder in packs.items():
            link(custom_nodes / name, folder)

    def __enter__(self) -> "ComfyServer":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [sys.executable, "main.py", "--cpu", "--base-directory", self.base, "--disable-auto-launch"]
        command += ["--disable-api-nodes", "--port", self.address.split(":")[1]]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self.wait_until(self._answers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until(self, condition: Callable[[], bool], timeout: float = 180) -> None:
        """Polls; raises RuntimeError with the end of the log when the server died or the time is up."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Waited in vain for ComfyUI. The end of its log:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except urllib.error.URLError:
            return False

    def get(self, path: str):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as reply:
            return json.load(reply)

    def post(self, path: str, payload: object = None):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(payload).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            body = reply.read()
        return json.loads(body) if body else None

    def run(self, graph: dict, on_message: Callable[[dict], None] | None = None, timeout: float = 300) -> Run:
        """Queues an API-format graph and waits until ComfyUI is done with it, whatever the outcome.

        Raises PromptRejected when the graph does not pass ComfyUI's validation.
        """
        client = uuid.uuid4().hex
        connection = websocket.create_connection(f"ws://{self.address}/ws?clientId={client}", timeout=timeout)
        try:
            run = Run(self._queue(graph, client))
            while True:
                received = connection.recv()
                if isinstance(received, bytes):
                    run.binary.append(received)
                    continue
                message = json.loads(received)
                if message["data"].get("prompt_id") != run.prompt_id:
                    continue
                run.messages.append(message)
                if on_message:
                    on_message(message)
                if message["type"] == "executing" and message["data"]["node"] is None:
                    break
        finally:
            connection.close()
        run.outputs = self.get(f"/history/{run.prompt_id}")[run.prompt_id]["outputs"]
        return run

    def _queue(self, graph: dict, client: str) -> str:
        try:
            return self.post("/prompt", {"prompt": graph, "client_id": client})["prompt_id"]
        except urllib.error.HTTPError as refused:
            raise PromptRejected(json.load(refused)) from None

    def images(self, run: Run) -> list[Image.Image]:
        """The pictures that the graph's save and preview nodes gave, in the order of their node ids."""
        files = [file for node in sorted(run.outputs, key=int) for file in run.outputs[node].get("images", [])]
        return [self.image(**file) for file in files]

    def image(self, **file: str) -> Image.Image:
        url = f"http://{self.address}/view?{urllib.parse.urlencode(file)}"
        with urllib.request.urlopen(url, timeout=60) as reply:
            return Image.open(io.BytesIO(reply.read())).convert("RGB")
