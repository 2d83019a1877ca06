import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

PROMPTS = [
    "",
    "a photo of a red circle and a blue square",
    "move the blue circle to the left and turn it into an outline drawing of a zebra on a black background, slowly",
]


@pytest.fixture(scope="module")
def loaded(run, small_folder):
    return run("UniPicKontextLoader", folder="random", weight_dtype="default")


@pytest.fixture
def broken(small_folder, models):
    """A copy of the model folder that a test may break, and its name in the loader."""
    folder = models / "unipic" / "broken"
    shutil.copytree(small_folder, folder)
    yield folder
    shutil.rmtree(folder)


def load_broken(run):
    return run("UniPicKontextLoader", folder="broken", weight_dtype="default")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_are_those_of_diffusers(run, small_folder, loaded, relative_error, prompt):
    stock = StableDiffusion3Pipeline.from_pretrained(small_folder, transformer=None, vae=None)
    length = stock.tokenizer_3.model_max_length
    with torch.no_grad():
        expected, _, pooled, _ = stock.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
    positive = run("UniPicKontextConditioning", clip=loaded[1], prompt=prompt)[0]
    assert positive[0][0].shape == expected.shape
    assert relative_error(positive[0][0], expected) < 1e-5
    assert relative_error(positive[0][1]["pooled_output"], pooled) < 1e-5


def test_layers_that_get_their_weights_when_they_are_loaded(run, loaded, monkeypatch):
    """So are the linear layers of newer ComfyUIs on GPUs: before, their state dict is empty."""
    import comfy.ops

    class Late(comfy.ops.manual_cast.Linear):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.weight = self.bias = None

        def _load_from_state_dict(self, state_dict, prefix, *args):
            for name in ("weight", "bias"):
                if f"{prefix}{name}" in state_dict:
                    setattr(self, name, torch.nn.Parameter(state_dict[f"{prefix}{name}"], requires_grad=False))

    monkeypatch.setattr(comfy.ops.manual_cast, "Linear", Late)
    late = run("UniPicKontextLoader", folder="random", weight_dtype="default")[1]
    expected, given = (run("UniPicKontextConditioning", clip=clip, prompt="a star")[0] for clip in (loaded[1], late))
    assert torch.equal(given[0][0], expected[0][0])


@pytest.mark.parametrize("words", range(16))
def test_prompts_of_every_length_are_cut_where_diffusers_cuts_them(loaded, words):
    tokenizer = loaded[1].tokenizer
    prompt = " ".join(["star"] * words)
    chunk = tokenizer.tokenize_with_weights(prompt)["g"][0]
    stock = tokenizer.clip_g.tokenizer
    assert [token for token, _ in chunk] == stock(prompt, padding="max_length", truncation=True).input_ids


def test_the_vae_is_that_of_diffusers(small_folder, loaded, relative_error):
    vae, image = AutoencoderKL.from_pretrained(small_folder / "vae"), torch.rand(1, 48, 80, 3)
    with torch.inference_mode():
        latent = vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()
        assert relative_error(loaded[2].encode(image), latent) < 1e-5
        decoded = (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        assert relative_error(loaded[2].decode(latent), decoded) < 1e-5


def test_building_a_small_vae_leaves_comfyui_as_it_was(loaded):
    from comfy.ldm.modules.diffusionmodules.model import Normalize

    assert Normalize(64).num_groups == 32


@pytest.mark.parametrize(
    ("weight_dtype", "dtype"),
    [("fp8_e4m3fn", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2), ("bf16", torch.bfloat16)],
)
def test_weight_dtypes(run, small_folder, loaded, denoise, weight_dtype, dtype):
    model, clip, _ = run("UniPicKontextLoader", folder="random", weight_dtype=weight_dtype)
    assert model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1.weight.dtype == dtype
    positive = run("UniPicKontextConditioning", clip=clip, prompt="a red circle")[0]
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = [[positive[0][0], {**positive[0][1], "reference_latents": [noise]}]]
    exact, rounded = (denoise(m, reference, positive, noise) for m in (loaded[0], model))
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.2


def test_models_in_all_three_places_can_be_chosen(comfy_nodes, small_folder, models):
    (models / "diffusers" / "somebody").mkdir(parents=True)
    (models / "diffusers" / "somebody" / "kontext").symlink_to(small_folder)
    other = models / "diffusers" / "flux" / "transformer"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    options = comfy_nodes["UniPicKontextLoader"].INPUT_TYPES()["required"]["folder"][1]["options"]
    assert {"demo/kontext", "random", "somebody/kontext"} <= set(options)
    assert "flux" not in options


def test_sharded_weights(run, broken, loaded, relative_error):
    folder = broken / "text_encoder_3"
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    clips = loaded[1], load_broken(run)[1]
    whole, sharded = (run("UniPicKontextConditioning", clip=clip, prompt="a star")[0][0][0] for clip in clips)
    assert torch.equal(whole, sharded)

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors"):
        load_broken(run)


def test_missing_subfolders_are_named_with_the_page_to_get_them_from(run, broken):
    shutil.rmtree(broken / "text_encoder_2")
    shutil.rmtree(broken / "tokenizer_3")
    with pytest.raises(FileNotFoundError, match="text_encoder_2, tokenizer_3.*Skywork/UniPic2-SD3.5M-Kontext-2B"):
        load_broken(run)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_3"])
def test_a_truncated_file_is_named(run, broken, part):
    file = next((broken / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{part}/{file.name} is truncated"):
        load_broken(run)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "transformer_blocks.1.attn2.to_out.0.bias"),
        ("vae", "decoder.conv_out.bias"),
        ("text_encoder_2", "text_projection.weight"),
        ("text_encoder_3", "encoder.final_layer_norm.weight"),
    ],
)
@pytest.mark.parametrize("problem", ["lacks", "has"])
def test_every_tensor_is_accounted_for(run, broken, part, name, problem):
    file = next((broken / part).glob("*.safetensors"))
    weights = load_file(file)
    if problem == "lacks":
        del weights[name]
    else:
        weights["stranger"] = torch.zeros(1)
    save_file(weights, file)
    with pytest.raises(ValueError, match=f"{part} {problem}.* 1 tensors"):
        load_broken(run)


@pytest.mark.parametrize(
    ("part", "entry"),
    [("vae", "norm_num_groups"), ("text_encoder", "hidden_act"), ("text_encoder_3", "d_kv")],
)
def test_an_incomplete_configuration_is_named(run, broken, part, entry):
    file = broken / part / "config.json"
    config = json.loads(file.read_text())
    del config[entry]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{part}/config.json has no entry '{entry}'"):
        load_broken(run)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["down_blocks.0.resnets.0.norm1.weight", "add_embedding.linear_1.weight"], "an SDXL UNet"),
        (["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], "a FLUX transformer"),
        ([f"transformer_blocks.{i}.norm1_context.linear.weight" for i in range(38)], "Stable Diffusion 3.5 Large"),
    ],
)
def test_another_architecture_is_named(run, broken, names, kind):
    save_file({name: torch.zeros(1) for name in names}, broken / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=kind):
        load_broken(run)


def test_the_demo_edits_a_picture(run, denoise):
    """Both ends of the graph with the model that comes with the pack."""
    model, clip, vae = run("UniPicKontextLoader", folder="demo/kontext", weight_dtype="default")
    inputs = {"prompt": "remove the circle", "image1": torch.rand(1, 48, 80, 3), "image_size": 0}
    positive, negative, latent = run("UniPicKontextConditioning", clip=clip, vae=vae, **inputs)
    image = run("VAEDecode", vae=vae, samples={"samples": denoise(model, positive, negative, latent["samples"] + 1)})[0]
    assert image.shape == (1, 48, 80, 3)
    assert image.std() > 0.01
