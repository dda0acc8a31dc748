"""Opening a diffusers folder in float32 on the CPU, its prompts and its word table; writing a fixture."""
import json
import os

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fixtures")
PHOTOGRAPH = os.path.join(FIXTURES, "mountain2.jpg")
STAGES = 6
TIMESTEPS = 1000

for library in (diffusers, transformers):
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()


class WordTable(torch.nn.Module):
    """The frozen word table with the stage vectors [T, D] behind it: stage k has the id `words + k`."""

    def __init__(self, table, vectors):
        super().__init__()
        self.table, self.vectors = table, vectors

    def forward(self, ids):
        return F.embedding(ids, torch.cat([self.table, self.vectors]))


class Model:
    """The parts of a diffusers folder; `name` is the folder's own name."""

    def __init__(self, folder):
        self.name = os.path.basename(os.path.normpath(folder))
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
        self.pipe.set_progress_bar_config(disable=True)
        self.controlnet = ControlNetModel.from_pretrained(f"{folder}/controlnet", dtype=torch.float32)
        self.unet, self.vae, self.tokenizer = self.pipe.unet, self.pipe.vae, self.pipe.tokenizer
        self.text = self.pipe.text_encoder
        for part in (self.unet, self.vae, self.text, self.controlnet):
            assert all(p.dtype == torch.float32 for p in part.parameters())
            part.eval().requires_grad_(False)
        self.table = self.text.get_input_embeddings().weight
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def double(self):
        """The same weights in float64, to see how far float32 rounds."""
        for part in (self.unet, self.vae, self.text, self.controlnet):
            part.double()
        assert self.table.dtype == torch.float64
        return self

    def ids(self, prompts):
        """I64 [B, 77], begun, ended, cut and padded as the pipelines do."""
        return self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True,
                              return_tensors="pt").input_ids

    def states(self, prompts):
        """F32 [B, 77, D]."""
        return self.text(self.ids(prompts))[0]

    def use_vectors(self, vectors):
        """Put WordTable in the place of the word table."""
        self.text.set_input_embeddings(WordTable(self.table, vectors))

    def stage_ids(self, template):
        """I64 [T, 77]: the template's `{}` filled with each stage's token."""
        marks = [f"<reference>-T{k}" for k in range(STAGES)]
        if marks[0] not in self.tokenizer.get_vocab():
            assert self.tokenizer.add_tokens(marks) == STAGES
        ids = self.ids([template.format(m) for m in marks])
        assert [int(row.max()) for row in ids] == [len(self.table) + k for k in range(STAGES)]
        return ids

    def plausible_vectors(self, seed, word="painting"):
        """F32 [T, D]: the word's vector + 0.3 * randn * (the word table's standard deviation)."""
        word_ids = self.tokenizer(word).input_ids[1:-1]
        assert len(word_ids) == 1, f"{word} is not a single token"
        randn = torch.randn(STAGES, self.table.shape[1], generator=torch.Generator().manual_seed(seed))
        return self.table[word_ids[0]] + 0.3 * self.table.std() * randn


def stage(t):
    """floor(t / 1000 * T) in whole numbers."""
    return int(t) * STAGES // TIMESTEPS


def photograph(width, height):
    """u8 [H, W, 3]: the content photograph squeezed to this size."""
    return torch.from_numpy(np.array(Image.open(PHOTOGRAPH).convert("RGB").resize((width, height), Image.LANCZOS)))


def unit(rgb):
    """u8 [H, W, 3] -> [1, 3, H, W] in [0, 1]."""
    return rgb.permute(2, 0, 1)[None].float() / 255


def soft_edges(rgb):
    """The ControlNet's conditioning image. rgb [B, 3, H, W] in [0, 1] -> the same shape and range.

    Y = 0.299 R + 0.587 G + 0.114 B; binomial blur [1 4 6 4 1]/16 in x and y; gradients [-1 0 1] x [1 2 1]/4;
    min(1, 4 sqrt(gx^2 + gy^2)). Each of the two filters replicates the edge pixel.
    """
    y = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    binomial = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    y = F.conv2d(F.pad(y, (2, 2, 2, 2), mode="replicate"), torch.outer(binomial, binomial).view(1, 1, 5, 5))
    difference, smooth = torch.tensor([-1.0, 0, 1]), torch.tensor([1.0, 2, 1]) / 4
    kernels = torch.stack([torch.outer(smooth, difference), torch.outer(difference, smooth)]).unsqueeze(1)
    gradient = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), kernels)
    return (4 * gradient.square().sum(1, keepdim=True).sqrt()).clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def rounding(single, double):
    """Largest difference of each float32 tensor from its float64 twin, by name."""
    assert single.keys() == double.keys()
    return {k: float(f"{(v - double[k]).abs().max():.2e}") for k, v in single.items() if v.is_floating_point()}


def write(path, tensors, recipe, limit=None):
    """Write a fixture; no NaN, no infinity, not above `limit` bytes. `recipe` becomes JSON metadata."""
    for name, tensor in tensors.items():
        assert torch.isfinite(tensor.float()).all(), f"{name} is not finite"
    recipe = recipe | {"versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}}
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    size = sum(v.numel() * v.element_size() for v in tensors.values())
    assert limit is None or size <= limit, f"{path} would be {size} bytes; {limit} are allowed"
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    save_file(tensors, path, metadata={"recipe": json.dumps(recipe, sort_keys=True)})
    os.chmod(path, 0o644)
    print(f"{path}: {os.path.getsize(path)} bytes, {len(tensors)} tensors")
