"""accelerate launch -m trainers.grpo --config RUN.yaml: reinforcement learning of a Kontext LoRA on rewards."""

from trainers.launch import main
from unipic_core.rl import GRPOConfig, GRPOTask

if __name__ == "__main__":
    main(GRPOConfig, GRPOTask)
