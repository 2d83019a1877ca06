"""What an edit assumes when it is not told otherwise."""

EDIT_NEGATIVE_PROMPT = (
    "blurry, low quality, low resolution, distorted, deformed, broken content, missing parts, damaged details, "
    "artifacts, glitch, noise, pixelated, grainy, compression artifacts, bad composition, wrong proportion, "
    "incomplete editing, unfinished, unedited areas."
)


def edit_size(width: int, height: int, image_size: int = 512, multiple: int = 32) -> tuple[int, int]:
    """Width and height, in pixels, that a picture is edited at.

    The longer edge becomes `image_size`, the shorter the nearest multiple of `multiple` that keeps the proportions.

    Raises:
        ValueError: `image_size` is not a positive multiple of 16 (8 for the VAE, times 2 for the patches).
    """
    if image_size < 16 or image_size % 16:
        raise ValueError(f"image_size is {image_size} pixels; it must be a positive multiple of 16.")
    scale = image_size / max(width, height)
    shorter = max(1, round(min(width, height) * scale / multiple)) * multiple
    return (image_size, shorter) if width >= height else (shorter, image_size)
