"""diffusers' names to SD3's native ones: the way back from `unipic_core.kontext.names`, to write test files with."""

import torch

from unipic_core.kontext.names import BLOCK_MODULES, BLOCK_NAME, MODULES, QKV_MODULES, depth, swap_halves


def to_native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    modules = {target: source for source, target in MODULES.items()}
    block_modules = {target: source for source, target in BLOCK_MODULES.items()}
    thirds = {target: source for source, targets in QKV_MODULES.items() for target in targets}
    last = f"transformer_blocks.{depth(state) - 1}.norm1_context.linear"
    native = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in ("norm_out.linear", last):
            tensor = swap_halves(tensor)
        block = BLOCK_NAME.fullmatch(name)
        if name == "pos_embed.pos_embed":
            native["pos_embed"] = tensor
        elif module in modules:
            native[f"{modules[module]}.{kind}"] = tensor
        elif block[3] in block_modules:
            native[f"joint_blocks.{block[2]}.{block_modules[block[3]]}.{kind}"] = tensor
        else:
            native.setdefault(f"joint_blocks.{block[2]}.{thirds[block[3]]}.{kind}", []).append((block[3], tensor))
    for name, parts in native.items():
        if isinstance(parts, list):
            order = next(targets for source, targets in QKV_MODULES.items() if f".{source}." in name)
            parts.sort(key=lambda part: order.index(part[0]))
            native[name] = torch.cat([tensor for _, tensor in parts])
    return native
