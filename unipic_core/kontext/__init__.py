"""UniPic2-SD3.5M-Kontext: transformer, loading, text encoding and pipeline.

Names are imported when first used: `editing` alone must not cost the import of diffusers.
"""

from ..lazy import names_on_demand

__getattr__ = names_on_demand(
    __name__,
    {
        "KontextTransformer": "transformer",
        "KontextPipeline": "pipeline",
        "Cancelled": "pipeline",
        "TextEncoders": "text",
        "load_transformer": "loading",
        "EDIT_NEGATIVE_PROMPT": "editing",
        "edit_size": "editing",
    },
)
