"""UniPic 1: the masked-autoregressive generator with a language model in its middle.

Names are imported when first used: looking the package up must not cost the import of transformers.
"""

from ..lazy import names_on_demand

__getattr__ = names_on_demand(
    __name__,
    {
        "UniPic1": "model",
        "UniPic1Config": "config",
        "MarConfig": "config",
        "VaeConfig": "config",
        "Cancelled": "sampling",
    },
)
