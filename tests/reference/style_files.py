"""Makes tests/fixtures/styles/: styles as the programs whose forms they are save them.

    python tests/reference/style_files.py

Every number is `value(stage, row, column)`, exact in half precision too, so that the tests need no second copy. Versions:
torch 2.15.0, safetensors 0.7, Pillow 12.
"""
import base64
import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

OUT = Path(__file__).parent.parent / "fixtures" / "styles"
OUT.mkdir(exist_ok=True)


def value(stage, row, column):
    return ((stage * 7 + row * 3 + column) % 64) / 64 - 0.5


def vectors(rows, width, stage=0):
    numbers = [[value(stage, row, column) for column in range(width)] for row in range(rows)]
    return torch.tensor(numbers, dtype=torch.float32)


def embedding(vectors, name="probe", step=300):
    """The dictionary that A1111 saves."""
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": name, "step": step,
            "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5-pruned-emaonly"}


# DreamStyler's reference code: a flat vector each stage
stages = {f"<hills>-T{t}": vectors(1, 32, t)[0] for t in range(6)}
torch.save(stages, OUT / "dreamstyler.bin")

# diffusers: older scripts [D], newer ones [n, D]; rows of the word table are views of a larger storage there
table = torch.zeros(4, 768)
table[2] = vectors(1, 768)[0]
torch.save({"<cat-toy>": table[2].clone()}, OUT / "learned_embeds.bin")
torch.save({"<cat-toy>": torch.cat([torch.zeros(1, 32), vectors(2, 32)])[1:]}, OUT / "learned_embeds-2.bin")
torch.save({"<cat-toy>": torch.nn.Parameter(vectors(2, 32).half())}, OUT / "learned_embeds-f16.bin")
save_file({"<cat-toy>": vectors(1, 768)[0]}, OUT / "learned_embeds.safetensors", metadata={"format": "pt"})
save_file({"<cat-toy>": vectors(3, 32).bfloat16()}, OUT / "learned_embeds-3.safetensors")
save_file({"emb_params": vectors(2, 32)}, OUT / "emb_params.safetensors")

# A1111, by torch of today and by one before 1.6, and the program that the form comes from
torch.save(embedding(vectors(2, 768)), OUT / "a1111.pt")
torch.save(embedding(vectors(2, 32)), OUT / "a1111-old.pt", _use_new_zipfile_serialization=False)
params = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors(1, 32))})
torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params}, OUT / "original.pt")
torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params}, OUT / "original-old.pt",
           _use_new_zipfile_serialization=False)
torch.save(embedding(vectors(1, 32).double()), OUT / "a1111-f64.pt")


# cards
def as_json(data):
    return json.dumps(data, default=lambda tensor: {"TORCHTENSOR": tensor.tolist()})


def disguise(count):
    """What the halves of bytes are XORed with: a linear congruential generator's remainders by 255."""
    state, masks = 0, []
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        masks.append(state % 255)
    return np.array(masks, np.uint8) & 0x0F


def edge(halves, height, light):
    """A block of a card's edge: each value's low half carries data, its high half is decoration."""
    size = -(-len(halves) // (3 * height)) * 3 * height
    block = np.resize(halves, size) ^ disguise(size)
    return (block | light).reshape(height, -1, 3).astype(np.uint8)


def with_edges(picture, data):
    """Compressed JSON at both edges of a picture: low halves of its bytes at the left, high halves at the right."""
    packed = np.frombuffer(zlib.compress(as_json(data).encode(), level=9), np.uint8)
    black = np.zeros((picture.height, 1, 3), np.uint8)
    parts = [edge(packed & 0x0F, picture.height, 0x70), black, np.asarray(picture.convert("RGB")), black,
             edge(packed >> 4, picture.height, 0xA0)]
    return Image.fromarray(np.concatenate(parts, axis=1))


picture = Image.new("RGBA", (64, 96), (255, 255, 200, 255))
data = embedding(vectors(2, 32), "card")
info = PngImagePlugin.PngInfo()
info.add_text("sd-ti-embedding", base64.b64encode(as_json(data).encode()))
with_edges(picture, data).save(OUT / "card.png", pnginfo=info)
with_edges(picture, data).save(OUT / "card-edges.png")
picture.convert("RGB").resize((300, 200)).save(OUT / "no-card.png")


# what must be refused
class Call:
    def __reduce__(self):
        return eval, ("1",)


torch.save({"<cat-toy>": Call()}, OUT / "call.bin")
torch.save(Call(), OUT / "call-alone.bin")
(OUT / "call-plain.bin").write_bytes(pickle.dumps(Call(), protocol=2))
torch.save({"<cat-toy>": torch.arange(32)}, OUT / "integers.bin")
torch.save({f"a-T{t}": torch.zeros(8) for t in (0, 1, 3)}, OUT / "gap.bin")
torch.save({"a-T0": torch.zeros(8), "a-T1": torch.zeros(9)}, OUT / "widths.bin")
save_file({"clip_g": torch.zeros(1, 1280), "clip_l": torch.zeros(1, 768)}, OUT / "sdxl.safetensors")
save_file({"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros(4)}, OUT / "model.safetensors")
