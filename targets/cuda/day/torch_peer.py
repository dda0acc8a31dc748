"""PyTorch and diffusers on the same card: `torch_peer.py VARIANT-NUMBERS MODEL`, where MODEL is the diffusers folder with
random weights that `pleinair-quantize synth` writes.

Variants: `eager`; `channels_last`; `compile` (channels last, torch.compile with max-autotune-no-cudagraphs); `graphs`
(channels last, torch.compile with reduce-overhead, which records CUDA graphs). Numbers: f16 or bf16. Attention is
PyTorch's scaled_dot_product_attention in all of them.

Every line of standard input is a case as JSON, every line of standard output its report or `{"error": ...}`: the networks
stay compiled between cases.
"""

import json
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from contestants import GUIDANCE, TIMESTEP, measure, peak_rss_bytes  # noqa: E402

COMPILED = {"compile": "max-autotune-no-cudagraphs", "graphs": "reduce-overhead"}
TOKENS = 77


class Peer:
    def __init__(self, name, model):
        import torch

        self.variant, numbers = name.split("-")
        self.torch, self.model = torch, Path(model)
        self.device = "cuda" if torch.cuda.is_available() else None
        if self.device is None:
            raise SystemExit("this PyTorch finds no CUDA card")
        self.dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[numbers]
        self.compiled = None
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    def part(self, kind, folder, dtype=None):
        import diffusers
        import transformers

        library = diffusers if hasattr(diffusers, kind) else transformers
        network = getattr(library, kind).from_pretrained(self.model / folder)
        network = network.eval().to(self.device, dtype or self.dtype)
        return network if self.variant == "eager" else network.to(memory_format=self.torch.channels_last)

    def plain_unet(self):
        from diffusers.models.attention_processor import AttnProcessor2_0

        unet = self.part("UNet2DConditionModel", "unet")
        unet.set_attn_processor(AttnProcessor2_0())
        return unet

    def unet_of_variant(self):
        """Made and compiled once; a compilation happens when a shape is first seen."""
        if self.compiled is None:
            self.compiled = self.plain_unet()
            if self.variant in COMPILED:
                self.compiled.compile(mode=COMPILED[self.variant], fullgraph=True, dynamic=False)
        return self.compiled

    def drawn(self, *shapes):
        """Normal numbers as ours draws them for the same case."""
        self.torch.manual_seed(0)
        return [self.torch.randn(*shape).to(self.device, self.dtype) for shape in shapes]

    def unet(self, case):
        torch = self.torch
        unet, side = self.unet_of_variant(), case["size"] // 8
        width = unet.config.cross_attention_dim
        states, latent = self.drawn((case["batch"], TOKENS, width), (case["batch"], 4, side, side))
        if self.variant != "eager":
            latent = latent.to(memory_format=torch.channels_last)
        timestep = torch.tensor(TIMESTEP, device=self.device)

        def run():
            with torch.inference_mode():
                return unet(latent, timestep, encoder_hidden_states=states, return_dict=False)[0].float().cpu().numpy()

        return run

    def paint(self, case):
        torch = self.torch
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        schedule = json.loads((self.model / "scheduler/scheduler_config.json").read_text())
        schedule = {key: value for key, value in schedule.items() if not key.startswith("_")}
        pipeline = StableDiffusionPipeline(
            vae=self.part("AutoencoderKL", "vae"),
            text_encoder=self.part("CLIPTextModel", "text_encoder"),
            tokenizer=None,
            unet=self.unet_of_variant(),
            scheduler=DPMSolverMultistepScheduler.from_config({**schedule, "algorithm_type": "dpmsolver++"}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        ids = self.prompts(2)
        ids[1, 1:9] = ids[1, -1]

        def run():
            with torch.inference_mode():
                positive, negative = pipeline.text_encoder(ids)[0].chunk(2)
                return pipeline(
                    prompt_embeds=positive,
                    negative_prompt_embeds=negative,
                    num_inference_steps=case["steps"],
                    guidance_scale=GUIDANCE,
                    width=case["size"],
                    height=case["size"],
                    generator=torch.Generator().manual_seed(0),
                    output_type="np",
                ).images

        return run

    def prompts(self, count):
        """Token numbers of eight words between a beginning and an end."""
        torch = self.torch
        config = json.loads((self.model / "text_encoder/config.json").read_text())
        end = config["vocab_size"] - 1
        ids = torch.full((count, TOKENS), end)
        ids[:, 0], ids[:, 1:9] = end - 1, torch.arange(320, 328)
        return ids.to(self.device)

    def learn(self, case):
        """The step of diffusers' `textual_inversion.py` with `--mixed_precision fp16 --gradient_checkpointing`, without
        its encoding of the picture: the latents are given, as they are to ours."""
        torch = self.torch
        from diffusers import DDPMScheduler

        text, unet = self.part("CLIPTextModel", "text_encoder", torch.float32), self.plain_unet()
        words = text.get_input_embeddings().weight
        text.requires_grad_(False)
        unet.requires_grad_(False)
        words.requires_grad_(True)
        unet.train()  # the script's way of keeping gradient checkpointing on
        text.train()
        text.gradient_checkpointing_enable()
        unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW([words], lr=0.002)
        scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)
        schedule = DDPMScheduler.from_pretrained(self.model / "scheduler")
        side, batch = case["size"] // 8, case["batch"]
        latents, noise = self.drawn(*[(batch, 4, side, side)] * 2)
        timesteps = torch.full((batch,), TIMESTEP, device=self.device)
        ids, placeholder, original = self.prompts(batch), 327, words.detach().clone()

        def run():
            with torch.autocast("cuda", self.dtype):
                noisy = schedule.add_noise(latents, noise, timesteps)
                states = text(ids)[0].to(self.dtype)
                output = unet(noisy, timesteps, states).sample
                loss = torch.nn.functional.mse_loss(output.float(), noise.float(), reduction="mean")
            scaler.scale(loss).backward()
            if not words.grad[placeholder].abs().max() > 0:
                raise SystemExit("no gradient reached the style's vector")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            with torch.no_grad():  # the script puts every word but the style's back; all of them: each run has one input
                words.copy_(original)
            return loss.item()

        return run

    def report(self, case):
        torch, began = self.torch, time.perf_counter()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run = {"unet": self.unet, "paint": self.paint, "learn": self.learn}[case["what"]](case)
        # compiling, choosing algorithms and recording take the first calls; a painting has many evaluations in one
        for _ in range(1 if case["what"] == "paint" else 3):
            answer = run()
        torch.cuda.synchronize()
        ready = time.perf_counter() - began
        seconds = measure(case["runs"], run, warm_up=case["what"] != "paint")
        rms = float((answer.astype("float64") ** 2).mean() ** 0.5) if case["what"] == "unet" else None
        return {
            "seconds": seconds,
            "median_seconds": statistics.median(seconds),
            "gpu_bytes": torch.cuda.max_memory_reserved(),
            "peak_rss_bytes": peak_rss_bytes(),
            "evaluations": 2 * case["steps"] if case["what"] == "paint" else case["batch"],
            "setup_seconds": ready,
            "answer_rms": rms,
        }


def main():
    # what libraries print must not get between the reports
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    say = lambda answer: out.write(json.dumps(answer) + "\n")
    try:
        peer = Peer(*sys.argv[1:])
    except (Exception, SystemExit) as problem:
        return say({"error": str(problem), "everyone": True})  # no PyTorch or no card: so it is for every variant
    torch = peer.torch
    say({"ready": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name()})
    for line in sys.stdin:
        try:
            say(peer.report(json.loads(line)))
        except (Exception, SystemExit) as problem:  # one case that fails is no reason to lose the others
            traceback.print_exc()
            say({"error": (str(problem).strip().splitlines() or [type(problem).__name__])[0]})


if __name__ == "__main__":
    main()
