"""An exponential moving average of the trained weights."""

from contextlib import contextmanager

import torch


class EMA:
    """Averages `parameters` (name → parameter); early on the average follows faster: decay min(d, (1+n)/(10+n))."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    @contextmanager
    def applied(self):
        """The averaged weights inside the model, the trained ones back at the end."""
        trained = {name: parameter.data for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data = self.average[name]
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = trained[name]
