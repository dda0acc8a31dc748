"""Two ONNX files of a VAE against onnx.checker and, in onnxruntime, against diffusers.

    python tests/reference/check_onnx.py VAE_FOLDER ENCODER DECODER [--sides 16]

VAE_FOLDER is a diffusers folder of an AutoencoderKL or AutoencoderTiny; the files are `vae_encoder.onnx` and
`vae_decoder.onnx` of a bundle made from it. Prints the largest difference and the largest value at three sizes, or for
latents of `--sides` only. Weights stored as f16 differ by their rounding.
"""
import argparse
import json

import diffusers
import numpy as np
import onnx
import onnxruntime
import torch

parser = argparse.ArgumentParser()
parser.add_argument("folder"), parser.add_argument("encoder"), parser.add_argument("decoder")
parser.add_argument("--sides", type=int)
args = parser.parse_args()
with open(f"{args.folder}/config.json") as file:
    kind = json.load(file)["_class_name"]
vae = getattr(diffusers, kind).from_pretrained(args.folder, torch_dtype=torch.float32).eval().requires_grad_(False)
for path in (args.encoder, args.decoder):
    onnx.checker.check_model(path, full_check=True)
encoder, decoder = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                    for path in (args.encoder, args.decoder))
generator = torch.Generator().manual_seed(5)
levels = len(vae.config.get("encoder_block_out_channels", vae.config.block_out_channels))
factor, channels = 2 ** (levels - 1), vae.config.latent_channels


def moments(image):
    if kind == "AutoencoderKL":
        return vae.encode(image).latent_dist.parameters
    latents = vae.encode(image).latents
    return torch.cat([latents, torch.full_like(latents, -30)], 1)


def compare(what, got, wanted):
    wanted = wanted.numpy()
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    print(f"{what} {wanted.shape}: differs by {np.abs(got - wanted).max():.1e}, largest {np.abs(wanted).max():.1f}")


for batch, height, width in [(1, args.sides, args.sides)] if args.sides else [(1, 8, 8), (2, 6, 10), (3, 1, 5)]:
    image = torch.rand(batch, 3, height * factor, width * factor, generator=generator) * 2 - 1
    latent = torch.randn(batch, channels, height, width, generator=generator)
    compare("moments", encoder.run(["moments"], {"image": image.numpy()})[0], moments(image))
    compare("image", decoder.run(["image"], {"latent": latent.numpy()})[0], vae.decode(latent).sample)
