"""What training nodes hand to each other: plain descriptions, in the words of a run's configuration."""

from comfy_api.latest import io

DATASET = io.Custom("UNIPIC_DATASET")  # prompt sources, a list as in GRPOConfig.prompts
REWARD = io.Custom("UNIPIC_REWARD")  # {"rewards": a list as in GRPOConfig.rewards, "normalize": bool}
CATEGORY = "UniPic/training"


def reward(**spec) -> io.NodeOutput:
    """One reward, by its kind and arguments."""
    return io.NodeOutput({"rewards": [spec], "normalize": False})
