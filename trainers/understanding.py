"""accelerate launch -m trainers.understanding --config RUN.yaml: train Qwen2.5-VL on questions about pictures."""

from trainers.launch import main
from unipic_core.training.understanding import UnderstandingConfig, UnderstandingTask

if __name__ == "__main__":
    main(UnderstandingConfig, UnderstandingTask)
