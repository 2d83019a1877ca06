"""How a run goes: its numbers as text, curves and sample pictures."""

import io
from pathlib import Path

import comfy.utils
from PIL import Image
from server import PromptServer

from ...unipic_core.training.metrics import read_metrics

PANELS = {
    "reward": ("reward", "validation_reward"),
    "each reward": ("reward_", "held_out_"),
    "distance from the start": ("kl", "reference_distance"),
    "canaries": ("canary_",),
}
LARGEST_PREVIEW = 1024  # px


class Progress:
    """Shows on the node what the run in `folder` has written since the last look."""

    def __init__(self, folder: Path, steps: int, node_id: str | None):
        self.folder, self.steps, self.node_id = folder, steps, node_id
        self.bar = comfy.utils.ProgressBar(steps, node_id=node_id)
        self.seen = 0
        self.say("starting the training process")

    def update(self) -> None:
        lines = metrics_of(self.folder)
        if not lines or len(lines) == self.seen:  # a run that was killed before its first checkpoint begins anew
            return
        self.seen = len(lines)
        picture = overview(self.folder, lines)
        self.bar.update_absolute(lines[-1]["step"], self.steps, preview=("PNG", picture, LARGEST_PREVIEW))
        self.say(f"iteration {lines[-1]['step']} of {self.steps}: {in_short(lines)}")

    def say(self, text: str) -> None:
        PromptServer.instance.send_progress_text(text, self.node_id)


def metrics_of(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return read_metrics(file) if file.exists() else []


def cost_of(lines: list[dict]) -> float:
    """What the judges of a run have cost, by the prices on their nodes."""
    return sum(line.get(name, 0.0) for line in lines for name in ("cost", "validation_cost"))


def in_short(lines: list[dict]) -> str:
    line = next((line for line in reversed(lines) if "reward" in line), {})
    values = [f"{name} {line[name]:.3g}" for name in ("reward", "kl") if name in line]
    if paid := cost_of(lines):
        values.append(f"cost so far {paid:.3g}")
    seconds = sum(value for name, value in line.items() if name.startswith("seconds_"))
    return ", ".join([*values, f"{seconds:.3g} s each"])


def draw_curves(lines: list[dict]) -> Image.Image:
    """A panel for each group of metrics."""
    from matplotlib.figure import Figure  # pyplot would choose a backend for all of ComfyUI

    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    for axis, (title, starts) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        names = {name: None for line in lines for name in line if name.startswith(starts)}
        if title == "reward":
            names = dict.fromkeys(starts)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                marker = "o" if len(points) < 3 else None
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.5, marker=marker, markersize=3)
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def latest_samples(folder: Path) -> Image.Image | None:
    """The newest validation grid."""
    files = sorted((folder / "samples").glob("step-*.png"))
    return Image.open(files[-1]).convert("RGB") if files else None


def overview(folder: Path, lines: list[dict]) -> Image.Image:
    """The curves, and below them the newest samples in the same width."""
    curves, samples = draw_curves(lines), latest_samples(folder)
    if samples is None:
        return curves
    samples = samples.resize((curves.width, round(samples.height * curves.width / samples.width)))
    picture = Image.new("RGB", (curves.width, curves.height + samples.height))
    picture.paste(curves)
    picture.paste(samples, (0, curves.height))
    return picture
