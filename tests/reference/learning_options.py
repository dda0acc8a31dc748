"""Options of a lesson in PyTorch, in float32: `learning_options.py MODEL_DIR OUT`.

Two vectors a stage, [6, 2, D]: a stage's token is two tokens in a row, as diffusers' `textual_inversion.py --num_vectors 2`
has it. The loss is weighted by min-SNR with gamma 5 as diffusers' training scripts do; `weights.*` are those of both
forms at every timestep of `all_t`. The samples are those of `learning_step.py`, whose file is read.
"""
import argparse
import os

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file

from model import FIXTURES, STAGES, Model, rounding, stage, write

TEMPLATE = "A painting of a mountain, in the style of {}"
GAMMA, SEVERAL = 5.0, 2
LIMIT = 200_000


def weights(scheduler, t, prediction):
    """`train_text_to_image.py --snr_gamma`."""
    snr = compute_snr(scheduler, t)
    clipped = torch.stack([snr, GAMMA * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    return clipped / snr if prediction == "epsilon" else clipped / (snr + 1)


def stage_ids(model):
    """I64 [T, 77]: the token of stage k is two tokens, `words + 2 k` and the one behind it."""
    marks = [f"<reference-{k}-{row}>" for k in range(STAGES) for row in range(SEVERAL)]
    if marks[0] not in model.tokenizer.get_vocab():
        assert model.tokenizer.add_tokens(marks) == len(marks)
    return model.ids([TEMPLATE.format("".join(marks[k * SEVERAL:(k + 1) * SEVERAL])) for k in range(STAGES)])


def gradients(model, data, before, weighted):
    scheduler = DDPMScheduler.from_config(model.pipe.scheduler.config)
    vectors = torch.nn.Parameter(before.clone().flatten(0, 1))
    model.use_vectors(vectors)
    ids = stage_ids(model)
    t = data["t"]
    states = model.text(ids[[stage(k) for k in t]])[0]
    noised = scheduler.add_noise(data["z"], data["noise"], t)
    predicted = model.unet(noised, t, states, return_dict=False)[0]
    losses = F.mse_loss(predicted, data["noise"], reduction="none").mean(dim=(1, 2, 3))
    scale = weights(scheduler, t, "epsilon").to(losses.dtype) if weighted else 1
    (losses * scale).mean().backward()
    return losses.detach(), vectors.grad.view_as(before)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model"), args.add_argument("out")
    args = args.parse_args()
    model = Model(args.model)
    data = load_file(os.path.join(FIXTURES, f"{model.name}-learning.safetensors"))
    data = {name: data[name] for name in ("z", "noise", "t")}
    before = torch.stack([model.plausible_vectors(seed=41), model.plausible_vectors(seed=42)], dim=1)

    def run(data, before):
        losses, plain = gradients(model, data, before, weighted=False)
        _, weighted = gradients(model, data, before, weighted=True)
        return {"losses": losses, "grads": plain, "grads.min_snr": weighted}

    tensors = run(data, before)
    scheduler = DDPMScheduler.from_config(model.pipe.scheduler.config)
    every = torch.arange(0, 1000, 37)
    fixed = {"vectors": before, "all_t": every} | {
        f"weights.{form}": weights(scheduler, every, form) for form in ("epsilon", "v_prediction")}
    model.double()
    twins = run({k: v.double() if v.is_floating_point() else v for k, v in data.items()}, before.double())
    recipe = {"model": model.name, "template": TEMPLATE, "gamma": GAMMA, "rounding": rounding(tensors, twins)}
    print("  rounding", recipe["rounding"])
    write(args.out, tensors | fixed, recipe, LIMIT)


main()
