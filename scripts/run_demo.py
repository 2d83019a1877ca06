"""The part of demo.py that needs packages: runs the demo workflows in a real server and detects what they drew."""

import json
import sys
import tempfile
from pathlib import Path

from comfy_server import ComfyServer
from PIL import Image
from workflow_parts import as_drawn

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from unipic_core.shapes import detect, detect_background  # noqa: E402

OUTPUT = ROOT / "demo_output"


def seen_in(picture: Image.Image) -> str:
    """What the detector finds in a picture of a demo workflow."""
    things = [f"a {found.color} {found.label}" for found in detect(as_drawn(picture))] or ["nothing"]
    return f"{' and '.join(things)} on a {detect_background(picture)} background"


def prompts(graph: dict) -> list[str]:
    """The prompts of a workflow, in the order in which its pictures are made."""
    return [graph[node]["inputs"]["prompt"] for node in sorted(graph, key=int) if "prompt" in graph[node]["inputs"]]


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unipic-demo-") as base:
        print("[demo] starting ComfyUI", flush=True)
        with ComfyServer(Path(sys.argv[1]), Path(base), {"unipic": ROOT}) as server:
            for name in ("demo_text_to_image", "demo_edit"):
                print(f"[demo] running workflows/api/{name}.json", flush=True)
                graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
                run = server.run(graph)
                if run.error:
                    sys.exit(f"{run.error['node_type']}: {run.error['exception_message']}")
                for number, (prompt, picture) in enumerate(zip(prompts(graph), server.images(run), strict=True), 1):
                    file = OUTPUT / f"{name}_{number}.png"
                    picture.save(file)
                    print(f"  asked:    {prompt}\n  detected: {seen_in(picture)}\n  picture:  {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
