"""Two ControlNets at once, in float32: `multi_control.py tests/fixtures/tiny-sd15 OUT`.

The second ControlNet is the model's own with the values of every tensor of two or more dimensions in reverse. What both
say together (diffusers' `MultiControlNetModel`), the UNet with it, and four DDIM steps of a pipeline from control pictures
of another size than the painting's. `rounding` and `sensitivity` are as in networks.py and paint.py.
"""
import argparse
import copy

import torch
from diffusers import DDIMScheduler, MultiControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from model import Model, photograph, rounding, unit, write

SCALES, SEED, STEPS, GUIDANCE, WIDTH, HEIGHT = (0.6, 0.4), 7, 4, 3.0, 128, 64
PROMPT, NEGATIVE, OFF = "a painting of a mountain, in the style of watercolor", "blurry image", 1e-6


def reversed_net(net):
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            if p.ndim > 1:
                p.copy_(p.flatten().flip(0).view_as(p))
    return other


def pictures():
    """u8 [h, w, 3], one smaller than the painting and one of another shape."""
    return photograph(80, 48), photograph(200, 150).flip(1)


@torch.no_grad()
def together(model, net, dtype):
    """What both ControlNets and the UNet say to two latents."""
    generator = torch.Generator().manual_seed(11)
    sample = torch.randn(2, 4, HEIGHT // 8, WIDTH // 8, generator=generator).to(dtype)
    images = [torch.rand(2, 3, HEIGHT, WIDTH, generator=generator).to(dtype) for _ in SCALES]
    timesteps, states = torch.tensor([981.0, 20.0]), model.states([PROMPT, NEGATIVE])
    down, mid = net(sample, timesteps, states, images, list(SCALES), return_dict=False)
    both = model.unet(sample, timesteps, states, down_block_additional_residuals=down,
                      mid_block_additional_residual=mid, return_dict=False)[0]
    alone = model.unet(sample, timesteps, states, return_dict=False)[0]
    print(f"  the ControlNets move the prediction by {(both - alone).norm() / alone.norm():.1%}")
    return {"sample": sample, "timesteps": timesteps, "states": states, "image.0": images[0], "image.1": images[1],
            "mid": mid, "noise_pred": both} | {f"down.{i}": d for i, d in enumerate(down)}


@torch.no_grad()
def paint(model, net, off=0.0):
    """The latents of every step, those that enter the loop first."""
    parts = model.pipe.components
    pipe = StableDiffusionControlNetPipeline(
        **(parts | {"scheduler": DDIMScheduler.from_config(parts["scheduler"].config)}), controlnet=net,
        requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    kept = [torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator("cpu").manual_seed(SEED))]
    if off:
        kept[0] = kept[0] + off * torch.randn(kept[0].shape, generator=torch.Generator().manual_seed(1))

    def follow(_pipe, _i, _t, kwargs):
        kept.append(kwargs["latents"].clone())
        return {}

    pipe(PROMPT, negative_prompt=NEGATIVE, image=[Image.fromarray(p.contiguous().numpy()) for p in pictures()],
         controlnet_conditioning_scale=list(SCALES), width=WIDTH, height=HEIGHT, num_inference_steps=STEPS,
         guidance_scale=GUIDANCE, latents=kept[0], output_type="latent", callback_on_step_end=follow)
    return torch.cat(kept)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model"), args.add_argument("out")
    args = args.parse_args()
    model = Model(args.model)
    net = MultiControlNetModel([model.controlnet, reversed_net(model.controlnet)])
    tensors = together(model, net, torch.float32)
    latents, moved = paint(model, net), paint(model, net, OFF)
    sensitivity = [float(f"{(a - b).abs().max():.2e}") for a, b in zip(latents, moved)]
    exact = together(model.double(), net.double(), torch.float64)
    off = rounding(tensors, exact)
    tensors |= {"latents": latents} | {f"picture.{i}": p for i, p in enumerate(pictures())}
    recipe = {"scales": SCALES, "seed": SEED, "steps": STEPS, "guidance": GUIDANCE, "prompt": PROMPT,
              "negative_prompt": NEGATIVE, "width": WIDTH, "height": HEIGHT, "rounding": off,
              "sensitivity": {"latents": sensitivity}}
    write(args.out, tensors, recipe, 620_000)


main()
