"""Learning steps of DreamStyler in PyTorch, in float32: `learning_step.py MODEL_DIR OUT`.

Four latents at timesteps of the stages 0, 2, 2 and 5; only the T = 6 stage vectors learn; mean squared error of the
predicted noise; torch.optim.AdamW on one [6, D] parameter. The same data three times over.
"""
import argparse

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from model import STAGES, Model, photograph, stage, unit, write

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


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model"), args.add_argument("out")
    args = args.parse_args()
    model, generator = Model(args.model), torch.Generator().manual_seed(31)
    side = 8 if model.factor == 8 else 16
    z = quarters(model, side)
    noise, t = torch.randn(z.shape, generator=generator), torch.tensor(TIMES)
    before = model.plausible_vectors(seed=32)
    vectors = torch.nn.Parameter(before.clone())
    model.use_vectors(vectors)
    ids = model.stage_ids(TEMPLATE)
    noising = DDPMScheduler.from_config(model.pipe.scheduler.config)
    optimizer = torch.optim.AdamW([vectors], **ADAMW)
    losses, grads, after = [], [], []
    for _ in range(3):
        optimizer.zero_grad()
        loss = error(model, noising, ids, z, noise, t)
        loss.backward()
        losses.append(loss.detach()), grads.append(vectors.grad.clone())
        optimizer.step()
        after.append(vectors.detach().clone())
    sizes = grads[0].norm(dim=1)
    print("  loss", [round(float(v), 6) for v in losses], "gradient norms", [f"{v:.2e}" for v in sizes.tolist()])
    assert [bool(v) for v in sizes] == [k in {stage(v) for v in TIMES} for k in range(STAGES)]
    tensors = {"z": z, "noise": noise, "t": t, "ids": ids, "vectors": before, "loss": losses[0], "grads": grads[0],
               "vectors.after": after[0], "vectors.after3": after[2], "loss3": torch.stack(losses),
               "noised": noising.add_noise(z, noise, t)}
    recipe = {"model": model.name, "template": TEMPLATE, "adamw": ADAMW, "stages": [stage(v) for v in TIMES]}
    write(args.out, tensors, recipe, LIMIT)


main()
