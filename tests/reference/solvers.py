"""Reference runs of diffusers' schedulers and torch's random numbers, for tests/solvers.rs.

Command, from the repository root:
    python tests/reference/solvers.py tests/fixtures/solvers.safetensors
Versions: torch 2.15.0, diffusers 0.42.1, numpy 2.4.6, safetensors 0.8.0 (also in the metadata of the file).

Latents are stored in the variance-preserving scaling, every 13th value of [1, 4, 8, 8] after every step; the toy
network mixes neighbours, so that the stored values depend on all of them.
"""

import sys

import diffusers
import numpy as np
import safetensors
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import save_file

SOLVERS = {
    "dpm++2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "lcm": LCMScheduler,
}
# scheduler_config.json of Stable Diffusion 1.5
BASE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SHAPE = (1, 4, 8, 8)


def scheduler(solver, **entries):
    """The scheduler as users make it: from the configuration of the model's own, PNDM."""
    config = {**BASE, **entries}
    if config.get("timestep_spacing") == "linspace" and solver is DDIMInverseScheduler:
        raise ValueError("DDIMInverseScheduler knows no linspace")
    made = solver.from_config(PNDMScheduler.from_config(config).config, clip_sample=False)
    assert made.config.steps_offset == 1 and made.config.beta_end == 0.012
    assert not getattr(made.config, "clip_sample", False)
    return made


def network(x, t):
    """Smooth, not linear, dependent on t: the same formula stands in tests/solvers.rs."""
    return torch.tanh(0.8 * x + 0.1 * torch.roll(x, 1, dims=-1) + 0.3 * np.sin(float(t) / 200.0))


def trace(s, start, timesteps, generator=None):
    """Denoises as the pipelines do; the latents after every step, thinned, in the variance-preserving scaling."""
    x, latents = start, []
    euler = isinstance(s, EulerDiscreteScheduler)
    extra = {"generator": generator} if isinstance(s, LCMScheduler) else {}
    for t in timesteps:
        x = s.step(network(s.scale_model_input(x, t), t), t, x, **extra).prev_sample
        scale = (1 + s.sigmas[s.step_index] ** 2) ** 0.5 if euler else 1.0
        latents.append((x / scale).flatten()[::13])
    return torch.stack(latents)


def run(solver, steps, strength, x0, noise, **entries):
    s = scheduler(solver, **entries)
    s.set_timesteps(steps)
    if strength == 1.0:  # text to image
        return trace(s, noise * s.init_noise_sigma, s.timesteps, torch.Generator().manual_seed(11))
    # StableDiffusionControlNetImg2ImgPipeline.get_timesteps and prepare_latents
    kept = min(int(steps * strength), steps)
    timesteps = s.timesteps[steps - kept :]
    if hasattr(s, "set_begin_index"):
        s.set_begin_index(steps - kept)
    return trace(s, s.add_noise(x0, noise, timesteps[:1]), timesteps, torch.Generator().manual_seed(11))


def solvers(out, x0, noise):
    for name, solver in SOLVERS.items():
        for spacing in ["leading", "linspace", "trailing", "absent"]:
            entries = {} if spacing == "absent" else {"timestep_spacing": spacing}
            for steps in [1, 2, 3, 7, 12, 25, 30, 50] + ([250] if name != "lcm" else []):
                s = scheduler(solver, **entries)
                s.set_timesteps(steps)
                assert len(s.timesteps) == steps
                out[f"timesteps/{name}/{spacing}/{steps}"] = s.timesteps.float()
            if spacing == "absent" or (name == "lcm" and spacing != "leading"):
                continue  # those traces would repeat others
            for prediction in ["epsilon", "v_prediction"]:
                for steps in [12, 25]:
                    for strength in [1.0, 0.6]:
                        out[f"trace/{name}/{spacing}/{prediction}/{steps}/{strength}"] = run(
                            solver, steps, strength, x0, noise, prediction_type=prediction, **entries
                        )


def inversion(out, x0):
    for spacing in ["leading", "trailing"]:
        for prediction in ["epsilon", "v_prediction"]:
            for steps in [12, 25]:
                s = scheduler(DDIMInverseScheduler, timestep_spacing=spacing, prediction_type=prediction)
                s.set_timesteps(steps)
                out[f"inverse/{spacing}/{prediction}/{steps}"] = trace(s, x0, s.timesteps)
                out[f"inverse_timesteps/{spacing}/{steps}"] = s.timesteps.float()


def schedule(out, x0, noise):
    for curve in ["scaled_linear", "linear", "squaredcos_cap_v2"]:
        out[f"alphas_cumprod/{curve}"] = DDIMScheduler.from_config({**BASE, "beta_schedule": curve}).alphas_cumprod
    s = scheduler(DDIMScheduler)
    t = torch.tensor([3, 702])
    both, noises = torch.cat([x0, -x0]), torch.cat([noise, noise.flip(-1)])
    out["add_noise"] = s.add_noise(both, noises, t).flatten()[::13]
    out["velocity"] = s.get_velocity(both, noises, t).flatten()[::13]


def random_numbers(out):
    for seed in [0, 42, 2**32 + 7, 2**64 - 3]:
        g = torch.Generator("cpu").manual_seed(seed)
        drawn = [torch.randn(n, generator=g) for n in [1, 17, 3, 16, 15, 140, 2]]
        drawn += [torch.rand(5, generator=g), torch.randn(1, generator=g), torch.randn(1, 4, 16, 16, generator=g)]
        drawn += [torch.randn(2, 4, 5, 7, generator=g), torch.rand(700, generator=g)]
        out[f"random/{seed}/floats"] = torch.cat([d.flatten() for d in drawn])
        ints = [torch.randint(0, 1000, (9,), generator=g), torch.randint(-3, 2**40, (4,), generator=g)]
        ints += [torch.randint(0, 2, (11,), generator=g)]
        out[f"random/{seed}/ints"] = torch.cat(ints)


def main():
    diffusers.logging.set_verbosity_error()
    g = torch.Generator("cpu").manual_seed(2023)
    x0, noise = torch.randn(SHAPE, generator=g) * 0.9, torch.randn(SHAPE, generator=g)
    out = {"x0": x0, "noise": noise}
    g = torch.Generator().manual_seed(11)
    out["lcm_noise"] = torch.cat([torch.randn(SHAPE, generator=g) for _ in range(24)])
    schedule(out, x0, noise)
    solvers(out, x0, noise)
    inversion(out, x0)
    random_numbers(out)
    versions = {"versions": ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, diffusers, np, safetensors))}
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, sys.argv[1], metadata=versions)


if __name__ == "__main__":
    main()
