"""Whole pipelines of diffusers from seed 7, in float32: `paint.py MODEL_DIR OUT`.

Text to image with four solvers, and a style transfer (ControlNet + img2img) in which the step at timestep t is told
by the prompt of stage floor(t / 1000 * 6). Everything runs a second time from latents that are off by 1e-6: how far
each step then ends up (the metadata's `sensitivity`) says what rounding alone may do.
"""
import argparse
import math
import warnings

import numpy as np
import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler,
                       StableDiffusionControlNetImg2ImgPipeline, UniPCMultistepScheduler)
from PIL import Image

from model import STAGES, Model, photograph, soft_edges, stage, unit, write

SEED, STEPS, GUIDANCE, STRENGTH, CONTROL_SCALE = 7, 10, 5.0, 0.8, 0.8
PROMPT = "a painting of a mountain, in the style of watercolor"
NEGATIVE = "low resolution, blurry image, artifact"
TRANSFER_PROMPT = "a painting of a mountain, in the style of {}"
SOLVERS = {"dpm++2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler, "ddim": DDIMScheduler,
           "euler": EulerDiscreteScheduler}
STYLE_SEED = 21
OFF = 1e-6
LIMIT = 1_500_000


def picture(images):
    """The pipeline's [1, H, W, 3] in [0, 1] -> u8 [H, W, 3], rounded as diffusers rounds."""
    return torch.from_numpy((images[0] * 255).round().astype(np.uint8))


class Latents:
    """A pipeline's latents: those that enter the loop, moved by `off` * randn * their deviation; those of each step."""

    def __init__(self, pipe, off):
        self.kept, self.prepare, self.off = [], pipe.prepare_latents, off
        pipe.prepare_latents = self.first

    def first(self, *args, **kwargs):
        latents = self.prepare(*args, **kwargs)
        if self.off:
            draw = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
            latents = latents + self.off * latents.std() * draw
        self.kept.append(latents.clone())
        return latents

    def step(self, latents):
        self.kept.append(latents.clone())

    def all(self):
        return torch.cat(self.kept)


def text_to_image(model, name, scheduler, width, height, off=0.0):
    """One solver's tensors under `text2image.<name>.`, and its picture (or None)."""
    pipe = model.pipe
    prepare, shipped = pipe.prepare_latents, pipe.scheduler
    pipe.scheduler = scheduler
    latents = Latents(pipe, off)

    def follow(_pipe, _i, _t, kwargs):
        latents.step(kwargs["latents"])
        return {}

    images = pipe(PROMPT, negative_prompt=NEGATIVE, width=width, height=height, num_inference_steps=STEPS,
                  guidance_scale=GUIDANCE, generator=torch.Generator("cpu").manual_seed(SEED), output_type="np",
                  callback_on_step_end=follow).images
    pipe.prepare_latents, pipe.scheduler = prepare, shipped
    tensors = {"latents": latents.all(), "timesteps": scheduler.timesteps.float()}
    if hasattr(scheduler, "sigmas"):
        tensors["sigmas"] = scheduler.sigmas.float()
    return {f"text2image.{name}.{k}": v for k, v in tensors.items()}, picture(images)


def every_solver(model, width, height):
    """Each solver as `from_config` builds it."""
    config = model.pipe.scheduler.config
    schedulers = {name: solver.from_config(config) for name, solver in SOLVERS.items()}
    tensors, moved = {}, {}
    for name, scheduler in schedulers.items():
        found, image = text_to_image(model, name, scheduler, width, height)
        off, image_off = text_to_image(model, name, scheduler, width, height, OFF)
        tensors, moved = tensors | found, moved | off
        if name == "dpm++2m":
            tensors["text2image.image"], moved["text2image.image"] = image, image_off
    keep = ("timestep_spacing", "steps_offset", "clip_sample", "set_alpha_to_one", "prediction_type", "solver_order",
            "solver_type", "lower_order_final", "final_sigmas_type", "predict_x0", "euler_at_final")
    configs = {name: {k: s.config[k] for k in keep if k in s.config} | {"init_noise_sigma": float(s.init_noise_sigma)}
               for name, s in schedulers.items()}
    return tensors, moved, configs


class Transfer:
    """The transfer pipeline, told another prompt at every stage."""

    def __init__(self, model):
        self.model, parts = model, model.pipe.components
        self.pipe = StableDiffusionControlNetImg2ImgPipeline(
            **(parts | {"scheduler": UniPCMultistepScheduler.from_config(parts["scheduler"].config)}),
            controlnet=model.controlnet, requires_safety_checker=False)
        self.pipe.set_progress_bar_config(disable=True)
        self.noised = {}
        add_noise = self.pipe.scheduler.add_noise

        def watched(init_latents, noise, timesteps):
            self.noised = {"transfer.init_latents": init_latents.clone(), "transfer.noise": noise.clone()}
            return add_noise(init_latents, noise, timesteps)

        self.pipe.scheduler.add_noise = watched

    def timesteps(self):
        self.pipe.scheduler.set_timesteps(STEPS)
        return self.pipe.get_timesteps(STEPS, STRENGTH, "cpu")[0].clone()

    def paint(self, content, states, negative, off=0.0):
        """content u8 [H, W, 3]; states [T, 77, D] and negative [1, 77, D] -> tensors."""
        times, latents = self.timesteps(), Latents(self.pipe, off)
        told = [states[stage(t)][None] for t in times]
        control = soft_edges(unit(content))

        def follow(_pipe, i, t, kwargs):
            assert t == times[i]
            latents.step(kwargs["latents"])
            return {"prompt_embeds": torch.cat([negative, told[min(i + 1, len(told) - 1)]])}

        images = self.pipe(image=Image.fromarray(content.numpy()), control_image=control, strength=STRENGTH,
                           num_inference_steps=STEPS, guidance_scale=GUIDANCE, prompt_embeds=told[0],
                           negative_prompt_embeds=negative, controlnet_conditioning_scale=CONTROL_SCALE,
                           generator=torch.Generator("cpu").manual_seed(SEED), output_type="np",
                           callback_on_step_end=follow).images
        return self.noised | {"transfer.latents": latents.all(), "transfer.timesteps": times.float(),
                              "transfer.control": control, "transfer.image": picture(images)}


def transfer(model, width, height):
    """Content, vectors and everything of the transfer that a test compares."""
    content, vectors = photograph(width, height), model.plausible_vectors(STYLE_SEED)
    negative = model.states([NEGATIVE])
    model.use_vectors(vectors)
    ids = model.stage_ids(TRANSFER_PROMPT)
    states = model.text(ids)[0]
    tensors = Transfer(model).paint(content, states, negative)
    moved = Transfer(model).paint(content, states, negative, OFF)
    posterior = model.vae.encode(unit(content) * 2 - 1).latent_dist
    draw = torch.randn(posterior.mean.shape, generator=torch.Generator("cpu").manual_seed(SEED))
    again = (posterior.mean + posterior.std * draw) * model.vae.config.scaling_factor
    assert torch.allclose(again, tensors["transfer.init_latents"], atol=1e-5)
    return tensors | {"content": content, "style.vectors": vectors, "style.ids": ids,
                      "transfer.posterior_noise": draw, "transfer.moments": posterior.parameters}, moved


def sensitivity(tensors, moved):
    """Largest movement of the latents at each step, and the pictures' PSNR in dB, by name."""
    found = {}
    for name in (k for k in moved if k.endswith(".latents")):
        steps = (tensors[name] - moved[name]).abs().amax(dim=(1, 2, 3))
        found[name] = [float(f"{v:.1e}") for v in steps]
    for name in (k for k in moved if k.endswith(".image")):
        error = (tensors[name].float() - moved[name].float()).square().mean().item()
        found[name] = round(10 * math.log10(255 ** 2 / error), 1) if error else "equal"
    return found


def behaved(name, image):
    """A picture that a comparison can say something about."""
    saturated = ((image == 0) | (image == 255)).float().mean().item()
    spread = image.float().std().item()
    print(f"  {name}: {saturated:.1%} of the values saturated, standard deviation {spread:.1f} of 255")
    assert saturated < 0.3 and spread > 5


@torch.no_grad()
def main():
    warnings.simplefilter("ignore")
    args = argparse.ArgumentParser()
    args.add_argument("model"), args.add_argument("out")
    args = args.parse_args()
    model = Model(args.model)
    width, height = (128, 64) if model.factor == 8 else (96, 64)
    tensors, moved, configs = every_solver(model, width, height)
    transferred, transfer_moved = transfer(model, width, height)
    tensors, moved = tensors | transferred, moved | transfer_moved
    recipe = {"model": model.name, "seed": SEED, "steps": STEPS, "guidance": GUIDANCE, "width": width, "height": height,
              "negative_prompt": NEGATIVE, "text2image": {"prompt": PROMPT, "schedulers": configs},
              "transfer": {"prompt": TRANSFER_PROMPT, "sampler": "unipc", "strength": STRENGTH, "stages": STAGES,
                           "control_scale": CONTROL_SCALE, "style_seed": STYLE_SEED},
              "sensitivity": {"off": OFF} | sensitivity(tensors, moved)}
    write(args.out, tensors, recipe, LIMIT)
    for name in ("text2image.image", "transfer.image"):
        behaved(name, tensors[name])
    for name in sorted(k for k in tensors if k.endswith(".latents")):
        first, last = tensors[name][0].std(), tensors[name][-1].std()
        print(f"  {name}: standard deviation {first:.2f} at first, {last:.2f} at last")
    print("  sensitivity", recipe["sensitivity"])


main()
