"""accelerate launch -m trainers.metaquery --config RUN.yaml: align the connector, or train it with Kontext."""

from trainers.launch import main
from unipic_core.training.metaquery import MetaQueryConfig, MetaQueryTask

if __name__ == "__main__":
    main(MetaQueryConfig, MetaQueryTask)
