from itertools import chain, count

from comfy_api.latest import io

from .types import CATEGORY, REWARD

SLOTS = range(1, 5)


class UniPicCombineRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = []
        for slot in SLOTS:
            inputs += [
                REWARD.Input(f"reward{slot}", optional=slot > 1, tooltip="A reward, or rewards combined already."),
                io.Float.Input(
                    f"weight{slot}",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip=f"What reward{slot} counts. Negative: the less of it the better.",
                ),
            ]
        return io.Schema(
            node_id="UniPicCombineRewards",
            display_name="UniPic Combine Rewards",
            category=f"{CATEGORY}/rewards",
            description="Several rewards as one: their weighted sum.",
            inputs=[
                *inputs,
                io.Boolean.Input(
                    "normalize",
                    default=True,
                    tooltip="In every iteration bring each reward to mean 0 and deviation 1 first, so that weights "
                    "mean the same for a judge's 0 to 10 and a 0 or 1 by rule.",
                ),
            ],
            outputs=[REWARD.Output(display_name="reward", tooltip="For UniPic GRPO Trainer.")],
        )

    @classmethod
    def execute(cls, normalize, **slots) -> io.NodeOutput:
        combined = []
        for slot in SLOTS:
            given = slots.get(f"reward{slot}") or {"rewards": [], "normalize": False}
            if given["normalize"]:
                raise ValueError(f"reward{slot} is normalized already. Connect its parts here, or turn that off there.")
            for spec in given["rewards"]:
                weight = slots[f"weight{slot}"] * spec.get("weight", 1.0)
                combined.append({**spec, "weight": weight, "name": free_name(spec, combined)})
        return io.NodeOutput({"rewards": combined, "normalize": normalize})


def free_name(spec: dict, taken: list[dict]) -> str:
    """The reward's name, with a number if another one is called so."""
    name, taken = spec.get("name", spec["kind"]), {other["name"] for other in taken}
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(free for free in names if free not in taken)
