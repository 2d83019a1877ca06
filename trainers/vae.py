"""accelerate launch -m trainers.vae --config RUN.yaml: train the autoencoder of a small model from scratch."""

from pathlib import Path

from trainers.launch import main
from unipic_core.training.unipic1_vae import InheritingVaeTask, UniPic1VaeTask
from unipic_core.training.vae import VaeConfig, VaeTask


def task_of(config: VaeConfig) -> VaeTask:
    is_unipic1 = (Path(config.model) / "vae.safetensors").is_file()
    if config.donor and not is_unipic1:
        raise ValueError(f"donor is for the autoencoder of a UniPic 1 folder, which {config.model} is not")
    return (InheritingVaeTask if config.donor else UniPic1VaeTask if is_unipic1 else VaeTask)(config)


if __name__ == "__main__":
    main(VaeConfig, task_of)
