"""A random pipeline of Stable Diffusion 1.5's exact structure, only narrow: `tiny_sd15.py OUT [--tokenizer DIR]`.

Configurations are written as SD 1.5's are (short, with its quirks: 8 heads called `attention_head_dim`, no
`scaling_factor`, no `timestep_spacing`, the text encoder's wrong `eos_token_id`, the prefix `text_model.` and the
buffer `position_ids`). The UNet is float16 in two shards, the text encoder bfloat16, the ControlNet float32, the VAE
float16, as safetensors and as ONNX. No tensor is zero or one throughout, so that a swapped or ignored one shows.
"""
import argparse
import json
import math
import os
import shutil

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from export_vae import export
from model import photograph, unit

UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [16, 24, 32, 32], "center_input_sample": False, "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 8, "out_channels": 4, "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
CONTROLNET = {k: v for k, v in UNET.items() if k not in ("center_input_sample", "out_channels", "sample_size",
                                                         "up_block_types")} | {
    "_class_name": "ControlNetModel", "_diffusers_version": "0.14.0.dev0", "class_embed_type": None,
    "conditioning_embedding_out_channels": [8, 8, 16, 16], "controlnet_conditioning_channel_order": "rgb",
    "num_class_embeds": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default", "upcast_attention": False, "use_linear_projection": False,
}
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [8, 16, 16, 16], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 4, "out_channels": 3, "sample_size": 64,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 32, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 128, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 1, "projection_dim": 32,
    "torch_dtype": "bfloat16", "transformers_version": "4.22.0.dev0",
}
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "feature_extractor": [None, None],
    "safety_checker": [None, None], "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}
PROMPTS = ["a painting of a mountain, in the style of watercolor", "a photo of two boats on the sea", "", "castle",
           "a painting in the style of oil", "flowers in a vase, in dark muted blue tones", "a cat", "portrait"]
GAINS = {"cond_embedding": 2.0, ".to_q.": 1.8, ".to_k.": 1.8, ".q_proj.": 1.8, ".k_proj.": 1.8, ".attn2.to_v": 1.5,
         ".attn2.to_out": 1.5, ".proj_out.": 0.3, ".conv2.": 0.3, "controlnet_": 0.3}
LATENT_SCALE = 0.18215  # AutoencoderKL's default, which SD 1.5's configuration relies on


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def gain(name):
    """How much larger than 1/sqrt(inputs) a weight's spread is.

    Attention must choose, and its choice must count; residual branches must leave the noise in sight of conv_out.
    """
    found = [g for part, g in GAINS.items() if part in name]
    return found[0] if found else 1.0


def randomise(module, seed):
    """Every parameter random; norms around one, biases around zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            if "embedding.weight" in name and p.ndim == 2 and "time_embedding" not in name:
                p.copy_(0.02 * draw)
            elif p.ndim == 1:
                around = 1.0 if name.endswith("weight") else 0.0
                p.copy_(around + (0.2 if around else 0.1) * draw)
            else:
                p.copy_(draw * gain(name) / math.sqrt(p[0].numel()))
    return module.eval()


@torch.no_grad()
def settle_vae(vae):
    """Latents of standard deviation 1 / LATENT_SCALE with a visible spread, pictures within [-1, 1]."""
    image = unit(photograph(128, 128)) * 2 - 1
    mean, log_variance = vae.encode(image).latent_dist.parameters.chunk(2, dim=1)
    vae.quant_conv.weight[:4] /= mean.std() * LATENT_SCALE
    vae.quant_conv.weight[4:] /= log_variance.std() * 2
    vae.quant_conv.bias[4:] -= log_variance.mean() + 1
    vae.post_quant_conv.weight *= LATENT_SCALE
    decoded = vae.decode(vae.encode(image).latent_dist.mode()).sample
    vae.decoder.conv_out.weight *= 0.45 / decoded.std()


@torch.no_grad()
def settle_unet(unet, states, seed):
    """conv_out by least squares, so that the network predicts noise and latents stay sane; then a random part."""
    generator, features = torch.Generator().manual_seed(seed), []
    z = torch.randn(128, 4, 4, 4, generator=generator)
    z = torch.nn.functional.interpolate(z, scale_factor=4, mode="bilinear")
    z = z / z.std() + 0.3 * torch.randn(z.shape, generator=generator)
    noise, t = torch.randn(z.shape, generator=generator), torch.randint(300, 1000, (len(z),), generator=generator)
    noised = DDPMScheduler.from_config(SCHEDULER).add_noise(z, noise, t)
    which = torch.randint(0, len(states), (len(z),), generator=generator)
    hook = unet.conv_out.register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    unet(noised, t, states[which])
    hook.remove()
    columns = torch.nn.functional.unfold(features[0], 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    columns = torch.cat([columns, torch.ones(len(columns), 1)], dim=1)
    wanted = noise.flatten(2).transpose(1, 2).flatten(0, 1).double()
    ridge = 1e-3 * len(columns) * torch.eye(columns.shape[1])
    solved = torch.linalg.solve(columns.T @ columns + ridge, columns.T @ wanted)
    random_part = 0.1 * torch.randn(unet.conv_out.weight.shape, generator=generator) / 12
    unet.conv_out.weight.copy_(solved[:-1].T.reshape(unet.conv_out.weight.shape).float() + random_part)
    unet.conv_out.bias.copy_(solved[-1].float())
    print(f"  noise error {(unet(noised, t, states[which]).sample - noise).square().mean():.3f}")


@torch.no_grad()
def check_influence(unet, controlnet, states):
    """Another text, another control image and none must each move the prediction by 5 %, a close time a little."""
    generator = torch.Generator().manual_seed(5)
    x, control = torch.randn(1, 4, 8, 16, generator=generator), unit(photograph(128, 64))

    def predict(t, text, image=control, scale=0.8):
        down, mid = controlnet(x, t, text, image, conditioning_scale=scale, return_dict=False)
        return unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample

    for t in (981, 501, 20):
        base = predict(t, states[:1])
        moved = {"text": predict(t, states[1:2]), "time": predict(t - 15, states[:1]),
                 "image": predict(t, states[:1], control.flip(1)), "scale": predict(t, states[:1], scale=0.0)}
        moved = {k: float((v - base).norm() / base.norm()) for k, v in moved.items()}
        print(f"  t {t}: deviation {base.std():.2f}; moved by", {k: f"{v:.1%}" for k, v in moved.items()})
        assert all(v > 0.05 for k, v in moved.items() if k != "time") and moved["time"] > 0.005


def write_unet(unet, folder):
    """float16 in two shards, halved at a tensor in the middle of the alphabet, with diffusers' index."""
    tensors = {k: v.half().contiguous() for k, v in sorted(unet.state_dict().items())}
    names, total = list(tensors), sum(v.numel() * 2 for v in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, part in enumerate((names[:len(names) // 2], names[len(names) // 2:]), 1):
        file = f"diffusion_pytorch_model-{i:05}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, f"{folder}/{file}", metadata={"format": "pt"})
        index["weight_map"] |= {k: file for k in part}
    write_json(f"{folder}/diffusion_pytorch_model.safetensors.index.json", index)


def write_text_encoder(text, folder):
    """bfloat16 with the prefix and the buffer that older libraries wrote."""
    tensors = {f"text_model.{k}": v.bfloat16().contiguous() for k, v in text.state_dict().items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})


def write_tokenizer(source, folder):
    """vocab.json, merges.txt and the two small files of SD 1.5; no tokenizer.json."""
    os.makedirs(folder, exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(f"{source}/{name}", f"{folder}/{name}")
    added = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    begin, end = {"content": "<|startoftext|>"} | added, {"content": "<|endoftext|>"} | added
    write_json(f"{folder}/special_tokens_map.json",
               {"bos_token": begin, "eos_token": end, "pad_token": "<|endoftext|>", "unk_token": end})
    kind = {"__type": "AddedToken"}
    write_json(f"{folder}/tokenizer_config.json",
               {"add_prefix_space": False, "bos_token": kind | begin, "do_lower_case": True, "eos_token": kind | end,
                "errors": "replace", "model_max_length": 77, "pad_token": "<|endoftext|>",
                "special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer",
                "unk_token": kind | end})


def rounded(module, dtype):
    """The module in float32 with the values that `dtype` can hold."""
    return module.to(dtype).float()


def main():
    args = argparse.ArgumentParser()
    args.add_argument("out"), args.add_argument("--tokenizer", default="models/atelier/tokenizer")
    args = args.parse_args()
    out = args.out
    shutil.rmtree(out, ignore_errors=True)
    write_tokenizer(args.tokenizer, f"{out}/tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(f"{out}/tokenizer")
    configs = {"unet": UNET, "vae": VAE, "controlnet": CONTROLNET,
               "text_encoder": TEXT | {"vocab_size": len(tokenizer)}}
    for part, config in configs.items():
        write_json(f"{out}/{part}/config.json", config)
    write_json(f"{out}/scheduler/scheduler_config.json", SCHEDULER)
    write_json(f"{out}/model_index.json", INDEX)

    text = rounded(randomise(CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])), 1), torch.bfloat16)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    states = text(ids)[0].detach()
    unet = randomise(UNet2DConditionModel.from_config(UNET), 2)
    settle_unet(unet, states, 3)
    unet = rounded(unet, torch.float16)
    controlnet = randomise(ControlNetModel.from_config(CONTROLNET), 4)
    check_influence(unet, controlnet, states)
    vae = randomise(AutoencoderKL.from_config(VAE), 6)
    settle_vae(vae)
    vae = rounded(vae, torch.float16)

    write_text_encoder(text, f"{out}/text_encoder")
    write_unet(unet, f"{out}/unet")
    for part, module, dtype in (("controlnet", controlnet, torch.float32), ("vae", vae, torch.float16)):
        save_file({k: v.to(dtype).contiguous() for k, v in module.state_dict().items()},
                  f"{out}/{part}/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    export(vae, f"{out}/vae")
    total = 0
    for root, _, files in os.walk(out):
        for file in files:
            os.chmod(os.path.join(root, file), 0o644)
            total += os.path.getsize(os.path.join(root, file))
    print(f"{out}: {total} bytes")
    assert total < 4_000_000


main()
