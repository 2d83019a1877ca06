"""accelerate launch -m trainers.img_reward --config RUN.yaml: train a pairwise judge of pictures with GRPO."""

from trainers.launch import main
from unipic_core.training.img_reward import ImgRewardConfig, ImgRewardTask

if __name__ == "__main__":
    main(ImgRewardConfig, ImgRewardTask)
