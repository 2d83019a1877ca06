import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import ExifTags, Image

from unipic_core.data.latents import open_latents
from unipic_core.data.pairs import open_pairs
from unipic_core.data.pictures import to_pictures, to_tensor
from unipic_core.data.prompts import open_prompts
from unipic_core.data.questions import open_questions
from unipic_core.data.sources import bucket_size, open_source
from unipic_core.data.triplets import open_triplets
from unipic_core.shapes import TRAIN_SEEDS


@pytest.fixture
def pictures(tmp_path):
    """Two edits, one of a landscape and one of an upright picture, and a picture without reference."""
    sizes = {"a": (300, 200), "b": (190, 330), "c": (256, 256)}
    for name, size in sizes.items():
        Image.new("RGB", size, (200, 30, 40)).save(tmp_path / f"{name}.png")
        Image.new("RGB", (100, 100), (20, 30, 240)).save(tmp_path / f"{name}_before.png")
    rows = [
        {"file_name": "a.png", "text": "make it red", "references": ["a_before.png"]},
        {"file_name": "b.png", "text": "redden it", "references": ["b_before.png"]},
        {"file_name": "c.png", "text": "a red wall"},
    ]
    file = tmp_path / "metadata.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.mark.parametrize(
    "size, bucket",
    [((512, 512), (512, 512)), ((640, 480), (576, 448)), ((1080, 1920), (384, 672)), ((3000, 500), (672, 384))],
)
def test_buckets(size, bucket):
    assert bucket_size(*size, 512) == bucket


def test_jsonl_pictures_fill_the_bucket_of_their_target(pictures):
    source = open_source({"kind": "jsonl", "path": str(pictures), "resolution": 128})
    first, second, third = (source[index] for index in range(3))
    assert first.target.shape == first.references[0].shape == (96, 160, 3)
    assert second.target.shape == second.references[0].shape == (160, 96, 3)
    assert third.references == () and third.prompt == "a red wall"
    assert (first.target[0, 0] == (200, 30, 40)).all() and (first.references[0][0, 0] == (20, 30, 240)).all()


FILES = dict.fromkeys(("file_name", "source", "edited", "better", "worse"), "a.png")
TEXTS = dict.fromkeys(("text", "prompt", "question", "answer", "instruction"), "x")
READERS = {
    "pictures": lambda path: open_source({"kind": "jsonl", "path": path, "resolution": 128})[0].target,
    "prompts": lambda path: open_prompts({"kind": "lines", "path": path, "resolution": 128})[0].references[0],
    "questions": lambda path: open_questions({"kind": "jsonl", "path": path})[0].picture,
    "pairs": lambda path: open_pairs({"kind": "jsonl", "path": path})[0].worse,
    "triplets": lambda path: open_triplets({"kind": "jsonl", "path": path})[0].edited,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_photos_are_turned_as_their_camera_says(tmp_path, read):
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6  # a quarter turn
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png", exif=orientation)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({**FILES, **TEXTS, "references": ["a.png"], "score": 1}))
    height, width = np.asarray(read(str(lines))).shape[:2]
    assert (width, height) in ((200, 300), (96, 160))


def test_a_damaged_picture_is_named(pictures):
    file = pictures.with_name("b.png")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="b.png cannot be read"):
        open_source({"kind": "jsonl", "path": str(pictures)})[1]


@pytest.mark.parametrize(
    "line, message",
    [
        ({"file_name": "no.png", "text": "x"}, "line 4: there is no picture 'no.png'"),
        ({"file_name": "a.png", "text": "x", "references": ["no.png"]}, "line 4: there is no picture 'no.png'"),
        ({"file_name": "a.png"}, 'line 4: "text"'),
        ("a.png", "line 4: an object is needed"),
    ],
)
def test_unusable_lines_are_named(pictures, line, message):
    pictures.write_text(pictures.read_text() + "\n" + json.dumps(line))
    with pytest.raises(ValueError, match=message):
        open_source({"kind": "jsonl", "path": str(pictures)})


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"kind": "web"}, "unknown; use one of: jsonl, shapes"),
        ({"kind": "jsonl", "file": "x"}, "file"),
        ({"kind": "shapes", "task": "edit", "count": 1, "cell": 8}, "smallest object is 14 px"),
        ({"kind": "shapes", "task": "text_to_image", "count": 1, "tidy": True}, "it needs `cell`"),
        ({"kind": "shapes", "task": "draw", "count": 1}, "no task 'draw'; use text_to_image or edit"),
        ({"kind": "shapes", "task": "edit", "count": 1, "only": "counting"}, "no kind 'counting'; use one of: add, "),
    ],
)
def test_wrong_sources_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec)


def test_shapes_give_the_same_sample_for_an_index():
    source = open_source({"kind": "shapes", "task": "edit", "count": 12})
    assert len(source) == 12 and max(source.seeds) in TRAIN_SEEDS
    assert {source[index].target.shape for index in range(12)} > {(64, 64, 3)}
    again = open_source({"kind": "shapes", "task": "edit", "count": 5})
    assert (source[4].target == again[4].target).all() and source[4].prompt == again[4].prompt


def test_shapes_of_one_kind():
    source = open_source({"kind": "shapes", "task": "edit", "count": 12, "only": "compose"})
    assert all(" and " in source[index].prompt for index in range(12))
    source = open_source({"kind": "shapes", "task": "text_to_image", "count": 12, "only": "counting"})
    assert all(source[index].prompt.endswith("s") for index in range(12))


def test_latents_are_the_encoded_pictures(pictures, scratch_folder, tmp_path):
    vae = AutoencoderKL.from_pretrained(scratch_folder, subfolder="vae").eval()
    spec = {"kind": "jsonl", "path": str(pictures), "resolution": 128}
    latents = open_latents(spec, vae, tmp_path / "latents")
    drawn = {}
    for seed in range(20):
        rows, prompts = latents.draw(np.random.default_rng(seed), 1)
        drawn[prompts[0]] = rows[0]
    assert {prompt: tuple(rows.shape) for prompt, rows in drawn.items()} == {
        "make it red": (2, 16, 12, 20),
        "redden it": (2, 16, 20, 12),
        "a red wall": (1, 16, 16, 16),
    }
    sample = open_source(spec)[0]
    with torch.no_grad():
        encoded = vae.encode(to_tensor([sample.target, sample.references[0]])).latent_dist.mode()
    torch.testing.assert_close(drawn["make it red"], (encoded - 0.0609) * 1.5305, rtol=2e-3, atol=2e-3)


def test_latents_are_encoded_once_and_again_for_another_list_or_vae(pictures, scratch_folder, tmp_path):
    vae = AutoencoderKL.from_pretrained(scratch_folder, subfolder="vae").eval()
    spec = {"kind": "jsonl", "path": str(pictures), "resolution": 128}
    open_latents(spec, vae, tmp_path / "latents")
    (file,) = (tmp_path / "latents").iterdir()
    written = file.stat().st_mtime_ns
    open_latents(spec, vae, tmp_path / "latents")
    assert file.stat().st_mtime_ns == written
    pictures.write_text(pictures.read_text().replace("a red wall", "a crimson wall"))
    open_latents(spec, vae, tmp_path / "latents")
    assert len(list((tmp_path / "latents").iterdir())) == 2
    with torch.no_grad():
        vae.encoder.conv_out.weight.add_(0.1)
    open_latents(spec, vae, tmp_path / "latents")
    assert len(list((tmp_path / "latents").iterdir())) == 3


def test_pictures_survive_the_round_trip():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    assert (to_pictures(to_tensor([picture]))[0] == picture).all()


def test_a_share_of_the_shapes_is_flawed():
    spec = {"kind": "shapes", "task": "edit", "count": 200}
    sound, flawed = open_source(spec), open_source({**spec, "flawed": 0.4})
    pairs = [(sound[number], flawed[number]) for number in range(200)]
    assert all(a.prompt == b.prompt and np.array_equal(a.references[0], b.references[0]) for a, b in pairs)
    wrong = sum(not np.array_equal(a.target, b.target) for a, b in pairs)
    assert 55 < wrong < 105  # an empty scene stays as it is, and objects of one kind may change places
    with pytest.raises(ValueError, match="flawed is 2; it is a share"):
        open_source({**spec, "flawed": 2})
