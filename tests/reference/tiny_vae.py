"""Makes tests/fixtures/tiny-vae, a random AutoencoderTiny, and what diffusers answers with it at two sizes.

    python tests/reference/tiny_vae.py

`tiny-vae.safetensors`: `image.{i}` [B, 3, H, W] in [-1, 1] and `encoded.{i}` [B, 4, H/8, W/8]; `latent.{i}` [B, 4, h, w],
some beyond the soft clamp at 3, and `decoded.{i}` [B, 3, 8 h, 8 w]. Its `recipe` tells the distance from float64.
Checks that every tensor matters.
"""
import os

import torch
from diffusers import AutoencoderTiny

from model import FIXTURES, rounding, write

SEED = 11
SIZES = [(2, 32, 48), (1, 64, 40)]
CONFIG = dict(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4,
              num_encoder_blocks=(1, 2, 1, 1), num_decoder_blocks=(1, 2, 1, 1))


def random_vae(generator):
    """He's initialisation, so that neither activations nor biases fade."""
    vae = AutoencoderTiny(**CONFIG).eval().requires_grad_(False)
    for name, tensor in vae.named_parameters():
        std = 0.3 if name.endswith("bias") else (1.4 / tensor[0].numel()) ** 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)
    return vae


def answers(vae, images, latents):
    dtype = next(vae.parameters()).dtype
    encoded = {f"encoded.{i}": vae.encode(x.to(dtype)).latents for i, x in enumerate(images)}
    return encoded | {f"decoded.{i}": vae.decode(x.to(dtype)).sample for i, x in enumerate(latents)}


generator = torch.Generator().manual_seed(SEED)
vae = random_vae(generator)
images = [torch.rand(b, 3, h, w, generator=generator) * 2 - 1 for b, h, w in SIZES]
latents = [torch.randn(b, 4, h // 8, w // 8, generator=generator) * 2 for b, h, w in SIZES]
single = answers(vae, images, latents)
for name, tensor in vae.named_parameters():
    kept = tensor.clone()
    tensor.zero_()
    change = max((v - single[k]).abs().max() for k, v in answers(vae, images, latents).items())
    tensor.copy_(kept)
    assert change > 1e-2, f"{name} changes nothing: {change}"

folder = os.path.join(FIXTURES, "tiny-vae")
vae.save_pretrained(folder)
os.chmod(f"{folder}/diffusion_pytorch_model.safetensors", 0o644)
recipe = {"seed": SEED, "config": CONFIG, "rounding": rounding(single, answers(vae.double(), images, latents))}
tensors = {f"image.{i}": x for i, x in enumerate(images)} | {f"latent.{i}": x for i, x in enumerate(latents)} | single
write(f"{FIXTURES}/tiny-vae.safetensors", tensors, recipe, limit=300_000)
