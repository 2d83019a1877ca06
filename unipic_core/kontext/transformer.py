"""The Kontext transformer: Stable Diffusion 3.5 Medium's MMDiT-X with reference images in its image stream."""

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

VAE_STRIDE = 8


class KontextTransformer(SD3Transformer2DModel):
    """SD3's transformer whose image stream may start with the tokens of reference latents.

    It has exactly the parameters of `SD3Transformer2DModel`; text-to-image is the same network without references.
    Every reference is embedded like a target of its size: same patch embedding, same centre-cropped positions
    (UniPic 2.0, section 3.1).
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        ref_hidden_states: torch.Tensor | list[torch.Tensor] | None = None,
        skip_layers: list[int] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the flow velocity of the target latents.

        Args:
            hidden_states: target latents [B, 16, h, w], h and w even.
            encoder_hidden_states: prompt embeddings [B, tokens, joint_attention_dim].
            pooled_projections: pooled prompt embeddings [B, pooled_projection_dim].
            timestep: [B], 1000·sigma.
            ref_hidden_states: reference latents [B or 1, 16, h', w'], or a list of such with sizes of their own.
            skip_layers: indices of blocks left out, for skip-layer guidance.

        Returns:
            The velocity [B, 16, h, w] as `Transformer2DModelOutput.sample`, or in a tuple without `return_dict`.

        Raises:
            ValueError: an image is larger than the position table, odd in size, or does not fit the batch.
        """
        references = [] if ref_hidden_states is None else ref_hidden_states
        if isinstance(references, torch.Tensor):
            references = [references]
        batch, _, height, width = hidden_states.shape

        self._check_latents(hidden_states, "target")
        tokens = [self.pos_embed(hidden_states)]
        for number, reference in enumerate(references, start=1):
            self._check_latents(reference, f"reference {number}", batch)
            tokens.insert(-1, self.pos_embed(reference).expand(batch, -1, -1))
        target_length = tokens[-1].shape[1]
        hidden_states = torch.cat(tokens, dim=1)

        temb = self.time_text_embed(timestep, pooled_projections)
        encoder_hidden_states = self.context_embedder(encoder_hidden_states)

        for index, block in enumerate(self.transformer_blocks):
            if skip_layers is not None and index in skip_layers:
                continue
            run, args = block, (hidden_states, encoder_hidden_states, temb)
            if references and block.context_pre_only:
                run, args = _last_block, (block, *args, target_length)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                encoder_hidden_states, hidden_states = self._gradient_checkpointing_func(run, *args)
            else:
                encoder_hidden_states, hidden_states = run(*args)

        hidden_states = self.norm_out(hidden_states[:, -target_length:], temb)
        sample = self._unpatchify(self.proj_out(hidden_states), height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _unpatchify(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        patch = self.config.patch_size
        tokens = tokens.unflatten(1, (height // patch, width // patch)).unflatten(-1, (patch, patch, self.out_channels))
        return torch.einsum("bhwpqc->bchpwq", tokens).reshape(-1, self.out_channels, height, width)

    def _check_latents(self, latents: torch.Tensor, name: str, target_batch: int | None = None) -> None:
        channels, patch, limit = self.config.in_channels, self.config.patch_size, self.config.pos_embed_max_size
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"The {name} has shape {list(latents.shape)}; latents of shape [batch, {channels}, height, width] "
                f"are needed. Encode images with this model's VAE first."
            )
        batch, _, height, width = latents.shape
        pixels = f"{width * VAE_STRIDE}×{height * VAE_STRIDE} pixels"
        if height % patch or width % patch:
            raise ValueError(
                f"The {name} has {pixels}; both edges must be multiples of {VAE_STRIDE * patch}. Resize or crop it."
            )
        if max(height, width) > limit * patch:
            raise ValueError(
                f"The {name} has {pixels} ({width // patch}×{height // patch} patches), more than the position table "
                f"of this model covers: {limit}×{limit} patches, {limit * patch * VAE_STRIDE} pixels per edge. "
                f"Make it smaller."
            )
        if target_batch is not None and batch not in (1, target_batch):
            raise ValueError(
                f"The {name} is a batch of {batch}, but the target is a batch of {target_batch}. "
                f"Give one reference image for all, or one for each."
            )


def _last_block(block, hidden_states, encoder_hidden_states, temb, target_length):
    """The final joint block for the target alone: nothing reads a reference token after its keys and values."""
    if block.use_dual_attention:
        tokens, gate, shift_mlp, scale_mlp, gate_mlp, tokens2, gate2 = block.norm1(hidden_states, emb=temb)
    else:
        tokens, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1(hidden_states, emb=temb)
    context = block.norm1_context(encoder_hidden_states, temb)

    target = hidden_states[:, -target_length:]
    target = target + gate[:, None] * _attend(block.attn, tokens, context, target_length)
    if block.use_dual_attention:
        target = target + gate2[:, None] * _attend(block.attn2, tokens2, None, target_length)

    modulated = block.norm2(target) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    return None, target + gate_mlp[:, None] * block.ff(modulated)


def _attend(attn, tokens, context, target_length):
    """Attention of the last `target_length` tokens to all tokens and to the context."""

    def heads(projected, norm):
        projected = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        return projected if norm is None else norm(projected)

    query = heads(attn.to_q(tokens[:, -target_length:]), attn.norm_q)
    key = heads(attn.to_k(tokens), attn.norm_k)
    value = heads(attn.to_v(tokens), None)
    if context is not None:
        # Nothing reads the context's answers here either; asked for all the same, they keep add_q_proj in the
        # graph, without which distributed training would report unused parameters.
        query = torch.cat([query, heads(attn.add_q_proj(context), attn.norm_added_q)], dim=2)
        key = torch.cat([key, heads(attn.add_k_proj(context), attn.norm_added_k)], dim=2)
        value = torch.cat([value, heads(attn.add_v_proj(context), None)], dim=2)

    answer = F.scaled_dot_product_attention(query, key, value)[:, :, :target_length]
    return attn.to_out[0](answer.transpose(1, 2).flatten(2))
