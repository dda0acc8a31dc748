"""Noise error on fixed crops, timesteps and noises, with the edges and without. `probe.py MODEL DATA`"""
import sys

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet import edge_maps
from prompts import Prompts
from training import autocast, log
from unet import noise_schedule

CROPS, BATCH, FROM = 96, 16, 300  # timesteps FROM..999, where the layout is decided


@torch.no_grad()
def main():
    model, data = sys.argv[1:3]
    text = CLIPTextModel.from_pretrained(f"{model}/text_encoder", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(f"{model}/unet", torch_dtype=torch.float32).eval()
    control = ControlNetModel.from_pretrained(f"{model}/controlnet", torch_dtype=torch.float32).eval()
    rng, noise, edges = np.random.default_rng(7), noise_schedule(), edge_maps(data)
    prompts = Prompts(data, CLIPTokenizer.from_pretrained(f"{model}/tokenizer"), rng, codes=False)
    latents = np.load(f"{data}/latents.npy", mmap_mode="r")
    chosen, sums = rng.choice(len(latents), CROPS, replace=False), {"with_edges": 0.0, "without_edges": 0.0, "no_prompt": 0.0}
    timesteps = torch.from_numpy(rng.integers(FROM, 1000, CROPS))
    eps_all = torch.randn((CROPS, *latents.shape[1:]), generator=torch.Generator().manual_seed(7))
    for i in range(0, CROPS, BATCH):
        crops, t, eps = chosen[i:i + BATCH], timesteps[i:i + BATCH], eps_all[i:i + BATCH]
        x = noise.add_noise(torch.from_numpy(latents[np.sort(crops)][np.argsort(np.argsort(crops))].astype(np.float32)), eps, t)
        condition = torch.from_numpy(np.stack([edges[k] for k in crops]).astype(np.float32) / 255)[:, None].expand(-1, 3, -1, -1)
        ids = torch.tensor([prompts.ids(prompts.captions[k]["full"]) for k in crops])
        with autocast():
            words, empty = text(ids)[0], text(torch.tensor([prompts.ids("")]))[0].expand(len(crops), -1, -1)
            down, mid = control(x, t, words, condition, return_dict=False)
            guesses = {
                "with_edges": unet(x, t, words, down_block_additional_residuals=down, mid_block_additional_residual=mid,
                                   return_dict=False)[0],
                "without_edges": unet(x, t, words, return_dict=False)[0],
                "no_prompt": unet(x, t, empty, return_dict=False)[0]}
        for name, guess in guesses.items():
            sums[name] += (guess.float() - eps).square().mean((1, 2, 3)).sum().item()
    log(model=model, crops=CROPS, **{name: total / CROPS for name, total in sums.items()})


if __name__ == "__main__":
    main()
