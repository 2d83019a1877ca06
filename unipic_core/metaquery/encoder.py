"""Qwen2.5-VL as Kontext's prompt encoder, and as what it is by itself: a model that talks about pictures."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2TokenizerFast
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from .answering import Sampling, answer
from .chat import IMAGE_TOKEN, chat_text, generation_text
from .conditioner import MetaQueryConditioner
from .context import Context, text_model, vision_tower
from .images import described_size, edited_size, patches, to_picture
from .loading import load_vlm
from .prompts import Picture, as_list, padded, pair, shared_length

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


class MetaQueryEncoder(nn.Module):
    """Prompts, with or without pictures, to Kontext's conditioning (UniPic 2.0, section 3.2).

    The VLM reads the chat text and then the learned queries; its hidden states there go through the conditioner. What
    comes before the queries is read without gradient, and what prompts with the same pictures have in common, once.

    A plain module without state between calls: `vlm` is frozen, `conditioner` holds everything that is trained
    (`conditioner.meta_queries` too), and `tokenizer` and `image_processor` are attributes.

    Raises:
        ValueError: the conditioner was made for a VLM of another width.
    """

    def __init__(self, vlm, conditioner: MetaQueryConditioner, tokenizer, image_processor: Qwen2VLImageProcessor):
        super().__init__()
        self.vlm = vlm
        self.conditioner = conditioner
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        width, needed = self.embed.embedding_dim, conditioner.config.llm_hidden_size
        if width != needed:
            raise ValueError(
                f"The conditioner takes hidden states of width {needed}, but the language model's are {width} wide. "
                "The released conditioner belongs to Qwen2.5-VL-7B (3584); the 3B model has 2048."
            )

    @classmethod
    def from_pretrained(
        cls,
        conditioner_folder: str | Path,
        qwen_folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        config_folder: str | Path | None = None,
        tokenizer_folder: str | Path | None = None,
        quantization: str | None = None,
    ) -> "MetaQueryEncoder":
        """Load conditioner and VLM, in evaluation mode.

        Args:
            conditioner_folder: `conditioner/` of a UniPic2-MetaQuery download.
            qwen_folder: Qwen2.5-VL as a Hugging Face folder, or as a single safetensors file (see `load_vlm`).
            config_folder: where `config.json`, and if at all `generation_config.json` and
                `preprocessor_config.json`, are, if not in `qwen_folder`; a single file needs none if it is the 7B.
            tokenizer_folder: where the tokenizer is, if not in `qwen_folder`.
            quantization: None, "int8" or "int4".

        Raises:
            FileNotFoundError, ImportError, ValueError: see `load_vlm` and `MetaQueryConditioner.from_pretrained`.
        """
        qwen = Path(qwen_folder)
        settings = Path(config_folder) if config_folder else qwen
        tokenizer = load_tokenizer(Path(tokenizer_folder) if tokenizer_folder else qwen)
        conditioner = MetaQueryConditioner.from_pretrained(conditioner_folder, dtype, device)
        vlm = load_vlm(qwen, dtype, device, config_folder, quantization)
        return cls(vlm, conditioner, tokenizer, load_image_processor(settings, vlm.config.vision_config))

    @property
    def embed(self) -> nn.Embedding:
        return self.vlm.get_input_embeddings()

    @torch.no_grad()
    def encode(self, prompts: str | list[str], images=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed prompts: ([B, num_queries, joint_attention_dim], pooled [B, pooled_projection_dim]).

        A prompt with pictures is an instruction to edit them; one without describes the picture to make.

        Args:
            prompts: one or several.
            images: None; one picture, for every prompt; or a list with an entry for each prompt, which is None, a
                picture or a list of pictures. Where `prompts` is one string, `images` may be the list of its pictures.
                A picture is a PIL image or a tensor [3, H, W] in [0, 1], at the output's size, or features [tokens,
                llm_hidden_size] as `image_features` gives them. The VLM sees a picture once, in however many prompts
                it is.

        Raises:
            TypeError, ValueError: prompts and pictures do not go together, a picture cannot be seen, or a prompt is
                longer than the VLM's context.
        """
        return self(prompts, images)

    def forward(self, prompts: str | list[str], images=None) -> tuple[torch.Tensor, torch.Tensor]:
        """`encode` with gradients to the conditioner, queries included."""
        answers = self.query_hidden_states(prompts, images)
        return self.conditioner(answers.to(self.conditioner.projector_1.weight.dtype))

    def query_hidden_states(self, prompts: str | list[str], images=None) -> torch.Tensor:
        """The VLM's hidden states at the queries, after its final norm: [B, num_queries, llm_hidden_size].

        Arguments and errors as for `encode`; gradients reach `conditioner.meta_queries`.
        """
        entries = pair(prompts, images)
        with torch.no_grad():
            context = self._read(entries)
        queries = self.conditioner.meta_queries.to(self.embed.weight.dtype).expand(len(entries), -1, -1)
        return context.read(queries, context.mask.new_ones(queries.shape[:2]))

    @torch.no_grad()
    def image_features(self, images: Picture | list[Picture]) -> list[torch.Tensor]:
        """What the VLM sees of references, [tokens, llm_hidden_size] each: a token for every 32×32 px of the output.

        The features may stand for their picture in `encode`, `forward` and `query_hidden_states`.
        """
        return self._look([as_list(images)])[0]

    @torch.no_grad()
    def describe(
        self,
        images: Picture | list[Picture] | None,
        question: str,
        max_new_tokens: int = 512,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        callback: Callable[[int, str], None] | None = None,
    ) -> str:
        """Ask the VLM about pictures, or about anything: recognition, comparison, OCR, grounding as JSON `bbox_2d`.

        Args:
            images: PIL images or tensors [3, H, W] in [0, 1], or None.
            max_new_tokens: length of the answer at most.
            temperature: 0 always takes the likeliest token; above, tokens are drawn.
            top_p, top_k: draw from the likeliest tokens alone, up to this probability or number; 1.0 and 0 are off.
            repetition_penalty: by default what the model's generation_config.json says.
            seed: makes drawing repeatable.
            min_pixels, max_pixels: limits of the area that a picture is resized to; by default the image processor's,
                and 1280 tokens at most.
            callback: called after every token with the number of tokens and the text so far. An exception that it
                raises ends the answer.

        Raises:
            TypeError, ValueError: a picture cannot be seen, an option is out of range, or the question is longer than
                the VLM's context.
        """
        pictures = [self._picture(image, number) for number, image in enumerate(as_list(images), start=1)]
        sizes = [described_size(picture, self.image_processor, min_pixels, max_pixels) for picture in pictures]
        seen = [patches(*item, self.image_processor) for item in zip(pictures, sizes, strict=True)]
        merge = self.image_processor.merge_size**2
        ids = self._tokens(chat_text(question, len(seen)), [len(pixels) // merge for pixels, _ in seen])
        room = self._room(ids, 1, "question")
        sampling = Sampling(min(max_new_tokens, room), temperature, top_p, top_k, repetition_penalty)
        return answer(self.vlm, self.tokenizer, ids, seen, sampling, seed, callback)

    def _read(self, entries: list[tuple[str, list[Picture]]]) -> Context:
        """The VLM's state after the chat texts, up to where the queries come."""
        prompts, images = zip(*entries, strict=True)
        features = self._look(images)
        texts, groups = [], {}
        for row, (prompt, seen) in enumerate(zip(prompts, features, strict=True)):
            ids = self._tokens(generation_text(prompt, len(seen)), [len(feature) for feature in seen])
            self._room(ids, len(self.conditioner.meta_queries), f"prompt {row + 1}")
            texts.append(ids)
            # A few words in common are not worth a pass of their own, pictures are.
            groups.setdefault(tuple(map(id, seen)) or row, []).append(row)

        group_of = {row: number for number, rows in enumerate(groups.values()) for row in rows}
        shared = [shared_length([texts[row] for row in rows]) for rows in groups.values()]
        firsts = [rows[0] for rows in groups.values()]
        starts = [texts[row][:length] for row, length in zip(firsts, shared, strict=True)]
        rests = [text[shared[group_of[row]] :] for row, text in enumerate(texts)]

        context = Context(text_model(self.vlm))
        context.read(*self._embedded(starts, [feature for row in firsts for feature in features[row]]))
        context.select([group_of[row] for row in range(len(texts))])
        if any(rests):
            context.read(*self._embedded(rests))
        return context

    def _embedded(self, texts: list[list[int]], features: list[torch.Tensor] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [B, longest, width] and mask of texts, `features` in order at the places of image tokens."""
        ids, mask = padded(texts, self.embed.weight.device)
        embeddings = self.embed(ids)
        if features:
            placed = [feature.to(embeddings) for feature in features]  # under autocast, a CPU joins no float16
            embeddings[ids == self.vlm.config.image_token_id] = torch.cat(placed)
        return embeddings, mask

    def _look(self, images: list[list[Picture]]) -> list[list[torch.Tensor]]:
        """The features of every image; images of the same content are seen once and share one tensor."""
        known, number = {}, 0
        features = []
        for group in images:
            features.append([])
            for image in group:
                number += 1
                if isinstance(image, torch.Tensor) and image.ndim == 2:
                    self._check_features(image, number)
                    features[-1].append(image)
                    continue
                picture = self._picture(image, number)
                content = picture.size, picture.tobytes()
                if content not in known:
                    known[content] = self._see(picture)
                features[-1].append(known[content])
        return features

    def _check_features(self, features: torch.Tensor, number: int) -> None:
        if features.shape[1] != self.embed.embedding_dim:
            raise ValueError(
                f"Image {number} are features of width {features.shape[1]}, but this language model's are "
                f"{self.embed.embedding_dim} wide. Compute them with it."
            )

    def _see(self, picture) -> torch.Tensor:
        processor = self.image_processor
        cell = processor.patch_size * processor.merge_size
        size = edited_size(picture, cell, self.conditioner.config.pixels_per_cell)
        pixels, grid = patches(picture, size, processor)
        seen = vision_tower(self.vlm)(pixels.to(self.embed.weight), grid_thw=grid.to(self.embed.weight.device))
        return getattr(seen, "pooler_output", seen)

    def _picture(self, image: Picture, number: int):
        return to_picture(image, f"image {number}", self.image_processor.patch_size)

    def _tokens(self, text: str, picture_lengths: list[int]) -> list[int]:
        """Token ids of a chat text, with the image token once for every token of a picture."""
        placeholder = self.vlm.config.image_token_id
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if ids.count(placeholder) != len(picture_lengths):
            raise ValueError(f"The text contains {IMAGE_TOKEN}, which stands for a picture. Leave it out.")
        lengths = iter(picture_lengths)
        return [token for i in ids for token in ([i] * next(lengths) if i == placeholder else [i])]

    def _room(self, ids: list[int], needed: int, name: str) -> int:
        """How many tokens may follow `ids` in the VLM's context; `needed` at least, or ValueError."""
        limit = text_model(self.vlm).config.max_position_embeddings
        if len(ids) + needed > limit:
            raise ValueError(
                f"The {name} is too long: it has {len(ids)} tokens, pictures included, and {needed} more have to "
                f"follow, but the language model's context is {limit} tokens. Shorten it, or give smaller pictures."
            )
        return limit - len(ids)


def load_tokenizer(folder: Path):
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}). Give the folder of Qwen2.5-VL's tokenizer."
        )
    return Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)


def load_image_processor(folder: Path, vision_config) -> Qwen2VLImageProcessor:
    """The image processor of `folder`; where it has none, Qwen's own for patches of the vision tower's size."""
    if (folder / "preprocessor_config.json").is_file():
        return Qwen2VLImageProcessor.from_pretrained(folder, local_files_only=True)
    return Qwen2VLImageProcessor(
        patch_size=vision_config.patch_size,
        temporal_patch_size=vision_config.temporal_patch_size,
        merge_size=vision_config.spatial_merge_size,
    )
