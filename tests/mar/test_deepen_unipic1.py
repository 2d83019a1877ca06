"""scripts/deepen_unipic1.py: a deeper decoder that computes the same and can learn."""

import torch
from deepen_unipic1 import deepened

from unipic_core.mar import UniPic1
from unipic_core.mar.losses import draw, image_loss


def test_a_deeper_model_draws_the_same_and_learns_everywhere(model_folder, tmp_path):
    model = UniPic1.from_pretrained(model_folder)
    deepened(model).save_pretrained(tmp_path / "deeper")
    deeper = UniPic1.from_pretrained(tmp_path / "deeper")
    assert len(deeper.mar.decoder_blocks) == 2 * len(model.mar.decoder_blocks)
    pictures = [
        each.generate("a fox", num_iter=3, generator=torch.Generator().manual_seed(0)) for each in (model, deeper)
    ]
    torch.testing.assert_close(*pictures)

    tokens = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    image_loss(deeper, [deeper.prompts.ids("a fox")], tokens, (4, 4), draw(1, 16, 16)).backward()
    for block in deeper.mar.decoder_blocks:
        assert block.attn.proj.weight.grad.any() and block.mlp.fc2.weight.grad.any()
