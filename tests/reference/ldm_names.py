"""Makes tests/fixtures/ldm-names.json: the original ("LDM") name of every layer, with the name that diffusers' own
conversion gives it, for Stable Diffusion 1.5, for tiny-sd15 and for the default model, whose levels are others.

    python tests/reference/ldm_names.py

Versions: diffusers 0.42.1, transformers 5.23.0. The original names come from walking the levels as the constructors of the
original code do (`openaimodel.py`, `cldm.py`, `model.py`), the diffusers names from `diffusers.loaders.single_file_utils`; what
that leaves out or gives twice is an error.
"""
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert

ROOT = Path(__file__).parent.parent.parent
RESNET = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
TRANSFORMER = ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"] + [
    f"attn{i}.{layer}" for i in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")
]


class Name(str):
    """A name in place of a tensor."""

    ndim, shape = 1, (1,)


def resnet(at, inputs, outputs):
    return [f"{at}.{layer}" for layer in RESNET + ["skip_connection"] * (inputs != outputs)]


def transformer(at):
    return [f"{at}.{layer}" for layer in ["norm", "proj_in", "proj_out"] + [f"transformer_blocks.0.{l}" for l in TRANSFORMER]]


def down_path(config):
    """The layers up to the middle, and the channels of each block of the way down."""
    widths, attends = config["block_out_channels"], [kind.startswith("Cross") for kind in config["down_block_types"]]
    layers, channels, block = ["time_embed.0", "time_embed.2", "input_blocks.0.0"], [widths[0]], 1
    for level, width in enumerate(widths):
        for _ in range(config["layers_per_block"]):
            layers += resnet(f"input_blocks.{block}.0", channels[-1], width)
            layers += transformer(f"input_blocks.{block}.1") if attends[level] else []
            channels.append(width)
            block += 1
        if level + 1 < len(widths):
            layers.append(f"input_blocks.{block}.0.op")
            channels.append(width)
            block += 1
    layers += resnet("middle_block.0", 1, 1) + transformer("middle_block.1") + resnet("middle_block.2", 1, 1)
    return layers, channels


def unet(config):
    layers, channels = down_path(config)
    attends = [kind.startswith("Cross") for kind in config["down_block_types"]]
    last, block = config["block_out_channels"][-1], 0
    for level, width in reversed(list(enumerate(config["block_out_channels"]))):
        for i in range(config["layers_per_block"] + 1):
            layers += resnet(f"output_blocks.{block}.0", last + channels.pop(), width)
            layers += transformer(f"output_blocks.{block}.1") if attends[level] else []
            if level and i == config["layers_per_block"]:
                layers.append(f"output_blocks.{block}.{1 + attends[level]}.conv")
            last = width
            block += 1
    return layers + ["out.0", "out.2"]


def controlnet(config):
    layers, channels = down_path(config)
    hints = 2 * len(config["conditioning_embedding_out_channels"])  # convolutions, the last one included
    layers += [f"input_hint_block.{2 * i}" for i in range(hints)]
    return layers + [f"zero_convs.{i}.0" for i in range(len(channels))] + ["middle_block_out.0"]


def vae(config):
    widths, count = config["block_out_channels"], config["layers_per_block"]
    layers = ["quant_conv", "post_quant_conv"]

    def block(at, inputs, outputs):
        return [f"{at}.{layer}" for layer in ["norm1", "conv1", "norm2", "conv2"] + ["nin_shortcut"] * (inputs != outputs)]

    for coder in ("encoder", "decoder"):
        layers += [f"{coder}.{layer}" for layer in ("conv_in", "norm_out", "conv_out")]
        layers += block(f"{coder}.mid.block_1", 1, 1) + block(f"{coder}.mid.block_2", 1, 1)
        layers += [f"{coder}.mid.attn_1.{layer}" for layer in ("norm", "q", "k", "v", "proj_out")]
    channels = widths[0]
    for level, width in enumerate(widths):
        for i in range(count):
            layers += block(f"encoder.down.{level}.block.{i}", channels, width)
            channels = width
        layers += [f"encoder.down.{level}.downsample.conv"] * (level + 1 < len(widths))
    for level, width in reversed(list(enumerate(widths))):
        for i in range(count + 1):
            layers += block(f"decoder.up.{level}.block.{i}", channels, width)
            channels = width
        layers += [f"decoder.up.{level}.upsample.conv"] * (level > 0)
    return layers


def without_bias(layer):
    return any(layer.endswith(end) for end in ("to_q", "to_k", "to_v"))


def pairs(part, config, layers, model, converted):
    """Layer by layer, checked against the tensors that diffusers' own model has."""
    wanted = {name.rsplit(".", 1)[0] for name in model.state_dict()}
    named = {ldm.rsplit(".", 1)[0]: name.rsplit(".", 1)[0] for name, ldm in converted.items() if ldm}
    assert len(layers) == len(set(layers)) and set(named) == set(layers), (part, set(layers) ^ set(named))
    assert sorted(named.values()) == sorted(wanted), (part, wanted ^ set(named.values()))
    return dict(sorted(named.items()))


def keys(prefix, layers, bare=True):
    kinds = lambda layer: ["weight"] + ["bias"] * (not bare or not without_bias(layer))
    return {prefix + f"{layer}.{kind}": Name(f"{layer}.{kind}") for layer in layers for kind in kinds(layer)}


def model_pairs(configs):
    """Pairs of every part of a model with these configurations."""
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "controlnet": ControlNetModel.from_config(configs["controlnet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
        }
    layers = {"unet": unet(configs["unet"]), "controlnet": controlnet(configs["controlnet"]), "vae": vae(configs["vae"])}
    converted = {
        "unet": convert.convert_ldm_unet_checkpoint(keys("model.diffusion_model.", layers["unet"]), configs["unet"]),
        "vae": convert.convert_ldm_vae_checkpoint(keys("first_stage_model.", layers["vae"], False), configs["vae"]),
    }
    # diffusers' conversion knows SD's eight hint layers only: 0 and 14 are the first and the last
    hints = sorted((l for l in layers["controlnet"] if "hint" in l), key=lambda l: int(l.split(".")[1]))
    standard = keys("control_model.", [layer for layer in layers["controlnet"] if "hint" not in layer])
    converted["controlnet"] = {
        name: ldm
        for name, ldm in convert.convert_controlnet_checkpoint(standard, configs["controlnet"]).items()
        if "cond_embedding" not in name
    }
    names = ["conv_in"] + [f"blocks.{i}" for i in range(len(hints) - 2)] + ["conv_out"]
    for layer, name in zip(hints, names, strict=True):
        converted["controlnet"][f"controlnet_cond_embedding.{name}.weight"] = f"{layer}.weight"
    if len(hints) == 8:
        whole = convert.convert_controlnet_checkpoint(keys("control_model.", layers["controlnet"]), configs["controlnet"])
        for name, ldm in whole.items():
            layer, kind = name.rsplit(".", 1)
            assert converted["controlnet"].get(f"{layer}.weight", "").rsplit(".", 1)[0] == ldm.rsplit(".", 1)[0], name
    return {part: pairs(part, configs[part], layers[part], models[part], converted[part]) for part in models}


def configs_of(folder):
    return {part: json.loads((folder / part / "config.json").read_text()) for part in ("unet", "controlnet", "vae")}


def sd15(tiny):
    """Stable Diffusion 1.5's widths; all else it shares with tiny-sd15."""
    levels = {"block_out_channels": [320, 640, 1280, 1280], "norm_num_groups": 32, "cross_attention_dim": 768}
    return {
        "unet": tiny["unet"] | levels,
        "controlnet": tiny["controlnet"] | levels | {"conditioning_embedding_out_channels": [16, 32, 96, 256]},
        "vae": tiny["vae"] | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32},
    }


if __name__ == "__main__":
    tiny = configs_of(ROOT / "tests/fixtures/tiny-sd15")
    configs = {"sd15": sd15(tiny), "tiny-sd15": tiny, "atelier": configs_of(ROOT / "models/atelier")}
    names = {model: model_pairs(parts) for model, parts in configs.items()}
    out = ROOT / "tests/fixtures/ldm-names.json"
    out.write_text(json.dumps(names, indent=0, separators=(",", ":")) + "\n")
    print({model: {part: len(layers) for part, layers in parts.items()} for model, parts in names.items()}, out.stat().st_size)
