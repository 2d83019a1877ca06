"""accelerate launch -m trainers.vae --config RUN.yaml: train the autoencoder of a small model from scratch."""

from trainers.launch import main
from unipic_core.training.vae import VaeConfig, VaeTask

if __name__ == "__main__":
    main(VaeConfig, VaeTask)
