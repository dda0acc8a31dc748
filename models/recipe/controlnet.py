"""Soft-edge ControlNet on (edges of the photograph, its painted version), UNet and text encoder frozen.

`controlnet.py DATA OUT [MINUTES]`; resumes from OUT/controlnet.pt. START=MODEL begins from the ControlNet of an
exported model. Ends as unet.py does (`echo 4 > OUT/finish`). For paintings the edges are the painting's own.
"""
import os
import sys
import time

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from prompts import Prompts
from soft_edges import soft_edges
from training import DEVICE, Average, Schedule, autocast, compiled, follow_threads, log, save_atomically
from unet import START, latents, noise_schedule

WINDOW, BATCH = int(os.environ.get("WINDOW", 24)), int(os.environ.get("BATCH", 32))
PEAK = float(os.environ.get("LR", 5e-4))


def edge_maps(data):
    """uint8 [N,H,W], cached: the edge map of each crop's photograph (of the crop itself where it is a painting)."""
    path = f"{data}/edges.npy"
    if not os.path.exists(path):
        photo = np.load(f"{data}/photo.npy", mmap_mode="r")
        edges = np.empty(photo.shape[:3], np.uint8)
        for i in range(0, len(photo), 64):
            rgb = torch.from_numpy(np.array(photo[i:i + 64])).permute(0, 3, 1, 2).float() / 255
            edges[i:i + 64] = (soft_edges(rgb)[:, 0] * 255).round().byte().numpy()
        np.save(path, edges)
    return np.load(path, mmap_mode="r")


class Trainer:
    def __init__(self, data, out, minutes=None):
        self.out, self.rng = out, np.random.default_rng()
        tokenizer = CLIPTokenizer.from_pretrained(f"{out}/tokenizer")
        self.text = CLIPTextModel.from_pretrained(f"{out}/text_encoder").to(DEVICE).eval().requires_grad_(False)
        self.unet = UNet2DConditionModel.from_pretrained(f"{out}/unet").to(DEVICE).requires_grad_(False)
        self.unet = self.unet.to(memory_format=torch.channels_last)
        if START:
            net = ControlNetModel.from_pretrained(f"{START}/controlnet", torch_dtype=torch.float32)
        else:
            net = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=(16, 32, 64))
        self.net = net.to(DEVICE).to(memory_format=torch.channels_last).train().requires_grad_(True)
        self.latents, self.edges, self.noise = latents(data, out), edge_maps(data), noise_schedule()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01)
        self.average, self.step, spent = Average(self.net, 0.995), 0, 0.0
        if os.path.exists(f"{out}/controlnet.pt"):
            state = torch.load(f"{out}/controlnet.pt", map_location=DEVICE)
            self.net.load_state_dict(state["model"]), self.optimizer.load_state_dict(state["optimizer"])
            self.average.weights, self.average.updates = state["average"], state["step"]
            self.step, spent = state["step"], state["spent"]
        self.prompts = Prompts(data, tokenizer, self.rng, codes=False)
        self.schedule = Schedule(out, PEAK, 100, minutes, spent)
        self.run = compiled(self.guess)
        log(controlnet=sum(p.numel() for p in self.net.parameters()), resumed_at=self.step, start=bool(START))

    def guess(self, x, t, words, edges):
        down, mid = self.net(x, t, words, edges, return_dict=False)
        return self.unet(x, t, words, down_block_additional_residuals=down, mid_block_additional_residual=mid,
                         return_dict=False)[0]

    def save(self):
        save_atomically(dict(model=self.net.state_dict(), optimizer=self.optimizer.state_dict(),
                             average=self.average.weights, step=self.step, spent=self.schedule.seconds()),
                        f"{self.out}/controlnet.pt")
        self.average.swap(self.net)
        self.net.save_pretrained(f"{self.out}/controlnet")
        self.average.swap(self.net)

    def batch(self):
        crops, ids, which, _ = self.prompts.batch(BATCH)
        side = 4 * WINDOW
        z, e = np.empty((BATCH, 4, WINDOW, WINDOW), np.float32), np.empty((BATCH, side, side), np.float32)
        for i, k in enumerate(crops):
            u, v = self.rng.integers(0, self.latents.shape[2] - WINDOW + 1, 2)
            z[i] = self.latents[k, :, u:u + WINDOW, v:v + WINDOW]
            e[i] = self.edges[k, 4 * u:4 * u + side, 4 * v:4 * v + side] / 255.0
        edges = torch.from_numpy(e).to(DEVICE)[:, None].expand(-1, 3, -1, -1)
        return (torch.from_numpy(z).to(DEVICE).contiguous(memory_format=torch.channels_last),
                edges.contiguous(memory_format=torch.channels_last), ids, which)

    def train_step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.step)
        x, edges, ids, which = self.batch()
        # the edges matter most at the noisy end, where the layout is decided
        t = (1000 * torch.rand(BATCH, device=DEVICE) ** 0.7).long().clamp(max=999)
        eps = torch.randn_like(x)
        with autocast():
            with torch.no_grad():
                words = self.text(ids)[0][which]
            guess = self.run(self.noise.add_noise(x, eps, t), t, words, edges)
        loss = (guess.float() - eps).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.net)
        self.step += 1
        return loss.item()

    def train(self):
        mean, saved = 0.0, time.time()
        while not self.schedule.done():
            loss = self.train_step()
            mean = 0.97 * mean + 0.03 * loss if mean else loss
            if self.step % 10 == 0:
                follow_threads()
            if self.step % 50 == 0:
                log(step=self.step, s=int(self.schedule.seconds()), mse=mean)
            if time.time() - saved > 150:
                self.save()
                saved = time.time()
        self.save()
        log(done=self.step, windows=self.step * BATCH, mse=mean)


if __name__ == "__main__":
    torch.manual_seed(int(time.time()))
    Trainer(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else None).train()
