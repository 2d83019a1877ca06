"""The wish that this process ends early, at a place from which its work can go on."""

import threading

import torch

ASKED = threading.Event()  # set by a signal, or by the end of whoever started the process


class Stopped(Exception):
    """The work was ended because that was asked for; what was done until then is kept."""


def stop_if_asked(accelerator) -> None:
    """Raise Stopped on all processes as soon as one of them was asked; to be called at the same places by all."""
    asked = ASKED.is_set()
    if accelerator.num_processes > 1:
        asked = accelerator.reduce(torch.tensor(float(asked), device=accelerator.device)).item() > 0
    if asked:
        raise Stopped
