"""Textual inversion of held-out styles in stages (DreamStyler), as a measurement.

    invert.py MODEL SAMPLES gc_8,gcd_board6 [--stages 1,6] [--steps 150] [--grid FILE]

T vectors, stage = floor(t / 1000 * T), AdamW on those vectors only, all started from the word `painting`. Prints, for
every style and every T, the noise-prediction error on a fixed set of (window, t, noise) of the style picture: with the
empty prompt, with the word `painting`, with the learned vectors. --grid FILE paints two held-out photographs before and
after learning (ControlNet + img2img).
"""
import argparse
import glob
import time

import numpy as np
import torch
from diffusers import ControlNetModel, DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from sample import edge_image, grid, square
from training import autocast, compiled, log

WINDOW, BATCH, PROBES, SIDE = 24, 8, 96, 160  # latents, windows, windows, pixels of the style picture
TEMPLATE, START = "a painting in the style of {}", "painting"
MOST_STAGES = 6


def pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


class Inversion:
    def __init__(self, pipe, rate):
        self.pipe, self.tokenizer, self.text, self.rate = pipe, pipe.tokenizer, pipe.text_encoder, rate
        self.names = [f"<style>-T{i}" for i in range(MOST_STAGES)]
        self.tokenizer.add_tokens(self.names)
        self.text.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        self.rows = torch.tensor(self.tokenizer.convert_tokens_to_ids(self.names))
        self.weight = self.text.get_input_embeddings().weight
        self.noise = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        pipe.unet.requires_grad_(False), self.text.requires_grad_(False)
        self.weight.requires_grad_(True)
        self.unet = compiled(pipe.unet)
        self.reset()

    def reset(self):
        start = self.tokenizer(START, add_special_tokens=False).input_ids
        assert len(start) == 1
        with torch.no_grad():
            self.weight[self.rows] = self.weight[start[0]].clone()

    def embed(self, prompts):
        ids = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.text(ids)[0]

    def stages(self, count):
        return self.embed([TEMPLATE.format(name) for name in self.names[:count]])

    def errors(self, z, t, eps, words):
        """Squared error of each window; words [T,77,width]."""
        x = self.noise.add_noise(z, eps, t)
        guess = self.unet(x, t, words[t * len(words) // 1000], return_dict=False)[0]
        return (guess.float() - eps).square().mean((1, 2, 3))

    def windows(self, z, n, rng):
        out = []
        for _ in range(n):
            u, v = rng.integers(0, z.shape[2] - WINDOW + 1), rng.integers(0, z.shape[3] - WINDOW + 1)
            out.append(z[rng.integers(0, 2), :, u:u + WINDOW, v:v + WINDOW])
        return torch.stack(out)

    @torch.no_grad()
    def show(self, picture):
        """Choose the style picture: its latent (and the mirrored one), and the fixed windows, timesteps and noises."""
        vae, x = self.pipe.vae, pixels(picture)
        self.z = vae.encode(torch.cat([x, x.flip(3)])).latent_dist.mode() * vae.config.scaling_factor
        fixed = np.random.default_rng(3)
        windows, t = self.windows(self.z, PROBES, fixed), torch.from_numpy(fixed.permutation(np.arange(PROBES) * 1000 // PROBES))
        eps = torch.randn(windows.shape, generator=torch.Generator().manual_seed(3))
        self.fixed = [(windows[i:i + BATCH], t[i:i + BATCH], eps[i:i + BATCH]) for i in range(0, PROBES, BATCH)]

    @torch.no_grad()
    def probe(self, words):
        with autocast():
            return torch.cat([self.errors(z, t, eps, words) for z, t, eps in self.fixed]).mean().item()

    def learn(self, count, steps):
        self.reset()
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW([self.weight], lr=self.rate, weight_decay=0.0)
        rng, mask = np.random.default_rng(0), torch.zeros(len(self.weight), 1)
        mask[self.rows[:count]] = 1
        for _ in range(steps):
            z, t = self.windows(self.z, BATCH, rng), torch.randint(0, 1000, (BATCH,))
            with autocast():
                loss = self.errors(z, t, torch.randn_like(z), self.stages(count)).mean()
            optimizer.zero_grad()
            loss.backward()
            self.weight.grad *= mask
            optimizer.step()
        with torch.no_grad(), autocast():
            return self.stages(count)

    @torch.no_grad()
    def paint(self, control, picture, words, strength=0.8, steps=20, guidance=4.0, seed=5):
        """ControlNet + img2img with the stage's words at each step."""
        pipe, solver = self.pipe, DPMSolverMultistepScheduler.from_config(self.pipe.scheduler.config)
        empty, first = self.embed([""]), steps - int(steps * strength)
        solver.set_timesteps(steps)
        solver.set_begin_index(first)
        z = pipe.vae.encode(pixels(picture)).latent_dist.mode() * pipe.vae.config.scaling_factor
        x = solver.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)), solver.timesteps[first:first + 1])
        edges = (pixels(edge_image(picture)) + 1) / 2
        for t in solver.timesteps[first:]:
            with autocast():
                w = torch.cat([empty, words[int(t) * len(words) // 1000][None]])
                twice, edges_twice = torch.cat([x, x]), torch.cat([edges, edges])
                down, mid = control(twice, t, w, edges_twice, return_dict=False)
                e = pipe.unet(twice, t, w, down_block_additional_residuals=down, mid_block_additional_residual=mid,
                              return_dict=False)[0].float()
            x = solver.step(e[:1] + guidance * (e[1:] - e[:1]), t, x, return_dict=False)[0]
        y = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0].clamp(-1, 1)
        return Image.fromarray(((y.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model"), parser.add_argument("samples"), parser.add_argument("styles")
    parser.add_argument("--stages", default="1,6"), parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-2), parser.add_argument("--grid")
    arguments = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(arguments.model, torch_dtype=torch.float32)
    inversion, cells, names = Inversion(pipe, arguments.rate), [], arguments.styles.split(",")
    photos = [square(f"{arguments.samples}/content/{k}.jpg", 192) for k in ("mountain2", "sea3")]
    counts = [int(n) for n in arguments.stages.split(",")]
    if arguments.grid:
        control = ControlNetModel.from_pretrained(f"{arguments.model}/controlnet", torch_dtype=torch.float32).eval()
    for name in names:
        path = glob.glob(f"{arguments.samples}/style/{name}.*")[0]
        inversion.show(square(path, SIDE))
        inversion.reset()
        with torch.no_grad(), autocast():
            empty, word = inversion.embed([""]), inversion.stages(1)
        facts = dict(style=name, empty=inversion.probe(empty), word=inversion.probe(word))
        row = [square(path, 192)]
        for photo in photos if arguments.grid else ():
            row += [photo, inversion.paint(control, photo, word)]
        for count in counts:
            started, learned = time.time(), inversion.learn(count, arguments.steps)
            error = inversion.probe(learned)
            facts |= {f"learned_{count}": error, f"lower_by_percent_{count}": 100 * (1 - error / facts["word"]),
                      f"seconds_{count}": time.time() - started}
            row += [inversion.paint(control, photo, learned) for photo in photos] if arguments.grid else []
        log(**facts, steps=arguments.steps, rate=arguments.rate)
        cells += row
        if arguments.grid:
            columns = ["style"] + ["photo", "word painting"] * len(photos) + [f"T={c}" for c in counts for _ in photos]
            grid(names[:len(cells) // len(columns)], columns, cells, arguments.grid)


if __name__ == "__main__":
    main()
