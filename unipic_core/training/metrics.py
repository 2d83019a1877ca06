"""Metrics of a run: JSON lines for machines, a curve picture for people."""

import json
from pathlib import Path

from ..files import replaced_file


def read_metrics(path: Path) -> list[dict]:
    """All complete lines (a killed run may leave half a line at the end)."""
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class MetricsLog:
    """`metrics.jsonl`, one object a line with its `step`; `curves.png` drawn from it."""

    def __init__(self, folder: Path, step: int):
        """Go on after `step`: lines of later steps, which a killed run had written, are dropped."""
        self.path = folder / "metrics.jsonl"
        kept = [line for line in self.read() if line["step"] <= step] if self.path.exists() else []
        with replaced_file(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> list[dict]:
        return read_metrics(self.path)

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def draw(self) -> None:
        """Write `curves.png`: one panel per metric; nothing before the first line."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        lines = self.read()
        if not lines:
            return
        names = sorted({name for line in lines for name in line} - {"step"})
        columns = min(len(names), 5)
        rows = -(-len(names) // columns)
        figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
        for axis in axes.flat[len(names) :]:
            axis.remove()
        for name, axis in zip(names, axes.flat, strict=False):
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), linewidth=1)
            axis.set(title=name, xlabel="step")
            axis.grid(alpha=0.3)
        figure.tight_layout()
        with replaced_file(self.path.with_name("curves.png")) as partial:
            figure.savefig(partial, dpi=90, format="png")
        pyplot.close(figure)
