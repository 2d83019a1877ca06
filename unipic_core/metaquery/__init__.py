"""UniPic2-MetaQuery: Qwen2.5-VL as prompt encoder of Kontext, and its understanding of pictures.

Names are imported when first used: the names alone must not cost the import of transformers.
"""

from ..lazy import names_on_demand

__getattr__ = names_on_demand(
    __name__,
    {
        "MetaQueryConditioner": "conditioner",
        "MetaQueryEncoder": "encoder",
        "load_vlm": "loading",
    },
)
