"""Makes tests/fixtures/resize.safetensors: one small picture resized and fitted by Pillow with Lanczos.

    python tests/reference/resize.py

Versions: pillow 13.0.0, numpy 2.4.6, safetensors 0.8.0.
"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file

rng = np.random.default_rng(0)
y, x = np.mgrid[0:31, 0:45]
# Smooth waves with noise on them and hard bars: overshoot, clipping at 0 and 255, and fractions everywhere.
waves = 127 + 120 * np.sin(np.stack([x / 3, y / 5, (x + y) / 7], -1))
rgb = np.clip(waves + rng.integers(-40, 40, waves.shape), 0, 255).astype(np.uint8)
rgb[10:14] = 255
rgb[:, 30:33] = 0
picture = Image.fromarray(rgb)

tensors = {"rgb": rgb}
for width, height in [(16, 16), (96, 64), (45, 20), (20, 31), (7, 50), (1, 1), (45, 31)]:
    tensors[f"resize.{width}x{height}"] = np.asarray(picture.resize((width, height), Image.LANCZOS))
    tensors[f"cover.{width}x{height}"] = np.asarray(ImageOps.fit(picture, (width, height), Image.LANCZOS))
tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
save_file(tensors, Path(__file__).parent.parent / "fixtures" / "resize.safetensors")
