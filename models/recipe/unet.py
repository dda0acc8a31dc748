"""Text encoder and UNet, trained together. `unet.py DATA OUT [MINUTES]`; resumes from OUT/unet.pt.

START=MODEL begins from the UNet and the text encoder of an exported model. Without MINUTES the training runs until
`echo 8 > OUT/finish` (eight more minutes, learning rate falling).

Epsilon prediction, DDPM scaled_linear 0.00085..0.012, min-SNR weights (gamma 5), averaged weights, bf16 autocast.
Latents of whole 128 px crops are cached once in DATA/latents.npy (the VAE's mean, times its scaling factor); a training
sample is a random 24x24 or 32x32 window of them.
"""
import collections
import os
import sys
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from prompts import CodeInPlace, Prompts, StyleEncoder
from training import (DEVICE, Average, Schedule, autocast, compiled, follow_threads, log, save_atomically, to_unit)

WINDOWS = {24: (0.75, 32), 32: (0.25, 18)}  # side of the window: (share of the steps, batch)
if os.environ.get("WINDOW"):  # one size only: saves the minutes of compiling the other
    WINDOWS = {side: (1.0, n) for side, (_, n) in WINDOWS.items() if side == int(os.environ["WINDOW"])}
SCALE_BATCH = float(os.environ.get("SCALE_BATCH", 1))
PEAK = float(os.environ.get("LR", 5e-4))
START = os.environ.get("START")


def noise_schedule():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def latents(data, out):
    """float16 [N,4,32,32]: every crop's latent, scaled; made once."""
    path = f"{data}/latents.npy"
    if not os.path.exists(path):
        vae = AutoencoderKL.from_pretrained(f"{out}/vae").to(DEVICE).eval().to(memory_format=torch.channels_last)
        pixels = np.load(f"{data}/x.npy", mmap_mode="r")
        z = np.empty((len(pixels), 4, pixels.shape[1] // 4, pixels.shape[2] // 4), np.float16)
        with torch.no_grad(), autocast():
            for i in range(0, len(pixels), 32):
                mean = vae.encode(to_unit(pixels[i:i + 32])).latent_dist.mode() * vae.config.scaling_factor
                z[i:i + 32] = mean.float().cpu().numpy()
        np.save(path, z)
    return np.load(path)


def networks(tokenizer):
    if START:
        text = CLIPTextModel.from_pretrained(f"{START}/text_encoder", torch_dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(f"{START}/unet", torch_dtype=torch.float32)
    else:
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=256,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id))
        unet = UNet2DConditionModel(
            sample_size=32, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=256, attention_head_dim=4, norm_num_groups=16)
    return text.to(DEVICE).train(), unet.to(DEVICE).to(memory_format=torch.channels_last).train()


class Trained(torch.nn.Module):
    """What the optimizer sees; the style encoder is not exported."""

    def __init__(self, text, unet):
        super().__init__()
        self.text, self.unet = text, unet
        self.style = StyleEncoder(text.config.hidden_size).to(DEVICE)


class Trainer:
    def __init__(self, data, out, minutes=None):
        self.out, self.rng = out, np.random.default_rng()
        tokenizer = CLIPTokenizer.from_pretrained(f"{out}/tokenizer")
        self.latents = latents(data, out)
        text, unet = networks(tokenizer)
        self.trained = Trained(text, unet)
        self.prompts = Prompts(data, tokenizer, self.rng)
        self.code_in_place = CodeInPlace(text, self.prompts.place)
        self.noise = noise_schedule()
        self.alphas = self.noise.alphas_cumprod.to(DEVICE)
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01)
        self.average, self.step, self.seen, spent = Average(self.trained, 0.999), 0, 0, 0.0
        if os.path.exists(f"{out}/unet.pt"):
            state = torch.load(f"{out}/unet.pt", map_location=DEVICE)
            self.trained.load_state_dict(state["model"]), self.optimizer.load_state_dict(state["optimizer"])
            self.average.weights, self.average.updates = state["average"], state["step"]
            self.step, self.seen, spent = state["step"], state["seen"], state["spent"]
        self.schedule = Schedule(out, PEAK, 200, minutes, spent)
        self.run_unet = compiled(unet)
        log(unet=sum(p.numel() for p in unet.parameters()), text=sum(p.numel() for p in text.parameters()),
            latents=list(self.latents.shape), resumed_at=self.step, start=bool(START))

    def save(self):
        save_atomically(dict(model=self.trained.state_dict(), optimizer=self.optimizer.state_dict(),
                             average=self.average.weights, step=self.step, seen=self.seen,
                             spent=self.schedule.seconds()), f"{self.out}/unet.pt")
        self.average.swap(self.trained)
        self.trained.unet.save_pretrained(f"{self.out}/unet")
        self.trained.text.save_pretrained(f"{self.out}/text_encoder")
        self.average.swap(self.trained)

    def words(self, ids, references):
        """Hidden states [P,77,256] of the prompts, style codes written where a reference is given."""
        coded = np.flatnonzero(references >= 0)
        self.code_in_place.codes = None
        if len(coded):
            crops = torch.from_numpy(self.latents[references[coded]].astype(np.float32)).to(DEVICE)
            self.code_in_place.codes = self.trained.style(crops)
            self.code_in_place.rows = torch.from_numpy(coded).to(DEVICE)
        return self.trained.text(ids)[0]

    def windows(self, crops, side):
        batch = np.empty((len(crops), 4, side, side), np.float32)
        for i, k in enumerate(crops):
            u, v = self.rng.integers(0, self.latents.shape[2] - side + 1, 2)
            batch[i] = self.latents[k, :, u:u + side, v:v + side]
        return torch.from_numpy(batch).to(DEVICE).contiguous(memory_format=torch.channels_last)

    def train_step(self, side, n):
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.step)
        crops, ids, which, references = self.prompts.batch(n)
        x = self.windows(crops, side)
        eps = torch.randn_like(x)
        # one timestep from each n-th part of the schedule: less noise in the loss than n independent draws
        t = ((torch.randperm(n) + torch.rand(n)) * 1000 / n).long().clamp(max=999).to(DEVICE)
        with autocast():
            guess = self.run_unet(self.noise.add_noise(x, eps, t), t, self.words(ids, references)[which],
                                  return_dict=False)[0]
        error = (guess.float() - eps).square().mean((1, 2, 3))
        snr = self.alphas[t] / (1 - self.alphas[t])
        loss = (error * snr.clamp(max=5) / snr).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.trained)
        self.step, self.seen = self.step + 1, self.seen + n
        coded = torch.from_numpy(references >= 0).to(DEVICE)[which]
        return error.mean().item(), error[coded].mean().item() if coded.any() else None

    def train(self):
        sides, shares = list(WINDOWS), [share for share, _ in WINDOWS.values()]
        mean, saved, since, seen = collections.defaultdict(float), time.time(), time.time(), self.seen
        while not self.schedule.done():
            side = sides[self.rng.choice(len(sides), p=shares)]
            error, coded = self.train_step(side, max(1, int(WINDOWS[side][1] * SCALE_BATCH)))
            for name, value in ((f"mse{side}", error), ("mse_coded", coded)):
                if value is not None:
                    mean[name] = 0.99 * mean[name] + 0.01 * value if mean[name] else value
            if self.step % 10 == 0:
                follow_threads()
            if self.step % 50 == 0:
                log(step=self.step, s=int(self.schedule.seconds()), seen=self.seen,
                    per_s=(self.seen - seen) / (time.time() - since),
                    lr=self.schedule.learning_rate(self.step), **dict(sorted(mean.items())))
                since, seen = time.time(), self.seen
            if time.time() - saved > 180:
                self.save()
                saved = time.time()
        self.save()
        log(done=self.step, seen=self.seen, **mean)


if __name__ == "__main__":
    torch.manual_seed(int(time.time()))
    Trainer(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else None).train()
