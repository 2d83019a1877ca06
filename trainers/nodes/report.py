"""What is to be said about a finished run."""

from pathlib import Path

from .progress import cost_of, metrics_of

SHOWN = ("validation_reward", "validation_held_out_", "canary_")
WARNING = "UserWarning: "


def report(folder: Path, lora: str) -> str:
    lines = metrics_of(folder)
    text = [f"LoRA: {lora}", f"run: {folder}", f"iterations: {lines[-1]['step']}", "", "first → last"]
    for name in {name: None for line in lines for name in line}:
        if name in ("reward", "kl") or name.startswith(SHOWN):
            values = [line[name] for line in lines if name in line]
            text.append(f"{name}: {values[0]:.4g} → {values[-1]:.4g}")
    lost = sum(line.get("unscored", 0) for line in lines)
    same = sum(line.get("dropped_groups", 0) for line in lines)
    text += ["", f"pictures without a reward: {lost:.0f}", f"prompts whose pictures all got the same: {same:.0f}"]
    if paid := cost_of(lines):
        text.append(f"cost of the judges: {paid:.4g}")
    return "\n".join([*text, *warnings_in(folder / "log.txt")])


def warnings_in(log: Path) -> list[str]:
    """What the trainer warned of, each once."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {line.partition(WARNING)[2]: None for line in lines if WARNING in line}
    return ["", "warnings:", *found] if found else []
