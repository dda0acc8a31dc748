"""Makes tests/fixtures/checkpoints/: what torch.save writes, with everything in it that is awkward to read.

    python tests/reference/checkpoints.py

Versions: torch 2.15.0, numpy 2.4.6. `expected.safetensors` holds every tensor of `awkward-*.ckpt` as PyTorch reads it,
contiguous and float32.
"""
import collections
import functools
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent.parent / "fixtures" / "checkpoints"
OUT.mkdir(exist_ok=True)
torch.manual_seed(5)


class Callback:
    """Of a class that no reader knows."""

    def __init__(self, state):
        self.state, self.best = state, torch.randn(2)


base = torch.randn(6, 8)
image = torch.randn(2, 3, 4, 5)
state = collections.OrderedDict(
    whole=base,
    transposed=base.t(),
    window=base[1:5:2, 2:7:3],
    column=base[:, 3],
    shared=base.view(-1)[10:20],
    half=base.half(),
    bfloat=base.bfloat16()[2:],
    double=base.double() / 3,
    parameter=torch.nn.Parameter(base.exp()),
    buffer=torch.nn.Buffer(base.cos()),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(3, 0, 2),
    channels_last=image.contiguous(memory_format=torch.channels_last),
    permuted=image.half().permute(3, 1, 0, 2),
    position_ids=torch.arange(7).unsqueeze(0),
    mask=torch.tensor([True, False]),
)
state["a name with spaces/and.dots"] = torch.randn(3)
whole = {
    "epoch": 3,
    "global_step": 2**33,
    "huge": 2**90,
    "lr": 1.5e-4,
    "np": np.float64(0.25),
    "array": np.arange(6).reshape(2, 3),
    "tuple": (1, "zwei", (None, True), b"\x00\xff"),
    "set": {1, 2},
    "device": torch.device("cpu"),
    "size": torch.Size([1, 2]),
    "dtype": torch.float16,
    "partial": functools.partial(print, "never"),
    "callbacks": {Callback: Callback({"score": 0.5})},
    "state_dict": state,
    "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(4)}}, "param_groups": [{"params": [0, 1]}]}],
    "hyper_parameters": collections.defaultdict(list, layers=[1, 2]),
}
whole["itself"] = whole
for protocol in (2, 3, 4):
    torch.save(whole, OUT / f"awkward-{protocol}.ckpt", pickle_protocol=protocol)
contiguous = {"memory_format": torch.contiguous_format}
expected = {name: tensor.detach().to(torch.float32).clone(**contiguous) for name, tensor in state.items()}
for name in ("position_ids", "mask"):
    del expected[name]
save_file(expected, OUT / "expected.safetensors")

# an embedding as AUTOMATIC1111's web UI saves it
vectors = torch.arange(64, dtype=torch.float32).reshape(2, 32) / 64
embedding = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": vectors},
    "name": "dots",
    "step": 500,
    "sd_checkpoint": None,
    "sd_checkpoint_name": None,
}
torch.save(embedding, OUT / "embedding.pt")
torch.save({"vectors": vectors}, OUT / "old-form.pt", _use_new_zipfile_serialization=False)
torch.save({"vectors": vectors[:1].expand(1000, 32)}, OUT / "expanded.pt")
torch.save({"vectors": vectors}, OUT / "stored.pt")
with zipfile.ZipFile(OUT / "stored.pt") as stored, zipfile.ZipFile(OUT / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as out:
    for name in stored.namelist():
        out.writestr(name, stored.read(name))
with zipfile.ZipFile(OUT / "stored.pt") as stored, zipfile.ZipFile(OUT / "big-endian.pt", "w") as out:
    for name in stored.namelist():
        out.writestr(name, b"big" if name.endswith("byteorder") else stored.read(name))
(OUT / "stored.pt").unlink()
with zipfile.ZipFile(OUT / "not-torch.zip", "w") as out:
    out.writestr("readme.txt", "no tensors here")
