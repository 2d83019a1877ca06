"""UniPic 1: a language model between the encoder and the decoder of a masked-autoregressive image model."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import PretrainedConfig, Qwen2ForCausalLM, SiglipVisionModel

from ..metaquery.answering import Progress, Sampling, seeded
from ..metaquery.answering import decode as decode_text
from ..metaquery.prompts import as_list
from .config import UniPic1Config
from .context import put_pictures, read_prompts
from .masked import Mar
from .pictures import as_tensor, nearest_grid, resize
from .prompts import CFG_EDIT, CFG_GENERATE, GENERATE, Prompts
from .sampling import Noise, Settings, sample_tokens
from .vae import build_vae

VISIONS = ("siglip2", "mar")


class UniPic1(nn.Module):
    """Skywork UniPic 1 (Wang et al. 2025): generation, editing and understanding with one language model.

    Parameters are named as in the release; the autoencoder stands beside them as `vae`.
    """

    def __init__(self, config: UniPic1Config, llm: PretrainedConfig, siglip2: PretrainedConfig, tokenizer):
        super().__init__()
        self.config = config
        self.prompts = Prompts(tokenizer, config)
        if self.prompts.image_token_id >= llm.vocab_size:
            raise ValueError(
                f"The tokenizer gives {config.image_token} the id {self.prompts.image_token_id}, but the language "
                f"model has {llm.vocab_size} embeddings. Use the tokenizer and the language model of one release."
            )
        self.llm = Qwen2ForCausalLM(llm)
        self.mar = Mar(config.mar)
        self.siglip2 = SiglipVisionModel(siglip2)
        width = llm.hidden_size
        self.proj_in = projector(config.mar.encoder_embed_dim, width, width)
        self.proj_out = projector(width, width, config.mar.encoder_embed_dim)
        self.siglip2_proj = projector(siglip2.hidden_size, width, width)
        # Convolutions are faster so, by a third on a CPU.
        self.vae = build_vae(config.vae).to(memory_format=torch.channels_last)
        self.mar.init_weights()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "UniPic1":
        """Load a folder as released (`pytorch_model.bin`, `kl16.ckpt`, language model and SigLIP2 folders), or as
        `save_pretrained` writes it.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            ValueError: a damaged file, another model, or tensors that do not fit one to one.
        """
        from .loading import load

        return load(Path(folder), dtype, device)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the product's own folder: safetensors, configurations and tokenizer. It appears only when complete.

        Raises FileExistsError if there is such a folder.
        """
        from .loading import save

        save(self, Path(folder), dtype)

    @property
    def device(self) -> torch.device:
        return self.mar.mask_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mar.mask_token.dtype

    @torch.no_grad()
    def generate(
        self,
        prompt: str | list[str],
        *,
        grid: tuple[int, int] | None = None,
        cfg_prompt: str = CFG_GENERATE,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        orders: torch.Tensor | None = None,
        noise_fn: Callable[[int, int | None, tuple[int, int]], torch.Tensor] | None = None,
        callback: Callable[[int, int, torch.Tensor], bool | None] | None = None,
        **settings,
    ) -> torch.Tensor:
        """Text to image.

        Args:
            prompt: what to show, one or several; "Generate an image: " is put before it.
            grid: tokens (h, w), 16 pixels each; by default the grid of the learned positions.
            cfg_prompt: the unconditional prompt, taken as it is.
            batch_size: pictures of each prompt.
            generator: source of one seed per picture, so that pictures do not depend on how they are batched; or a
                list with one generator for each.
            orders: [B, h·w], the order in which tokens are unmasked, the last entries first; drawn by default.
            noise_fn: noise_fn(iteration, step, shape) in place of drawn noise; step None asks for what the head
                starts from. Rows are the pictures' predicted tokens in raster order, conditional ones only.
            callback: called as callback(iteration, iterations, tokens [B, h·w, 16]) after each; returning False stops.
                `decode(tokens, grid)` makes a preview of them; tokens not yet there are zero.
            settings: the fields of `Settings`: num_iter, cfg, cfg_schedule, temperature, head_steps, guidance_every.

        Returns:
            [B, 3, 16·h, 16·w], float32, around [−1, 1] but not clipped; 127.5·x + 128 are the pixels.

        Raises:
            Cancelled: the callback returned False.
            ValueError: settings out of range, or a grid that does not fit the language model's context.
        """
        grid = (self.config.mar.grid,) * 2 if grid is None else tuple(grid)
        texts = [GENERATE.format(text) for text in as_list(prompt)]
        noise = Noise.seeded(len(texts) * batch_size, generator, noise_fn)
        return self._sample(texts, cfg_prompt, batch_size, grid, Settings(**settings), noise, orders, callback)

    @torch.no_grad()
    def edit(
        self,
        image: Image.Image | torch.Tensor,
        prompt: str | list[str],
        *,
        grid: tuple[int, int] | None = None,
        cfg_prompt: str = CFG_EDIT,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        orders: torch.Tensor | None = None,
        noise_fn: Callable[[int, int | None, tuple[int, int]], torch.Tensor] | None = None,
        callback: Callable[[int, int, torch.Tensor], bool | None] | None = None,
        **settings,
    ) -> torch.Tensor:
        """Change a picture as told.

        Args:
            image: the source, PIL or [B, 3, H, W] in [−1, 1], one for all prompts or one for each.
            prompt: the instruction, or several.
            grid: tokens (h, w) of source and result; by default the source's own size, at most twice the learned grid
                on the longer edge. The source is resized to it.

        The other arguments, the result and the errors are those of `generate`.
        """
        source, texts = as_tensor(image), as_list(prompt)
        if len(source) not in (1, len(texts)):
            raise ValueError(f"There are {len(source)} pictures for {len(texts)} prompts. Give one, or one for each.")
        grid = self._grid_of(source) if grid is None else tuple(grid)
        noise = Noise.seeded(len(texts) * batch_size, generator, noise_fn)
        return self._sample(texts, cfg_prompt, batch_size, grid, Settings(**settings), noise, orders, callback, source)

    @torch.no_grad()
    def describe(
        self,
        image: Image.Image | torch.Tensor,
        question: str,
        vision: str = "siglip2",
        max_new_tokens: int = 512,
        callback: Callable[[int, str], None] | None = None,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> str:
        """Answer a question about a picture.

        Args:
            image: PIL or [1, 3, H, W] in [−1, 1].
            vision: "siglip2", as in the paper, or "mar": the generator's own tokens, as in the released script.
            callback: called with the number of tokens and the text so far after every token; raise in it to stop.
            temperature: 0 always takes the likeliest token; above, tokens are drawn.
            top_p, top_k: draw from the likeliest tokens alone, up to this probability or number; 1.0 and 0 are off.
            repetition_penalty: above 1, what was said already becomes less likely.
            seed: makes drawing repeatable.

        Raises:
            TypeError, ValueError: not one picture, an option out of range, or more than the context holds.
        """
        if vision not in VISIONS:
            raise ValueError(f"vision is {vision!r}; use one of: {', '.join(VISIONS)}.")
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        picture = as_tensor(image)
        if len(picture) != 1:
            raise ValueError(f"describe takes one picture, not a batch of {len(picture)}.")
        seen = self.see(picture, vision)
        ids = self.prompts.ids(question, seen.shape[1])
        self._check_length(len(ids) + max_new_tokens)
        embeds = self.llm.model.embed_tokens(torch.tensor([ids], device=self.device))
        embeds = put_pictures(embeds, ids.index(self.prompts.image_token_id), seen)
        with seeded(seed, embeds.device):
            answer = self.llm.generate(
                inputs_embeds=embeds,
                attention_mask=embeds.new_ones(embeds.shape[:2], dtype=torch.long),
                **sampling.options(),
                eos_token_id=self.prompts.stop_ids,
                pad_token_id=self.prompts.stop_ids[0],
                streamer=Progress(self.prompts.tokenizer, callback) if callback else None,
            )
        return decode_text(self.prompts.tokenizer, answer[0].tolist())

    def seen_size(self, image: torch.Tensor, vision: str = "siglip2") -> tuple[int, int]:
        """Width and height at which `describe` looks at a picture [..., H, W]."""
        if vision == "siglip2":
            return (self.siglip2.config.image_size,) * 2
        height, width = self._grid_of(image)
        return width * self.config.mar.vae_stride, height * self.config.mar.vae_stride

    def encode(self, image: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [−1, 1], resized to the grid, as latent tokens [B, h·w, 16]: posterior modes."""
        stride = self.config.mar.vae_stride
        image = resize(image, grid[0] * stride, grid[1] * stride).to(self.device, self.dtype)
        return self.vae.encode(image).latent_dist.mode().flatten(2).transpose(1, 2) * self.config.vae_scale

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Latent tokens [B, h·w, 16] as pictures [B, 3, 16·h, 16·w], float32, one at a time to bound memory."""
        latents = (tokens / self.config.vae_scale).transpose(1, 2).unflatten(2, tuple(grid)).to(self.dtype)
        return torch.cat([self.vae.decode(latent).sample.float() for latent in latents.split(1)])

    def encode_picture(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """MAR encoder over all tokens [B, h·w, 16] of a picture: [B, buffers + h·w, width]."""
        visible = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return self.mar.encode(tokens, visible, self.mar.positions(self.mar.encoder_pos_embed_learned, grid))

    def embed_encoded(self, encoded: torch.Tensor) -> torch.Tensor:
        """Encoder output for the language model, [B, buffers + V, width], the buffers behind the tokens."""
        buffers, tokens = self.proj_in(encoded).tensor_split([self.config.mar.buffer_size], dim=1)
        return torch.cat([tokens, buffers], dim=1)

    def see(self, image: torch.Tensor, vision: str) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [−1, 1] for the language model, through one of VISIONS: [B, count, width]."""
        if vision == "siglip2":
            return self.embed_siglip2(image)
        grid = self._grid_of(image)
        return self.embed_encoded(self.encode_picture(self.encode(image, grid), grid))

    def embed_siglip2(self, image: torch.Tensor) -> torch.Tensor:
        """SigLIP2's view of pictures [B, 3, H, W] in [−1, 1] for the language model: [B, patches, width]."""
        edge = self.siglip2.config.image_size
        pixels = resize(image, edge, edge).to(self.device, self.dtype)
        return self.siglip2_proj(self.siglip2(pixel_values=pixels).last_hidden_state)

    def after_llm(self, encoded: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Add the language model's answer, its buffers last, to the encoder's output, its buffers first."""
        tokens, buffers = hidden.tensor_split([-self.config.mar.buffer_size], dim=1)
        return encoded + self.proj_out(torch.cat([buffers, tokens], dim=1))

    def _sample(self, texts, cfg_prompt, batch_size, grid, settings, noise, orders, callback, source=None):
        wanted = (len(noise.generators), grid[0] * grid[1])
        if min(*grid, *wanted) < 1:
            raise ValueError(
                f"{len(texts)} prompts, a batch size of {batch_size} and a grid of {grid[0]}×{grid[1]} tokens: "
                f"each has to be at least 1."
            )
        if orders is not None and tuple(orders.shape) != wanted:
            raise ValueError(f"orders has shape {list(orders.shape)}; {list(wanted)} is needed.")
        elsewhere = pictures = None
        length = wanted[1] + self.config.mar.buffer_size
        places = 0 if source is None else length
        prompts = [self.prompts.ids(text, places) for text in texts]
        unconditional = self.prompts.ids(cfg_prompt, places)
        self._check_length(max(map(len, [*prompts, unconditional])) + length, grid)

        if source is not None:
            encoded = self.encode_picture(self.encode(source, grid), grid)
            pictures = self.embed_encoded(encoded)
            elsewhere = self.mar.decoder_embed(encoded)
            if len(source) > 1:
                elsewhere = elsewhere.repeat_interleave(batch_size, dim=0)
        rows = range(len(texts))
        if settings.cfg != 1:
            # As many unconditional prompts as there are pictures to share their beginning with.
            extra = 1 if source is None else len(source)
            prompts += [unconditional] * extra
            rows = [*rows, *(len(texts) + row % extra for row in rows)]
        context = read_prompts(self.llm.model, prompts, self.prompts.image_token_id, pictures)
        context.select([row for row in rows for _ in range(batch_size)])
        return self.decode(sample_tokens(self, context, grid, settings, noise, orders, elsewhere, callback), grid)

    def _check_length(self, length: int, grid: tuple[int, int] | None = None) -> None:
        limit = self.llm.config.max_position_embeddings
        if length > limit:
            what = "this picture and the answer"
            if grid:
                height, width = (edge * self.config.mar.vae_stride for edge in grid)
                what = f"a grid of {grid[0]}×{grid[1]} tokens ({width}×{height} pixels)"
            raise ValueError(
                f"The prompt with {what} takes {length} positions, but the language model has {limit}. "
                f"Use a {'smaller grid' if grid else 'smaller picture or fewer new tokens'}."
            )

    def _grid_of(self, image: torch.Tensor) -> tuple[int, int]:
        return nearest_grid(*image.shape[-2:], self.config.mar.vae_stride, 2 * self.config.mar.grid)


def projector(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, out))
