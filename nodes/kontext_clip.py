"""The text encoders of a Kontext folder as ComfyUI's CLIP, at whatever size their configurations say."""

from pathlib import Path
from types import SimpleNamespace

import comfy.clip_model
import comfy.sd
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy.sd1_clip import SDClipModel, SDTokenizer
from comfy.text_encoders.sd3_clip import SD3ClipModel, SD3Tokenizer
from comfy.text_encoders.t5 import T5
from transformers import T5TokenizerFast

from .kontext_folder import Config, check_names, read_weights
from .kontext_text import T5_LENGTH

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
T5_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh"}
REDUNDANT = {"text_model.embeddings.position_ids", "encoder.embed_tokens.weight"}  # constants and tied copies


def load_clip(folder: Path) -> comfy.sd.CLIP:
    """CLIP-L, OpenCLIP bigG and T5 of a folder in diffusers layout, managed by ComfyUI.

    Raises:
        FileNotFoundError, ValueError: something is missing, damaged or does not fit its configuration.
    """
    embeddings = folder_paths.get_folder_paths("embeddings")
    configs = {part: Config(folder / part) for part in ENCODERS}
    weights = {part: read_weights(folder / part) for part in ENCODERS}
    tokenizer = KontextTokenizer(folder, configs, embeddings)

    def model(**options):
        return KontextTextModel(folder, configs, weights, tokenizer, **options)

    target = SimpleNamespace(clip=model, tokenizer=lambda **_: tokenizer, params={})
    parameters = sum(map(comfy.utils.calculate_parameters, weights.values()))
    return comfy.sd.CLIP(target, embedding_directory=embeddings, parameters=parameters)


class KontextTokenizer(SD3Tokenizer):
    """SD3's tokenizers from a folder; T5's pads to the length that Kontext was trained with."""

    def __init__(self, folder, configs, embedding_directory):
        def tokenizer(index, key, width, **options):
            path = str(folder / f"tokenizer{index}")
            options |= {"embedding_directory": embedding_directory, "embedding_size": width, "embedding_key": key}
            return SDTokenizer(path, **options)

        self.clip_l = tokenizer("", "clip_l", configs["text_encoder"]["hidden_size"])
        self.clip_g = tokenizer("_2", "clip_g", configs["text_encoder_2"]["hidden_size"])
        for clip in (self.clip_l, self.clip_g):
            clip.max_length = clip.tokenizer.model_max_length
            clip.pad_token = clip.tokenizer.pad_token_id
            # Shorter words are never split: ComfyUI would look forever for a place for one that no chunk can hold.
            clip.max_word_length = min(clip.max_word_length, clip.max_length - 2)
        t5_options = {"tokenizer_class": T5TokenizerFast, "has_start_token": False, "pad_with_end": False}
        t5_options |= {"pad_to_max_length": False, "max_length": 99999999}
        self.t5xxl = tokenizer("_3", "t5xxl", configs["text_encoder_3"]["d_model"], **t5_options)
        self.t5xxl.min_length = min(T5_LENGTH, self.t5xxl.tokenizer.model_max_length)


class ClipText(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model, whose vocabulary is always CLIP's, with the vocabulary of the configuration."""

    def __init__(self, config, dtype, device, operations):
        super().__init__(config, dtype, device, operations)
        sizes = config["vocab_size"], config["hidden_size"]
        self.set_input_embeddings(operations.Embedding(*sizes, dtype=dtype, device=device))


class KontextTextModel(SD3ClipModel):
    """SD3's text encoders at the folder's sizes and in the precision of its files, with CLIP-L's projection applied."""

    def __init__(self, folder, configs, weights, tokenizer, dtype, device, model_options):
        torch.nn.Module.__init__(self)
        self.t5_attention_mask = False
        self.dtypes = set()

        def encoder(part, name, config, ids, **options):
            # float16 is what ComfyUI has where its user did not ask for another precision.
            kept = next(iter(weights[part].values())).dtype if dtype == torch.float16 else dtype
            options |= {"textmodel_json_config": config, "model_options": {**model_options, "model_name": name}}
            tokens = {"end": ids.end_token, "pad": ids.pad_token}
            if ids.start_token is not None:
                tokens["start"] = ids.start_token
            model = SDClipModel(device=device, dtype=kept, special_tokens=tokens, **options)
            given = {key: tensor for key, tensor in weights[part].items() if key not in REDUNDANT}
            model.load_sd(given)  # newer ComfyUIs' layers have no weights before
            check_names(folder / part, model.transformer.state_dict(), given)
            self.dtypes.add(kept)
            return model

        def clip(part, name, ids):
            last_but_one = {"layer": "hidden", "layer_idx": configs[part]["num_hidden_layers"] - 2}
            return encoder(
                part, name, configs[part], ids, model_class=ClipText, layer_norm_hidden_state=False, **last_but_one
            )

        self.clip_l = clip("text_encoder", "clip_l", tokenizer.clip_l)
        self.clip_g = clip("text_encoder_2", "clip_g", tokenizer.clip_g)
        config = configs["text_encoder_3"]
        config["dense_act_fn"] = T5_ACTIVATIONS.get(config["dense_act_fn"], config["dense_act_fn"])
        self.t5xxl = encoder("text_encoder_3", "t5xxl", config, tokenizer.t5xxl, model_class=T5)

    def encode_token_weights(self, token_weight_pairs):
        l_out, l_pooled = self.clip_l.encode_token_weights(token_weight_pairs["l"])
        g_out, g_pooled = self.clip_g.encode_token_weights(token_weight_pairs["g"])
        t5_out = self.t5xxl.encode_token_weights(token_weight_pairs["t5xxl"])[0]
        shared = min(l_out.shape[1], g_out.shape[1])
        clip_out = torch.cat([l_out[:, :shared], g_out[:, :shared]], dim=-1)
        clip_out = F.pad(clip_out, (0, t5_out.shape[-1] - clip_out.shape[-1]))
        return torch.cat([clip_out, t5_out], dim=1), torch.cat([l_pooled, g_pooled], dim=-1), {}
