"""One measurement of one peer, in a process of its own: `contestants.py WHAT PEER MODEL WORK --size N --batch N --runs N`.

Prints one JSON object with the keys of `pleinair bench --json`. The model is the diffusers folder that
`pleinair-quantize synth sd15` writes. Each answer must be finite and, for one input, always the same.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

TIMESTEP = 500
PROMPT = "a painting of a boat on a lake"
GUIDANCE = 5.0


def peak_rss_bytes():
    """The most this process ever had resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def measure(runs, run, warm_up=True):
    """Seconds of each run; `run` returns an array."""
    import numpy

    first = numpy.asarray(run(), dtype=numpy.float32) if warm_up else None
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        answer = run()
        seconds.append(time.perf_counter() - began)
        answer = numpy.asarray(answer, dtype=numpy.float32)
        if not numpy.isfinite(answer).all():
            raise SystemExit("the answer is not finite")
        first = answer if first is None else first
        # some peers divide sums differently from run to run: equal to rounding, not to the bit
        if not numpy.abs(answer - first).max() <= 0.02 * numpy.abs(first).max():
            raise SystemExit("two runs with one input gave different answers")
    return seconds


class Torch:
    """PyTorch and diffusers; bf16 with channels last, as its documentation recommends for CPUs."""

    def __init__(self, model, work, dtype):
        import torch

        self.torch, self.model, self.work = torch, model, work
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]

    def prepare(self):
        """A copy in its own precision, so that opening it does not set the peak of memory."""
        for kind, folder in [("UNet2DConditionModel", "unet"), ("AutoencoderKL", "vae")]:
            if self.dtype == self.torch.bfloat16 and not (self.work / "bf16" / folder).exists():
                self.network(kind, self.model / folder).save_pretrained(self.work / "bf16" / folder)

    def network(self, kind, folder):
        import diffusers

        network = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=self.dtype)
        return network.eval().to(memory_format=self.torch.channels_last)

    def part(self, kind, folder):
        bf16 = self.work / "bf16" / folder
        return self.network(kind, bf16 if self.dtype == self.torch.bfloat16 else self.model / folder)

    def unet(self, size, batch, runs):
        torch = self.torch
        unet = self.part("UNet2DConditionModel", "unet")
        torch.manual_seed(0)
        latent = torch.randn(batch, 4, size // 8, size // 8, dtype=self.dtype).to(memory_format=torch.channels_last)
        states = torch.randn(batch, 77, 768, dtype=self.dtype)

        def run():
            with torch.inference_mode():
                return unet(latent, TIMESTEP, encoder_hidden_states=states).sample.float().numpy()

        return measure(runs, run)

    def paint(self, size, runs, steps):
        torch = self.torch
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
        from transformers import CLIPTextModel

        schedule = json.loads((self.model / "scheduler/scheduler_config.json").read_text())
        pipeline = StableDiffusionPipeline(
            vae=self.part("AutoencoderKL", "vae"),
            text_encoder=CLIPTextModel.from_pretrained(self.model / "text_encoder", dtype=self.dtype).eval(),
            tokenizer=None,
            unet=self.part("UNet2DConditionModel", "unet"),
            scheduler=DPMSolverMultistepScheduler.from_config(
                {**{k: v for k, v in schedule.items() if not k.startswith("_")}, "algorithm_type": "dpmsolver++"}
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        ids = torch.full((2, 77), 49407)
        ids[:, 0] = 49406
        ids[0, 1:9] = torch.arange(320, 328)

        def run():
            with torch.inference_mode():
                negative, positive = pipeline.text_encoder(ids)[0].split(1)
                return pipeline(
                    prompt_embeds=positive,
                    negative_prompt_embeds=negative,
                    num_inference_steps=steps,
                    guidance_scale=GUIDANCE,
                    width=size,
                    height=size,
                    generator=torch.Generator().manual_seed(0),
                    output_type="np",
                ).images

        return measure(runs, run, warm_up=False)

    def learn(self, size, batch, runs):
        """The step of diffusers' `textual_inversion.py` with `--mixed_precision bf16 --gradient_checkpointing`, without
        its encoding of the picture: the latents are given, as they are to ours."""
        torch = self.torch
        from diffusers import DDPMScheduler
        from transformers import CLIPTextModel

        text = CLIPTextModel.from_pretrained(self.model / "text_encoder", dtype=torch.float32)
        unet = self.part("UNet2DConditionModel", "unet")
        words = text.get_input_embeddings().weight
        text.requires_grad_(False)
        unet.requires_grad_(False)
        words.requires_grad_(True)
        unet.train()  # the script's way of keeping gradient checkpointing on
        text.train()
        text.gradient_checkpointing_enable()
        unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW([words], lr=0.002)
        schedule = DDPMScheduler.from_pretrained(self.model / "scheduler")
        torch.manual_seed(0)
        latents = torch.randn(batch, 4, size // 8, size // 8).to(self.dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.full((batch,), TIMESTEP)
        ids = torch.full((batch, 77), 49407)
        ids[:, 0], ids[:, 1:9] = 49406, torch.arange(320, 328)
        placeholder, original = 327, words.detach().clone()
        autocast = (
            torch.autocast("cpu", torch.bfloat16) if self.dtype == torch.bfloat16 else contextlib.nullcontext()
        )

        def run():
            with autocast:
                noisy = schedule.add_noise(latents, noise, timesteps)
                states = text(ids)[0].to(self.dtype)
                output = unet(noisy, timesteps, states).sample
                loss = torch.nn.functional.mse_loss(output.float(), noise.float(), reduction="mean")
            loss.backward()
            gradient = words.grad[placeholder].clone()
            if not gradient.abs().max() > 0:
                raise SystemExit("no gradient reached the style's vector")
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # the script puts every word but the style's back; all of them: each run has one input
                words.copy_(original)
            return loss.item()

        return measure(runs, run)


def traceable(model, work):
    """The UNet as a module with one answer, and inputs to trace it with."""
    import torch

    unet = Torch(model, work, "f32").part("UNet2DConditionModel", "unet")

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, latent, timestep, states):
            return self.unet(latent, timestep, encoder_hidden_states=states, return_dict=False)[0]

    return Plain(), (torch.randn(2, 4, 32, 32), torch.tensor(TIMESTEP), torch.randn(2, 77, 768))


class OpenVino:
    """OpenVINO: the UNet alone, converted from PyTorch by `prepare`."""

    def __init__(self, model, work, dtype):
        self.model, self.work, self.dtype = model, work, dtype

    def prepare(self):
        """Converts the UNet (f16 on disk), and quantises it with NNCF for `int8`."""
        import torch

        file = self.file()
        if file.exists():
            return
        import openvino

        if self.dtype == "int8":
            import nncf
            import numpy

            rng = numpy.random.default_rng(0)
            normal = lambda *shape: rng.standard_normal(shape, dtype=numpy.float32)
            samples = [(normal(1, 4, 32, 32), numpy.int64(t), normal(1, 77, 768)) for t in (100, 500, 900)]
            network = openvino.Core().read_model(self.work / "openvino/unet.xml")
            network = nncf.quantize(
                network, nncf.Dataset(samples, lambda s: dict(enumerate(s))), model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
            )
        else:
            plain, example = traceable(self.model, self.work)
            with torch.no_grad():
                network = openvino.convert_model(plain, example_input=example)
        openvino.save_model(network, file)

    def file(self):
        return self.work / "openvino" / ("unet-int8.xml" if self.dtype == "int8" else "unet.xml")

    def unet(self, size, batch, runs):
        import numpy
        import openvino

        core = openvino.Core()
        network = core.read_model(self.file())
        shapes = [[batch, 4, size // 8, size // 8], [], [batch, 77, 768]]
        network.reshape(dict(enumerate(map(openvino.PartialShape, shapes))))
        precision = "f32" if self.dtype == "f32" else "bf16"
        compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"})
        rng = numpy.random.default_rng(0)
        normal = lambda shape: rng.standard_normal(shape, dtype=numpy.float32)
        inputs = [normal(shapes[0]), numpy.int64(TIMESTEP), normal(shapes[2])]
        return measure(runs, lambda: compiled(inputs)[0].copy())


class Tract:
    """tract runs in a program of its own (`rust`); here its graph is made."""

    def __init__(self, model, work, dtype):
        self.model, self.folder, self.work = model, work / "tract", work

    def prepare(self):
        """The UNet as ONNX in f32, each weight in a file beside it; sizes are left open."""
        if self.folder.exists():
            return
        import torch

        plain, example = traceable(self.model, self.work)
        half_made = self.folder.with_suffix(".partial")
        half_made.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            torch.onnx.export(
                plain, example, str(half_made / "unet.onnx"), dynamo=False, opset_version=17,
                input_names=["latent", "timestep", "states"],
                dynamic_axes={"latent": {0: "batch", 2: "height", 3: "width"}, "states": {0: "batch"}},
            )
        half_made.rename(self.folder)


class SdCpp:
    """stable-diffusion.cpp by its Python binding. It has no call for one evaluation: a step without guidance is one."""

    def __init__(self, model, work, dtype):
        from stable_diffusion_cpp import StableDiffusion

        # its own guess at the number of threads is one on some virtual machines with two cores
        self.engine = StableDiffusion(
            model_path=str(model), wtype=dtype, n_threads=os.cpu_count(), vae_decode_only=True, verbose=False
        )

    def picture(self, size, steps, guidance):
        import numpy

        ends = []
        began = time.perf_counter()
        images = self.engine.generate_image(
            prompt=PROMPT, width=size, height=size, sample_steps=steps, cfg_scale=guidance, seed=1,
            sample_method="dpm++2m", progress_callback=lambda step, count, seconds: ends.append(seconds),
        )
        return time.perf_counter() - began, numpy.asarray(images[0], dtype=numpy.float32), ends

    def unet(self, size, batch, runs):
        if batch != 1:
            raise SystemExit("it evaluates one latent at a time")
        _, _, seconds = self.picture(size, runs + 1, 1.0)
        return seconds[-runs:]  # the first step is the warm-up

    def paint(self, size, runs, steps):
        seconds, first = [], None
        for _ in range(runs):
            taken, image, _ = self.picture(size, steps, GUIDANCE)
            if first is not None and (image != first).any():
                raise SystemExit("two runs with one input gave different answers")
            first = image
            seconds.append(taken)
        return seconds


PEERS = {"torch": Torch, "openvino": OpenVino, "tract": Tract, "sdcpp": SdCpp}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["unet", "paint", "learn", "prepare"])
    parser.add_argument("peer", help="such as torch-bf16")
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="where `prepare` puts what a peer converts once")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    name, dtype = arguments.peer.split("-")
    began = time.perf_counter()
    peer = PEERS[name](arguments.model, arguments.work, dtype)
    size, batch, runs, steps = arguments.size, arguments.batch, arguments.runs, arguments.steps
    if arguments.what == "prepare":
        return peer.prepare() if hasattr(peer, "prepare") else None
    seconds = {
        "unet": lambda: peer.unet(size, batch, runs),
        "paint": lambda: peer.paint(size, runs, steps),
        "learn": lambda: peer.learn(size, batch, runs),
    }[arguments.what]()
    report = {
        "what": arguments.what, "peer": name, "dtype": dtype, "size": f"{size}x{size}", "batch": batch, "runs": runs,
        "seconds": seconds, "median_seconds": statistics.median(seconds), "peak_rss_bytes": peak_rss_bytes(),
        "evaluations": 2 * steps if arguments.what == "paint" else batch,
        "process_seconds": time.perf_counter() - began,
    }
    print(json.dumps(report), file=sys.stdout)


if __name__ == "__main__":
    main()
