"""Which samples are for training and which for evaluation."""

from __future__ import annotations

from .edits import EDIT_KINDS, EditSample, sample_edit
from .prompts import TASKS, PromptSample, sample_prompt
from .questions import QUESTION_KINDS, QuestionSample, sample_question

TRAIN_SEEDS = range(1_000_000)
FIRST_EVALUATION_SEED = TRAIN_SEEDS.stop


def evaluation_prompts(per_task: int = 50) -> list[PromptSample]:
    """The first `per_task` evaluation prompts of each GenEval task, 64x64 px."""
    return [sample_prompt(FIRST_EVALUATION_SEED + i, task) for task in TASKS for i in range(per_task)]


def evaluation_edits(per_kind: int = 50) -> list[EditSample]:
    """The first `per_kind` evaluation edits of each of the nine kinds, 64x64 px."""
    return [sample_edit(FIRST_EVALUATION_SEED + i, kind) for kind in EDIT_KINDS for i in range(per_kind)]


def evaluation_questions(per_kind: int = 50) -> list[QuestionSample]:
    """The first `per_kind` evaluation questions of each of the five kinds, 64x64 px."""
    return [sample_question(FIRST_EVALUATION_SEED + i, kind=kind) for kind in QUESTION_KINDS for i in range(per_kind)]
