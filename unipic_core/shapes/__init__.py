"""The shape world: a small world in which every picture, prompt, edit and answer can be checked by arithmetic."""

from .detector import Detection, detect, detect_background
from .drawing import render
from .edits import EDIT_KINDS, EditSample, sample_edit
from .evaluation import TRAIN_SEEDS, evaluation_edits, evaluation_prompts, evaluation_questions
from .language import split_words, vocabulary
from .mistakes import with_mistake
from .prompts import TASKS, PromptSample, sample_prompt, write_geneval_jsonl
from .questions import QUESTION_KINDS, QuestionSample, contents, sample_question, score_answer
from .scores import overall, score_edit, score_prompt
from .world import BACKGROUNDS, CLASSES, PALETTE, SIZES, Scene, Shape

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "Detection",
    "EDIT_KINDS",
    "EditSample",
    "PALETTE",
    "PromptSample",
    "QUESTION_KINDS",
    "QuestionSample",
    "SIZES",
    "Scene",
    "Shape",
    "TASKS",
    "TRAIN_SEEDS",
    "contents",
    "detect",
    "detect_background",
    "evaluation_edits",
    "evaluation_prompts",
    "evaluation_questions",
    "overall",
    "render",
    "sample_edit",
    "sample_prompt",
    "sample_question",
    "score_answer",
    "score_edit",
    "score_prompt",
    "split_words",
    "vocabulary",
    "with_mistake",
    "write_geneval_jsonl",
]
