"""The MODEL's prediction for a golden case, and a golden case as ComfyUI's conditioning."""

import torch


def velocity(model, case, references=(), **options):
    """What the MODEL's diffusion model predicts, with the conditioning going in where ComfyUI's samplers put it."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        return model.model.diffusion_model(
            case["hidden_states"],
            case["timestep"],
            context=case["encoder_hidden_states"],
            y=case["pooled_projections"],
            control=None,
            transformer_options=options,
            ref_latents=list(references),
        )


def conditioning(case, name="", **values):
    return [[case[f"{name}prompt_embeds"], {"pooled_output": case[f"{name}pooled_prompt_embeds"], **values}]]
