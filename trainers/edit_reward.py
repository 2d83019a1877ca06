"""accelerate launch -m trainers.edit_reward --config RUN.yaml: train Qwen2.5-VL to score edits like a judge."""

from trainers.launch import main
from unipic_core.training.edit_reward import EditRewardConfig, EditRewardTask

if __name__ == "__main__":
    main(EditRewardConfig, EditRewardTask)
