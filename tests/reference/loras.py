"""Makes tests/fixtures/loras/: one small LoRA for tiny-sd15 in every naming, and the weights it gives.

    python tests/reference/loras.py

Versions: torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0. `diffusers.safetensors` is written by
`StableDiffusionPipeline.save_lora_weights` with peft's settings in its header; `kohya.safetensors` (convolutions and `.alpha`, as LCM-LoRA
has them) and `original.safetensors` (kohya's over the original names) by this script; `processors.bin` as diffusers
wrote it before 0.22. `expected.safetensors` holds under `<file>/<part>.<name>` every weight that changes with the LoRA's weight 0.75, computed
in float64 and rounded to float32; the metadata key `rounding` is the largest difference of the same in float32.

The last two are as diffusers fuses them. For kohya's two, `weight + 0.75 alpha / rank up @ down` is written out here, and what diffusers
fuses must agree where every layer has the same alpha: diffusers 0.42 forgets alphas of attention layers that differ.
"""
import json
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import ldm_names

FIXTURES = Path(__file__).parent.parent / "fixtures"
OUT = FIXTURES / "loras"
WEIGHT = 0.75
ATTENTION = "down_blocks.0.attentions.1.transformer_blocks.0"
UP = "up_blocks.2.attentions.0.transformer_blocks.0"
LINEAR = [f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn2.to_k", f"{UP}.attn2.to_v", f"{UP}.attn1.to_out.0"]
MORE = ["mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", f"{ATTENTION}.ff.net.2"]
CONVOLUTIONS = ["down_blocks.1.resnets.0.conv1", "mid_block.attentions.0.proj_in", "up_blocks.1.resnets.2.conv_shortcut",
                "down_blocks.0.downsamplers.0.conv", "up_blocks.1.upsamplers.0.conv"]
TIME = ["mid_block.resnets.1.time_emb_proj"]
TEXT = ["encoder.layers.1.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj"]
TEXT_MORE = ["encoder.layers.1.mlp.fc1"]


def pipeline(dtype):
    return StableDiffusionPipeline.from_pretrained(FIXTURES / "tiny-sd15", torch_dtype=dtype, safety_checker=None)


def matrices(module, rank):
    """Random `down` and `up` for a layer, as trainers shape them."""
    weight = module.weight
    if weight.ndim == 4:
        down, up = (rank, *weight.shape[1:]), (weight.shape[0], rank, 1, 1)
    else:
        down, up = (rank, weight.shape[1]), (weight.shape[0], rank)
    return torch.randn(down) / down[1] ** 0.5, torch.randn(up) * 0.3


def write_kohya(path, pipe, unet_name, alpha=None):
    """Ranks differ from layer to layer, and alphas unless one is given; half of the layers are half precision."""
    tensors = {}
    for i, layer in enumerate(LINEAR + MORE + CONVOLUTIONS + TIME):
        down, up = matrices(pipe.unet.get_submodule(layer), 1 + i % 4)
        tensors |= kohya(f"lora_unet_{unet_name(layer)}", down, up, alpha or 2.0 + i, torch.half if i % 2 else torch.float)
    for i, layer in enumerate(TEXT + TEXT_MORE):
        down, up = matrices(pipe.text_encoder.get_submodule(layer), 2)
        tensors |= kohya(f"lora_te_text_model.{layer}", down, up, alpha or 1.0 + i, torch.bfloat16)
    save_file(tensors, path, {"ss_network_module": "networks.lora", "ss_network_dim": "4"})


def kohya(name, down, up, alpha, dtype):
    name = name.replace(".", "_")
    return {f"{name}.lora_down.weight": down.to(dtype), f"{name}.lora_up.weight": up.to(dtype),
            f"{name}.alpha": torch.tensor(alpha, dtype=dtype)}


def write_diffusers(path, pipe):
    unet = LoraConfig(r=3, lora_alpha=5, target_modules=LINEAR + MORE + CONVOLUTIONS[:2] + TIME,
                      alpha_pattern={LINEAR[0]: 9}, init_lora_weights=False)
    text = LoraConfig(r=4, lora_alpha=6, target_modules=TEXT + TEXT_MORE, use_rslora=True, init_lora_weights=False)
    pipe.unet.add_adapter(unet)
    pipe.text_encoder.add_adapter(text)
    StableDiffusionPipeline.save_lora_weights(
        path.parent, weight_name=path.name, unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        unet_lora_adapter_metadata=unet.to_dict(), text_encoder_lora_adapter_metadata=text.to_dict(),
    )


def write_processors(path, pipe):
    tensors = {}
    for layer in LINEAR:
        down, up = matrices(pipe.unet.get_submodule(layer), 4)
        at, name = layer.removesuffix(".0").rsplit(".", 1)
        tensors |= {f"unet.{at}.processor.{name}_lora.down.weight": down, f"unet.{at}.processor.{name}_lora.up.weight": up}
    for layer in TEXT:
        down, up = matrices(pipe.text_encoder.get_submodule(layer), 4)
        at, name = layer.rsplit(".", 1)
        name = f"text_encoder.text_model.{at}.to_{name.removesuffix('_proj')}_lora"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    for layer in TEXT_MORE:
        down, up = matrices(pipe.text_encoder.get_submodule(layer), 4)
        name = f"text_encoder.text_model.{layer}.lora_linear_layer"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    torch.save(tensors, path)


def fused(path, dtype):
    """Every weight that the LoRA changes, by part and name."""
    pipe = pipeline(dtype)
    before = {part: dict(getattr(pipe, part).state_dict()) for part in ("unet", "text_encoder")}
    before = {part: {name: tensor.clone() for name, tensor in state.items()} for part, state in before.items()}
    if path.stem == "original":  # diffusers renames these blocks for SDXL only
        pipe.load_lora_weights(_maybe_map_sgm_blocks_to_diffusers(load_file(path), pipe.unet.config))
    else:
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    for part in before:
        for name, parameter in getattr(pipe, part).named_parameters():
            assert "lora_" not in name or parameter.dtype == dtype, (name, parameter.dtype)
    pipe.fuse_lora(lora_scale=WEIGHT)
    pipe.unload_lora_weights()
    changed = {}
    for part, state in before.items():
        after = getattr(pipe, part).state_dict()
        assert after.keys() == state.keys()
        for name, tensor in after.items():
            if not torch.equal(tensor, state[name]):
                prefix = "text_model." if part == "text_encoder" and not name.startswith("text_model.") else ""
                changed[f"{path.name}/{part}.{prefix}{name}"] = tensor
    return changed


def by_formula(path, unet_name, dtype):
    """What kohya's definition gives for every layer of [write_kohya]."""
    pipe, tensors, changed = pipeline(dtype), load_file(path), {}
    for part, layers in (("unet", LINEAR + MORE + CONVOLUTIONS + TIME), ("text_encoder", TEXT + TEXT_MORE)):
        for layer in layers:
            prefix = "lora_unet_" + unet_name(layer) if part == "unet" else "lora_te_text_model_" + layer
            prefix = prefix.replace(".", "_")
            down, up, alpha = (tensors[f"{prefix}.{end}"].to(dtype) for end in ("lora_down.weight", "lora_up.weight", "alpha"))
            weight = getattr(pipe, part).get_submodule(layer).weight
            delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            name = f"{'text_model.' if part == 'text_encoder' else ''}{layer}.weight"
            changed[f"{path.name}/{part}.{name}"] = (weight + WEIGHT * alpha / down.shape[0] * delta).detach()
    return changed


def check_formula(pipe, to_original):
    with tempfile.TemporaryDirectory() as folder:
        for name, unet_name in (("kohya", str), ("original", to_original)):
            path = Path(folder, f"{name}.safetensors")
            write_kohya(path, pipe, unet_name, alpha=3.0)
            ours, theirs = by_formula(path, unet_name, torch.float64), fused(path, torch.float64)
            assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
            for key, tensor in ours.items():
                torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-6)  # its scales are float32


def main():
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(3)
    pipe = pipeline(torch.float32)
    to_original = {name: ldm for ldm, name in ldm_names.model_pairs(ldm_names.configs_of(FIXTURES / "tiny-sd15"))["unet"].items()}
    check_formula(pipe, to_original.get)
    files = {OUT / "kohya.safetensors": str, OUT / "original.safetensors": to_original.get}
    for path, unet_name in files.items():
        write_kohya(path, pipe, unet_name)
    write_processors(OUT / "processors.bin", pipe)
    write_diffusers(OUT / "diffusers.safetensors", pipeline(torch.float32))
    expected, rounding = {}, {}
    for path in [*files, OUT / "processors.bin", OUT / "diffusers.safetensors"]:
        compute = lambda dtype: by_formula(path, files[path], dtype) if path in files else fused(path, dtype)
        exact, single = compute(torch.float64), compute(torch.float32)
        assert exact.keys() == single.keys(), exact.keys() ^ single.keys()
        expected |= {name: tensor.float().contiguous() for name, tensor in exact.items()}
        rounding[path.name] = max((exact[name] - single[name]).abs().max().item() for name in exact)
        print(path.name, len(exact), rounding[path.name])
    save_file(expected, OUT / "expected.safetensors", {"recipe": json.dumps({"weight": WEIGHT, "rounding": rounding})})


main()
