"""A vision-language model as the judge, behind any OpenAI-compatible chat endpoint (vLLM, SGLang, any vendor)."""

import hashlib
import json
import math
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..files import replaced_file
from .base import Reward
from .rubrics import RUBRICS
from .web import NoAnswer, Refused, ask, to_base64

NUMBER = r'"{key}"\s*:\s*"?(-?\d+(?:\.\d+)?)'


class VLMJudge(Reward):
    """Scores by a rubric; pictures that the judge has no usable answer for get NaN.

    Args:
        url: the API's base, for example http://host:8000/v1.
        model: its name there.
        rubric: "gedit" or "imgedit" for edits, "text_to_image".
        api_key: the name of the environment variable that holds the key; keys are never written down.
        concurrency: questions at a time. timeout, patience: seconds for one try, and for all tries of a question.
        attempts: how often an answer in another form is asked for again.
        cache: folder that keeps answers; an equal question is never paid for twice.
        prices: of a million tokens, prompt and completion; they make `cost`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        rubric: str = "gedit",
        api_key: str = "",
        concurrency: int = 8,
        timeout: float = 120,
        patience: float = 300,
        attempts: int = 3,
        cache: str = "",
        prices: tuple[float, float] = (0.0, 0.0),
        max_tokens: int = 512,
    ):
        if rubric not in RUBRICS:
            raise ValueError(f"rubric {rubric!r} is unknown; use one of: {', '.join(RUBRICS)}")
        if api_key and api_key not in os.environ:
            raise ValueError(f"the environment variable {api_key}, which should hold the judge's key, is not set")
        self.endpoint, self.model, self.rubric = f"{url.rstrip('/')}/chat/completions", model, RUBRICS[rubric]
        self.headers = {"Authorization": f"Bearer {os.environ[api_key]}"} if api_key else {}
        self.concurrency, self.timeout, self.patience = concurrency, timeout, patience
        self.attempts, self.max_tokens, self.prices = attempts, max_tokens, prices
        self.cache = Path(cache) if cache else None
        self.usage = {"questions": 0, "cached": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.lock = threading.Lock()

    @property
    def cost(self) -> float:
        tokens = (self.usage["prompt_tokens"], self.usage["completion_tokens"])
        return sum(price * count for price, count in zip(self.prices, tokens, strict=True)) / 1e6

    def score(self, images, prompts, metadata, sources=None):
        if self.rubric.with_source and sources is None:
            raise ValueError("this rubric is for edits and needs the sources; for text to image use text_to_image")
        shown = [[image] for image in images]
        if self.rubric.with_source:
            shown = [[source, image] for source, image in zip(sources, images, strict=True)]
        with ThreadPoolExecutor(self.concurrency) as pool:
            return torch.tensor(list(pool.map(self._judge, shown, prompts)))

    def _judge(self, pictures: list[torch.Tensor], prompt: str) -> float:
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{to_base64(picture)}"}}
            for picture in pictures
        ]
        content.append({"type": "text", "text": self.rubric.ask(prompt)})
        question = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
        }
        kept = self._kept(question)
        if kept is not None and kept.exists():
            with self.lock:
                self.usage["cached"] += 1
            return json.loads(kept.read_text())["score"]
        for attempt in range(self.attempts):
            try:
                # At temperature 0 a judge who spoke nonsense would only repeat it.
                text = self._ask({**question, "temperature": 0.0 if attempt == 0 else 0.7})
            except Refused:
                raise
            except NoAnswer as problem:
                warnings.warn(f"a picture gets no verdict: {problem}", stacklevel=2)
                return math.nan
            score = self._read(text)
            if math.isfinite(score):
                self._keep(kept, score, text)
                return score
        warnings.warn(f"a picture gets no verdict: the judge answers {text[:80]!r}", stacklevel=2)
        return math.nan

    def _ask(self, question: dict) -> str:
        answer = ask(self.endpoint, question, self.headers, self.timeout, self.patience)
        usage = answer.get("usage") or {}
        with self.lock:
            self.usage["questions"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                self.usage[name] += usage.get(name) or 0
        try:
            return str(answer["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            return str(answer)

    def _read(self, text: str) -> float:
        """The rubric's total; NaN unless all of its numbers are there and within bounds."""
        found = [re.findall(NUMBER.format(key=key), text) for key in self.rubric.keys]
        if not all(found):
            return math.nan
        numbers = [float(values[-1]) for values in found]
        low, high = self.rubric.bounds
        return self.rubric.total(*numbers) if all(low <= number <= high for number in numbers) else math.nan

    def _kept(self, question: dict) -> Path | None:
        if self.cache is None:
            return None
        digest = hashlib.sha256(json.dumps([self.endpoint, question], sort_keys=True).encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"

    def _keep(self, path: Path | None, score: float, text: str) -> None:
        if path is None:
            return
        with replaced_file(path) as partial:
            partial.write_text(json.dumps({"score": score, "answer": text}))
