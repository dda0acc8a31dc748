"""Learning steps of DreamStyler in PyTorch, in float32: `learning_step.py MODEL_DIR OUT`.

Four latents at timesteps of the stages 0, 2, 2 and 5; only the T = 6 stage vectors learn; mean squared error of the
predicted noise; torch.optim.AdamW on one [6, D] parameter. The same data three times over.
"""
import argparse

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from model import STAGES, Model, photograph, rounding, stage, unit, write

TEMPLATE = "A painting of a mountain, in the style of {}"
TIMES = [57, 345, 498, 845]
ADAMW = dict(lr=0.002, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
LIMIT = 1_500_000


def error(model, noising, ids, z, noise, t):
    """Mean squared error of the noise that the UNet predicts."""
    states = model.text(ids[[stage(k) for k in t]])[0]
    noised = noising.add_noise(z, noise, t)
    return F.mse_loss(model.unet(noised, t, states, return_dict=False)[0], noise)


@torch.no_grad()
def quarters(model, side):
    """Scaled latents [4, 4, side, side] of the photograph's quarters."""
    image = unit(photograph(2 * side * model.factor, 2 * side * model.factor)) * 2 - 1
    rows = torch.cat(image.chunk(2, dim=2))
    return model.vae.encode(torch.cat(rows.chunk(2, dim=3))).latent_dist.mode() * model.vae.config.scaling_factor


def learn(model, data, before, steps):
    """`steps` updates on the same data: the loss and the gradients before each, the vectors after each."""
    noising = DDPMScheduler.from_config(model.pipe.scheduler.config)
    vectors = torch.nn.Parameter(before.clone())
    model.use_vectors(vectors)
    ids = model.stage_ids(TEMPLATE)
    optimizer = torch.optim.AdamW([vectors], **ADAMW)
    losses, grads, after = [], [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = error(model, noising, ids, data["z"], data["noise"], data["t"])
        loss.backward()
        losses.append(loss.detach()), grads.append(vectors.grad.clone())
        optimizer.step()
        after.append(vectors.detach().clone())
    return {"ids": ids, "vectors": before, "loss": losses[0], "grads": grads[0], "vectors.after": after[0],
            "vectors.after3": after[-1], "loss3": torch.stack(losses)}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model"), args.add_argument("out")
    args = args.parse_args()
    model, t = Model(args.model), torch.tensor(TIMES)
    z = quarters(model, 8 if model.factor == 8 else 16)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(31))
    before = model.plausible_vectors(seed=32)
    tensors = learn(model, {"z": z, "noise": noise, "t": t}, before, steps=3)
    twins = learn(model.double(), {"z": z.double(), "noise": noise.double(), "t": t}, before.double(), steps=3)
    sizes = tensors["grads"].norm(dim=1)
    print("  loss", [round(float(v), 6) for v in tensors["loss3"]], "gradients", [f"{v:.2e}" for v in sizes.tolist()])
    assert [bool(v) for v in sizes] == [k in {stage(v) for v in TIMES} for k in range(STAGES)]
    recipe = {"model": model.name, "template": TEMPLATE, "adamw": ADAMW, "stages": [stage(v) for v in TIMES],
              "rounding": rounding(tensors, twins)}
    print("  rounding", recipe["rounding"])
    write(args.out, tensors | {"z": z, "noise": noise, "t": t}, recipe, LIMIT)


main()
