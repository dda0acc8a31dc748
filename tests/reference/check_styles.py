"""Reads what `pleinair styles convert` wrote, with the libraries of the programs it is for: `check_styles.py PLEINAIR STYLE`.

STYLE is a style file of this program with several stages. Every form is written to a temporary folder and read back, by
torch's own loader that runs nothing, by safetensors, by diffusers' textual-inversion loader, and by what A1111's web UI
demands of a file (which entries and which functions its loader lets pass, one tensor, the text chunk of a card).
"""
import base64
import io
import json
import pickletools
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

STAGE = 2
# A1111, modules/safe.py: entries of the archive, and what a pickle may name
ENTRIES = re.compile(r"^([^/]+)/((data/\d+)|version|byteorder|(data\.pkl))$")
FUNCTIONS = {"torch._utils _rebuild_tensor_v2", "torch FloatStorage", "collections OrderedDict"}


def a1111(data, wanted, name):
    """modules/textual_inversion: `string_to_param` holds one tensor [n, D]; name and step may be there."""
    params = data["string_to_param"]
    assert len(params) == 1
    vectors = next(iter(params.values()))
    vectors = vectors if isinstance(vectors, torch.Tensor) else torch.tensor(vectors["TORCHTENSOR"])
    assert vectors.dim() == 2 and torch.equal(vectors.float(), wanted)
    assert data["string_to_token"] == {"*": 265} and data["name"] == name and isinstance(data["step"], (int, type(None)))


def safe(path):
    with zipfile.ZipFile(path) as archive:
        assert all(ENTRIES.match(name) for name in archive.namelist()), archive.namelist()
        assert archive.testzip() is None
        pickle = archive.read("archive/data.pkl")
    named = {argument for opcode, argument, _ in pickletools.genops(pickle) if opcode.name == "GLOBAL"}
    assert named <= FUNCTIONS, named


def diffusers_loads(state, token, wanted):
    """What `load_textual_inversion` makes of a file, by its own functions."""
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

    class Tokenizer:
        def get_vocab(self):
            return {}

    tokens, embeddings = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings([None], [state], Tokenizer())
    assert tokens == [token] and torch.equal(embeddings[0], wanted), tokens


def main():
    program, style = sys.argv[1:]
    with safe_open(style, "pt") as own:
        token, several = own.metadata()["token"], len(own.keys())
    tensors = load_file(style)
    matrix = lambda t: tensors[f"{token}-T{t}"].reshape(-1, tensors[f"{token}-T{t}"].shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        def convert(form, name, *more):
            path = Path(folder) / name
            subprocess.run([program, "styles", "convert", style, "--to", form, "--out", path, *more], check=True,
                           stderr=subprocess.DEVNULL)
            return path

        path = convert("dreamstyler-bin", "all.bin")
        whole = torch.load(path, weights_only=True)
        assert list(whole) == [f"{token}-T{t}" for t in range(several)]
        assert all(torch.equal(whole[key], tensors[key]) for key in whole), "dreamstyler-bin"
        assert torch.equal(whole[f"{token}-T1"].clone().add_(1), tensors[f"{token}-T1"] + 1)
        safe(path)

        one, wanted = ("--stage", str(STAGE)), matrix(STAGE)
        state = load_file(convert("diffusers", "one.safetensors", *one))
        assert torch.equal(state[token], wanted)
        diffusers_loads(state, token, wanted)
        state = torch.load(convert("diffusers-bin", "one.bin", *one), weights_only=True)
        diffusers_loads(state, token, wanted)

        path = convert("a1111-pt", "one.pt", *one)
        safe(path)
        data = torch.load(path, weights_only=True)
        a1111(data, wanted, token)
        diffusers_loads(data, token, wanted)

        card = Image.open(convert("png-card", "one.png", *one))
        assert (card.mode, card.size) == ("RGB", (512, 512))
        a1111(json.loads(base64.b64decode(card.text["sd-ti-embedding"])), wanted, token)
        card.load()
        back = convert("safetensors", "back.safetensors")
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in load_file(back).items())
    print(f"{style}: {several} stages, every form is read by the libraries it is for")


main()
