"""Write the float16 model in diffusers layout. `export.py OUT TARGET`

START=MODEL takes the VAE, tokenizer and scheduler (and the ControlNet, unless OUT has one) from an exported model as they
are.
"""
import json
import os
import shutil
import sys

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


def scheduler():
    made = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                         set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
    made.register_to_config(clip_sample=False)  # DDIM's class would clip latents to [-1, 1]
    return made


def without_paths(target):
    """Take the training machine's paths out of the configs."""
    for root, _, files in os.walk(target):
        for name in files:
            if name.endswith(".json") and name not in ("vocab.json", "tokenizer.json"):
                path = os.path.join(root, name)
                with open(path) as f:
                    config = json.load(f)
                if config.pop("_name_or_path", None) is not None or config.pop("name_or_path", None) is not None:
                    with open(path, "w") as f:
                        json.dump(config, f, indent=2)


def whole(out, target):
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(f"{out}/vae").half(), tokenizer=CLIPTokenizer.from_pretrained(f"{out}/tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(f"{out}/text_encoder").half(),
        unet=UNet2DConditionModel.from_pretrained(f"{out}/unet").half(), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(target, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(f"{out}/tokenizer/{name}", f"{target}/tokenizer/{name}")


def continued(start, out, target):
    """A model whose VAE, tokenizer and scheduler are START's, file by file; UNet and text encoder are new."""
    for part in ("vae", "tokenizer", "scheduler", "unet", "text_encoder", "controlnet"):
        shutil.copytree(f"{start}/{part}", f"{target}/{part}", dirs_exist_ok=True, copy_function=shutil.copyfile)
    shutil.copyfile(f"{start}/model_index.json", f"{target}/model_index.json")
    CLIPTextModel.from_pretrained(f"{out}/text_encoder").half().save_pretrained(f"{target}/text_encoder")
    UNet2DConditionModel.from_pretrained(f"{out}/unet").half().save_pretrained(f"{target}/unet")


def main():
    out, target = sys.argv[1:3]
    start = os.environ.get("START")
    os.makedirs(target, exist_ok=True)
    continued(start, out, target) if start else whole(out, target)
    if os.path.exists(f"{out}/controlnet/config.json"):
        ControlNetModel.from_pretrained(f"{out}/controlnet").half().save_pretrained(f"{target}/controlnet")
    without_paths(target)
    paths = [os.path.join(root, name) for part in ("vae", "tokenizer", "scheduler", "unet", "text_encoder", "controlnet")
             for root, _, files in os.walk(f"{target}/{part}") for name in files]
    for path in paths:
        os.chmod(path, 0o644)
    print("bytes", sum(os.path.getsize(p) for p in paths))


if __name__ == "__main__":
    main()
