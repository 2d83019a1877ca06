"""accelerate launch -m trainers.unipic1 --config RUN.yaml: train UniPic 1, any of its four stages."""

from trainers.launch import main
from unipic_core.training.unipic1 import UniPic1Task, UniPic1Training

if __name__ == "__main__":
    main(UniPic1Training, UniPic1Task)
