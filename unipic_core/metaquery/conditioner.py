"""The conditioner: the VLM's answers to learned queries become what Kontext is conditioned on."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..kontext.checkpoint import read_json, weight_files
from ..kontext.loading import check_fit
from ..weights import Weights

EPSILON = 1e-6


class SelfAttention(nn.Module):
    """Attention of every token to every token, without positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


class ConnectorLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, EPSILON)
        self.mlp = MLP(width, hidden)
        self.layer_norm2 = nn.LayerNorm(width, EPSILON)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.self_attn(self.layer_norm1(tokens))
        return tokens + self.mlp(self.layer_norm2(tokens))


class Connector(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(ConnectorLayer(width, hidden, heads) for _ in range(depth))


class MetaQueryConditioner(ModelMixin, ConfigMixin):
    """Learned queries and the way from the VLM's answers to Kontext's conditioning (UniPic 2.0, section 3.2).

    `meta_queries` [num_queries, llm_hidden_size] is what the VLM is asked with. `save_pretrained(folder)` writes
    `config.json` and `diffusion_pytorch_model.safetensors` with the released names, queries included.

    Args:
        connector_config: `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads` of the
            bidirectional pre-norm transformer; other keys, which the release has, are ignored.
        num_queries: number of queries, and so of prompt embeddings.
        llm_hidden_size: width of the VLM.
        pooled_projection_dim, joint_attention_dim: widths that the diffusion transformer takes.
        pixels_per_cell: edge, in pixels of the output, that one token of the VLM covers in a reference image.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        connector_config: dict,
        num_queries: int = 256,
        llm_hidden_size: int = 3584,
        pooled_projection_dim: int = 2048,
        joint_attention_dim: int = 4096,
        pixels_per_cell: int = 32,
    ):
        super().__init__()
        width = connector_config["hidden_size"]
        self.meta_queries = nn.Parameter(torch.randn(num_queries, llm_hidden_size) / llm_hidden_size**0.5)
        self.connector = Connector(
            width,
            connector_config["intermediate_size"],
            connector_config["num_attention_heads"],
            connector_config["num_hidden_layers"],
        )
        self.projector_1 = nn.Linear(llm_hidden_size, width)
        self.projector_2 = nn.Linear(width, pooled_projection_dim)
        self.projector_3 = nn.Linear(width, joint_attention_dim)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "MetaQueryConditioner":
        """Load a `conditioner/` folder of the release, in evaluation mode.

        Raises:
            FileNotFoundError: the folder, its config.json or its weights are missing.
            ValueError: a damaged file, a configuration of something else, or tensors that do not fit one to one.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.json; give the conditioner folder of a UniPic2-MetaQuery download."
            )
        config = read_json(folder / "config.json")
        if "connector_config" not in config:
            raise ValueError(
                f"{folder} holds a {config.get('_class_name', 'model of another kind')}, not a MetaQuery conditioner: "
                "its config.json has no connector_config."
            )
        with torch.device("meta"):
            model = cls.from_config(config)
        weights = Weights(weight_files(folder))
        check_fit(folder, weights.shapes(), {name: tensor.shape for name, tensor in model.state_dict().items()})
        model.load_state_dict({name: weights.read(name, dtype, device) for name in weights}, assign=True)
        return model.eval()

    def forward(self, query_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The VLM's hidden states at the queries to conditioning.

        Args:
            query_hidden_states: [B, num_queries, llm_hidden_size].

        Returns:
            Prompt embeddings [B, num_queries, joint_attention_dim] and pooled ones [B, pooled_projection_dim], the
            latter from the mean over queries.
        """
        tokens = self.projector_1(query_hidden_states)
        for layer in self.connector.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(layer, tokens)
            else:
                tokens = layer(tokens)
        return self.projector_3(tokens), self.projector_2(tokens.mean(dim=1))
