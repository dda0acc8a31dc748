"""Makes tests/fixtures/nano-sd15/: one random pipeline, narrower still than tiny-sd15, twice.

    python tests/reference/single_file.py

Versions: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0. `folder/` is written by diffusers, in torch's `.bin` files;
`nano.ckpt` has the same tensors under the original names as trainers leave them: within `state_dict`, among averaged
weights, a schedule, an optimiser's state and objects of other classes, the VAE's attention as 1x1 convolutions.
"""
import collections
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import ldm_names

FIXTURES = Path(__file__).parent.parent / "fixtures"
OUT = FIXTURES / "nano-sd15"
TINY = ldm_names.configs_of(FIXTURES / "tiny-sd15")
LEVELS = {
    "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 2,
    "cross_attention_dim": 8, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
}
CONFIGS = {
    "unet": TINY["unet"] | LEVELS | {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
    "controlnet": TINY["controlnet"] | LEVELS | {"conditioning_embedding_out_channels": [4, 8]},
    "vae": TINY["vae"] | {
        "block_out_channels": [4, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1,
        "norm_num_groups": 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
}
WORDS = json.loads((FIXTURES / "tiny-sd15/text_encoder/config.json").read_text()) | {
    "hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 99,
}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


class ModelCheckpoint:
    """Of a class that no reader knows."""


def main():
    torch.manual_seed(11)
    models = {
        "unet": UNet2DConditionModel.from_config(CONFIGS["unet"]).half(),
        "controlnet": ControlNetModel.from_config(CONFIGS["controlnet"]).half(),
        "vae": AutoencoderKL.from_config(CONFIGS["vae"]).to(torch.bfloat16),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**WORDS)).half(),
    }
    shutil.rmtree(OUT, ignore_errors=True)
    folder = OUT / "folder"
    names = ldm_names.model_pairs(CONFIGS)
    prefixes = {"unet": "model.diffusion_model.", "controlnet": "control_model.", "vae": "first_stage_model."}
    state = collections.OrderedDict(betas=torch.linspace(0, 1, 10), alphas_cumprod=torch.linspace(1, 0, 10))
    for part, model in models.items():
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape).to(parameter.dtype)
        write_json(folder / part / "config.json", WORDS if part == "text_encoder" else CONFIGS[part])
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        torch.save(model.state_dict(), folder / part / f"{stem}.bin")
        if part == "text_encoder":
            for name, tensor in model.state_dict().items():
                state["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
            continue
        for ldm, name in names[part].items():
            for kind in ("weight", "bias"):
                tensor = model.state_dict().get(f"{name}.{kind}")
                if tensor is not None:
                    is_convolution = part == "vae" and "attn_1" in ldm and tensor.ndim == 2
                    state[f"{prefixes[part]}{ldm}.{kind}"] = tensor[:, :, None, None] if is_convolution else tensor
    ids = torch.arange(77)[None]
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    state["model_ema.diffusion_modelinput_blocks00weight"] = torch.zeros(3)
    state["model_ema.decay"] = torch.tensor(0.9999)
    state["first_stage_model.loss.logvar"] = torch.zeros(1)
    state["first_stage_model.encoder.strange.weight"] = torch.zeros(1)
    state["someone.elses.weight"] = torch.zeros(1)
    shutil.copy(FIXTURES / "tiny-sd15/model_index.json", folder)
    scheduler = json.loads((FIXTURES / "tiny-sd15/scheduler/scheduler_config.json").read_text())
    write_json(folder / "scheduler/scheduler_config.json", scheduler | {"steps_offset": 0})
    (folder / "tokenizer").mkdir()
    words = [f"word{i}</w>" for i in range(WORDS["vocab_size"] - 2)] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}) + "\n")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    lightning = {
        "epoch": 1, "global_step": 840000, "pytorch-lightning_version": "1.4.2", "state_dict": state,
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "saver": ModelCheckpoint()}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(5)}}}], "lr_schedulers": [],
    }
    torch.save(lightning, OUT / "nano.ckpt")
    print(len(state), (OUT / "nano.ckpt").stat().st_size)


main()
