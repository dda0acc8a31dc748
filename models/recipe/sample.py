"""Sample grids with the stock diffusers pipelines. `sample.py MODEL SAMPLES TARGET [vae,text2img,control,256]`

SAMPLES holds content/ and style/ (held_out.py makes them). TARGET/grid_text2img.png: prompts x styles at 128 px;
grid_256.png: the same at 256 px, fewer; grid_control.png: held-out photographs through ControlNet + img2img at three
strengths; grid_vae.png: held-out pictures through the VAE.
"""
import glob
import os
import sys

import numpy as np
import torch
from diffusers import (ControlNetModel, DPMSolverMultistepScheduler, StableDiffusionControlNetImg2ImgPipeline,
                       StableDiffusionPipeline)
from PIL import Image, ImageDraw

from soft_edges import soft_edges

STYLES = ["oil", "watercolor", "pointillism", "mosaic", "ink wash", "engraving", "poster", "impressionist", "pastel"]
THINGS = ["mountain", "sea", "city", "forest", "flowers in a vase", "portrait of a woman"]


def grid(rows, cols, cells, path, left=90, top=16):
    w, h = cells[0].size
    sheet = Image.new("RGB", (left + w * len(cols), top + h * len(rows)), "white")
    d = ImageDraw.Draw(sheet)
    for j, c in enumerate(cols):
        d.text((left + j * w + 3, 2), c, fill="black")
    for i, r in enumerate(rows):
        d.text((2, top + i * h + h // 2 - 6), r[:15], fill="black")
        for j in range(len(cols)):
            sheet.paste(cells[i * len(cols) + j], (left + j * w, top + i * h))
    sheet.quantize(256).save(path, optimize=True)
    print(path, sheet.size, flush=True)


def square(path, size):
    im = Image.open(path).convert("RGB")
    s = min(im.size)
    x, y = (im.width - s) // 2, (im.height - s) // 2
    return im.crop((x, y, x + s, y + s)).resize((size, size), Image.LANCZOS)


def edge_image(im):
    a = torch.from_numpy(np.array(im)).permute(2, 0, 1)[None].float() / 255
    return Image.fromarray((soft_edges(a)[0].permute(1, 2, 0) * 255).round().byte().numpy())


def text_grid(pipe, things, styles, side, path):
    cells = []
    for thing in things:
        prompts = [f"a photo of {thing}"] + [f"a painting of {thing}, in the style of {s}" for s in styles]
        seeds = [torch.Generator("cpu").manual_seed(5) for _ in prompts]
        cells += pipe(prompts, height=side, width=side, num_inference_steps=20, guidance_scale=4.0, generator=seeds).images
    grid(things, ["photo"] + styles, cells, path)


@torch.no_grad()
def vae_grid(vae, pictures, path):
    cells = [square(p, 192) for p in pictures]
    for picture in list(cells):
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float()[0].clamp(-1, 1)
        cells.append(Image.fromarray(((y.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()))
    grid(["original", "VAE"], [""] * len(pictures), cells, path)


def control_grid(pipe, net, photos, styles, side, path):
    control = StableDiffusionControlNetImg2ImgPipeline(
        vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, unet=pipe.unet, controlnet=net,
        scheduler=pipe.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    control.set_progress_bar_config(disable=True)
    strengths, cells = (0.5, 0.7, 0.9), []
    for p in photos:
        picture = square(p, side)
        cells += [picture, edge_image(picture)]
        for style in styles:
            for strength in strengths:
                cells += control(f"a painting in the style of {style}", image=picture, control_image=edge_image(picture),
                                 strength=strength, num_inference_steps=20, guidance_scale=4.0,
                                 controlnet_conditioning_scale=1.0, generator=torch.Generator("cpu").manual_seed(5)).images
    columns = ["photo", "edges"] + [f"{s} {k}" for s in styles for k in strengths]
    grid([os.path.basename(p)[:-4] for p in photos], columns, cells, path)


def main():
    model, samples, target = sys.argv[1:4]
    which = sys.argv[4].split(",") if len(sys.argv) > 4 else ["vae", "text2img", "control", "256"]
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    photos, arts = sorted(glob.glob(f"{samples}/content/*.jpg")), sorted(glob.glob(f"{samples}/style/*.*g"))
    os.makedirs(target, exist_ok=True)
    with torch.autocast("cpu", torch.bfloat16):
        if "vae" in which:
            vae_grid(pipe.vae, photos[:4] + arts[:6], f"{target}/grid_vae.png")
        if "text2img" in which:
            text_grid(pipe, THINGS, STYLES, 128, f"{target}/grid_text2img.png")
        if "256" in which:
            text_grid(pipe, ["mountain", "city"], ["oil", "watercolor", "mosaic", "ink wash"], 256, f"{target}/grid_256.png")
        if "control" in which:
            net = ControlNetModel.from_pretrained(f"{model}/controlnet", torch_dtype=torch.float32)
            control_grid(pipe, net, photos[:5], ["oil", "watercolor", "ink wash"], int(os.environ.get("SIDE", 192)),
                         f"{target}/grid_control.png")


if __name__ == "__main__":
    main()
