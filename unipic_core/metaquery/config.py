"""Configuration of Qwen2.5-VL, in the form that every version of transformers takes."""

from pathlib import Path

from transformers import Qwen2_5_VLConfig

from ..kontext.checkpoint import read_json

CONFIG_7B = Path(__file__).parent / "qwen2_5_vl_7b"
NEEDED = "Qwen2.5-VL-7B-Instruct is needed."


def read_config(folder: Path) -> Qwen2_5_VLConfig:
    """The configuration in `folder`, whichever version of transformers wrote it.

    Since 4.52 transformers nests the language model's part under `text_config`, and since 5.0 it keeps all of RoPE
    under `rope_parameters`; every version still takes the flat form of the release.

    Raises:
        FileNotFoundError: no config.json there.
        ValueError: the configuration of another model, or of one that is already quantised.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json. {NEEDED}")
    config = read_json(file)
    if config.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type', 'unknown')}. {NEEDED}")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "an unnamed method")
        raise ValueError(
            f"{folder} is quantised already, with {method}. Give the original model; it can be quantised when loaded."
        )
    text = config.pop("text_config", {})
    flat = {"bos_token_id": None, "eos_token_id": None, **text, **config}
    rope = flat.pop("rope_parameters", None)
    if rope is not None:
        flat["rope_theta"] = rope["rope_theta"]
        flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    own = ("_attn_implementation", "transformers_version", "model_type", "architectures", "dtype", "torch_dtype")
    return Qwen2_5_VLConfig(**{key: value for key, value in flat.items() if not key.startswith(own)})
