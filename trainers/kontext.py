"""accelerate launch -m trainers.kontext --config RUN.yaml: flow-matching training of Kontext, both tasks."""

from trainers.launch import main
from unipic_core.training.flow import FlowConfig, FlowTask

if __name__ == "__main__":
    main(FlowConfig, FlowTask)
