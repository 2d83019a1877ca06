"""accelerate launch -m trainers.vae --config RUN.yaml: train the autoencoder of a small model from scratch."""

from pathlib import Path

from trainers.launch import main
from unipic_core.training.unipic1_vae import UniPic1VaeTask
from unipic_core.training.vae import VaeConfig, VaeTask


def task_of(config: VaeConfig) -> VaeTask:
    is_unipic1 = (Path(config.model) / "vae.safetensors").is_file()
    return UniPic1VaeTask(config) if is_unipic1 else VaeTask(config)


if __name__ == "__main__":
    main(VaeConfig, task_of)
