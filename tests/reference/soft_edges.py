"""Makes tests/fixtures/soft_edges.safetensors: the soft edges of two small pictures by the training code.

    python tests/reference/soft_edges.py

The photograph is tests/fixtures/mountain2.jpg. Versions: torch 2.15.0, pillow 13.0.0, numpy 2.4.6, safetensors 0.8.0.
"""
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

root = Path(__file__).parents[2]
photograph = root / "tests/fixtures/mountain2.jpg"
spec = importlib.util.spec_from_file_location("recipe_soft_edges", root / "models/recipe/soft_edges.py")
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)

pictures = {
    # Odd sides, every edge in reach of the filters, and a half that is flat.
    "noise": np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8),
    "photograph": np.asarray(ImageOps.fit(Image.open(photograph).convert("RGB"), (32, 24), Image.LANCZOS)),
}
pictures["noise"][:, :6] = 90
tensors = {}
for name, rgb in pictures.items():
    rgb = torch.from_numpy(rgb.copy())
    edges = recipe.soft_edges(rgb.permute(2, 0, 1)[None].float() / 255)
    assert torch.equal(edges[:, :1].expand(-1, 3, -1, -1), edges)
    tensors[f"{name}.rgb"], tensors[f"{name}.edges"] = rgb.contiguous(), edges[0, 0].contiguous()
save_file(tensors, root / "tests/fixtures/soft_edges.safetensors")
