"""Every network of a model once, in float32: `networks.py MODEL_DIR OUT [--intermediates FILE]`.

Where the UNet's intermediate activations would take OUT past its limit they go to the other file alone.
The metadata's `rounding` gives each tensor's largest difference from the same run in float64.
Beside OUT, `<model>-tokens.json`: prompts and their 77 ids, for the tokenizer alone.
"""
import argparse
import json

import torch

from model import Model, photograph, rounding, unit, write

PROMPTS = ["A painting of a mountain, in the style of watercolor",
           "a photo of two boats on the sea, it's dawn in 1889!"]
TOKENIZED = PROMPTS + [
    "", " ", "a", "A  Painting\n of\tPears ", "in the style of {}", "isn't it? they're 12,345 of them...",
    "café, naïve façade", "夕焼け of 富士山", "a 🌊 wave", "semi-transparent; (very) [dark] \"vivid\" tones -- 50%",
    "e\u0301clair", "supercalifragilistic", "a painting of " + "pears and apples on a cloth, " * 20,
    "a <|endoftext|> b", "<|startoftext|>",
]
LIMIT = 1_500_000
CONTROL_SCALE = 0.8
SEED = 11


def watch(unet):
    """Record the output of each block of the UNet's next run. Returns (activations, hooks)."""
    seen, hooks = {}, []

    def record(name):
        def hook(_module, _args, out):
            seen[name] = (out[0] if isinstance(out, tuple) else out).clone()
        return hook

    named = {"unet.time_embedding": unet.time_embedding, "unet.conv_in": unet.conv_in, "unet.mid": unet.mid_block}
    named |= {f"unet.down.{i}": b for i, b in enumerate(unet.down_blocks)}
    named |= {f"unet.up.{i}": b for i, b in enumerate(unet.up_blocks)}
    for name, module in named.items():
        hooks.append(module.register_forward_hook(record(name)))
    return seen, hooks


def denoisers(model, states, h, w):
    """The UNet alone, the ControlNet, and both: (tensors, intermediates)."""
    generator = torch.Generator().manual_seed(SEED)
    sample = torch.randn(2, 4, h, w, generator=generator).to(states.dtype)
    timesteps = torch.tensor([981.0, 20.0])
    photo = unit(photograph(w * model.factor, h * model.factor))
    control = torch.cat([photo, torch.rand(photo.shape, generator=generator)]).to(states.dtype)
    intermediates, hooks = watch(model.unet)
    alone = model.unet(sample, timesteps, states, return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    down, mid = model.controlnet(sample, timesteps, states, control, conditioning_scale=CONTROL_SCALE,
                                 return_dict=False)
    both = model.unet(sample, timesteps, states, down_block_additional_residuals=down,
                      mid_block_additional_residual=mid, return_dict=False)[0]
    tensors = {"unet.sample": sample, "unet.timesteps": timesteps, "unet.states": states, "unet.noise_pred": alone,
               "control.image": control, "control.scale": torch.tensor(CONTROL_SCALE), "control.mid": mid,
               "unet.noise_pred_controlled": both}
    return tensors | {f"control.down.{i}": d for i, d in enumerate(down)}, intermediates


def autoencoder(model, h, w):
    """moments are unscaled; latent is the decoder's input, the moments' mean, unscaled too."""
    image = (unit(photograph(w * model.factor, h * model.factor)) * 2 - 1).to(model.vae.dtype)
    posterior = model.vae.encode(image).latent_dist
    latent = posterior.mode()
    return {"vae.image": image, "vae.moments": posterior.parameters, "vae.latent": latent,
            "vae.decoded": model.vae.decode(latent).sample}


def everything(model):
    """(tensors, intermediates) in the model's own precision."""
    h, w = (8, 16) if len(model.unet.config.block_out_channels) == 4 else (12, 20)
    states = model.states(PROMPTS)
    tensors, intermediates = denoisers(model, states, h, w)
    return {"text.ids": model.ids(PROMPTS), "text.states": states} | tensors | autoencoder(model, h, w), intermediates


def write_tokens(model, path):
    """Prompts and their ids, one prompt a line."""
    tokens = [{"text": text, "ids": ids} for text, ids in zip(TOKENIZED, model.ids(TOKENIZED).tolist())]
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(t) for t in tokens) + "\n]\n")


@torch.no_grad()
def main():
    args = argparse.ArgumentParser()
    args.add_argument("model"), args.add_argument("out"), args.add_argument("--intermediates")
    args = args.parse_args()
    model = Model(args.model)
    tensors, intermediates = everything(model)
    twins, intermediate_twins = everything(model.double())
    fits = sum(v.numel() * v.element_size() for v in (tensors | intermediates).values()) <= LIMIT
    recipe = {"model": model.name, "prompts": PROMPTS, "seed": SEED, "intermediates": fits,
              "rounding": rounding(tensors | intermediates, twins | intermediate_twins)}
    write(args.out, tensors | intermediates if fits else tensors, recipe, LIMIT)
    if args.intermediates:
        write(args.intermediates, intermediates, recipe)
    write_tokens(model, args.out.replace("-networks.safetensors", "-tokens.json"))
    alone, both = tensors["unet.noise_pred"], tensors["unet.noise_pred_controlled"]
    change = (both - alone).norm() / alone.norm()
    print(f"  intermediates inside: {fits}; the ControlNet changes the prediction by {change:.1%}")
    print("  rounding", {k: v for k, v in recipe["rounding"].items() if v})


main()
