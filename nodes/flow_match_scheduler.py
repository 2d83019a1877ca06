import torch
from comfy_api.latest import io

TRAIN_STEPS = 1000


def flow_match_sigmas(steps: int, shift: float) -> torch.Tensor:
    """The sigmas [steps + 1] that the release samples with, from 1 down to 0.

    They are those of diffusers' FlowMatchEulerDiscreteScheduler(1000, shift): evenly spaced between the ends of its
    shifted 1000-step table, then shifted once more by shift·σ/(1 + (shift − 1)·σ) (Esser et al. 2024, equation 23).
    """

    def shifted(sigma):
        return shift * sigma / (1 + (shift - 1) * sigma)

    sigmas = shifted(torch.linspace(1, shifted(1 / TRAIN_STEPS), steps, dtype=torch.float64))
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


class UniPicFlowMatchScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicFlowMatchScheduler",
            display_name="UniPic Flow Match Scheduler",
            category="UniPic/sampling",
            description="The noise levels of the UniPic 2 release, for SamplerCustom and SamplerCustomAdvanced.",
            inputs=[
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps. The release uses 50; fewer are faster.",
                ),
                io.Float.Input(
                    "shift",
                    default=3.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="How far the steps lean towards high noise. The release uses 3.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 starts from pure noise. Less keeps more of the latent that you sample from.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS")],
        )

    @classmethod
    def execute(cls, steps, shift, denoise) -> io.NodeOutput:
        return io.NodeOutput(flow_match_sigmas(int(steps / denoise), shift)[-(steps + 1) :])
