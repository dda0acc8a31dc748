"""Which crop is trained on, under which prompt; and the style code that may stand in for a style word.

`prompts.py DATA OUT` prints measured shares and a few drawn prompts.

A style code is a vector in the place of one word of the prompt, computed from another crop of the same style by a small
network that is trained along and thrown away afterwards. It is what textual inversion looks for later: the UNet and the
text encoder learn here that a vector in that place decides the style, for as many styles as there are variants and
paintings, not only for the few that have a word.
"""
import collections
import json
import sys

import numpy as np
import torch
from transformers import CLIPTokenizer

from training import DEVICE

SHARING = 3  # crops of a batch that share one prompt: the text encoder is a third of the cost otherwise
PLACE = "painting"  # the word whose place a style code takes ("... in the style of painting")
# shares of the draws; a painting of a thing or of a scene is a pool of its own, so that nouns are not drowned by photographs
POOLS = {"photo": 0.06, "painting": 0.14, "render": 0.28, "thing": 0.13, "painted thing": 0.22, "scene": 0.06, "painted scene": 0.11}
# the standard manner of a renderer is drawn so much more often: a bare style word should mean it
STANDARD = {"render": 8.0, "painted thing": 3.0, "painted scene": 3.0}
# shares of the prompts (empty, style only, with tones, with a style code); the rest are full captions
SHARES, SHARES_NAMED = (0.10, 0.12, 0.22, 0.30), (0.10, 0.04, 0.16, 0.20)


def pool(caption):
    return f"painted {caption['of']}" if caption["kind"] == "render" and caption["of"] else caption["kind"]


def draw_group(caption):
    """Crops that are drawn together, most often under one prompt: of one style variant, painting, or thing (in a style)."""
    return f"{caption['what']}: {caption['group']}" if pool(caption) == "painted thing" else caption["group"]


class Prompts:
    """Draws crops and prompts; `codes=False` leaves the style codes out (the ControlNet is trained without)."""

    def __init__(self, data, tokenizer, rng, codes=True):
        with open(f"{data}/captions.json") as f:
            self.captions = json.load(f)
        self.tokenizer, self.rng, self.cache = tokenizer, rng, {}
        self.codes = codes
        place = tokenizer(PLACE, add_special_tokens=False).input_ids
        assert len(place) == 1, f"{PLACE!r} must be a single token"
        self.place = place[0]
        self.groups = {name: collections.defaultdict(list) for name in POOLS}
        self.styles = collections.defaultdict(list)  # crops of one style, whatever they show
        for i, c in enumerate(self.captions):
            self.groups[pool(c)][draw_group(c)].append(i)
            self.styles[c["group"]].append(i)
        self.names = {name: list(g) for name, g in self.groups.items()}
        self.shares = {}
        for name, g in self.groups.items():
            share = np.array([len(v) for v in g.values()], np.float64) ** 0.75
            share *= [STANDARD.get(name, 1) if group.endswith(" standard") else 1 for group in g]
            self.shares[name] = share / share.sum()

    def ids(self, prompt):
        if prompt not in self.cache:
            self.cache[prompt] = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
        return self.cache[prompt]

    def draw(self):
        """Crop numbers of one group of one pool."""
        name = list(POOLS)[self.rng.choice(len(POOLS), p=list(POOLS.values()))]
        return self.groups[name][self.names[name][self.rng.choice(len(self.names[name]), p=self.shares[name])]]

    def batch(self, n):
        """-> crops [n], ids [P,77], which [n] (the prompt of each crop), references [P] (a crop whose style code goes
        into the prompt, or -1)."""
        crops, prompts, which, references = [], [], [], []

        def add(members, prompt, reference=-1):
            which.extend([len(prompts)] * len(members))
            crops.extend(members)
            prompts.append(self.ids(prompt))
            references.append(reference)

        while len(crops) < n:
            members = self.draw()
            take = self.rng.choice(members, min(SHARING, n - len(crops)))
            caption, r = self.captions[take[0]], self.rng.random()
            empty, style_only, tones, code = np.cumsum(SHARES_NAMED if caption["of"] else SHARES)
            if r < empty:
                add(take, "")
            elif r < style_only:
                add(take, caption["style_only"])
            elif r < tones:  # tones are measured for each crop, so each has its own prompt
                for k in take:
                    c = self.captions[k]
                    words = c["full"] if c["of"] or self.rng.random() < 0.6 else c["style_only"]
                    add([k], f"{words}, in {c['tones']} tones")
            elif r < code and self.codes and caption["kind"] in ("painting", "render"):
                of = f" of {caption['what']}," if caption["of"] else ""
                same = [k for k in take if not of or self.captions[k]["what"] == caption["what"]]
                add(same, f"a painting{of} in the style of {PLACE}", self.rng.choice(self.styles[caption["group"]]))
            else:
                full = caption["full"]
                add([k for k in take if self.captions[k]["full"] == full], full)
        tensor = lambda rows: torch.tensor(np.array(rows), device=DEVICE)
        return np.array(crops[:n]), tensor(prompts), tensor(which[:n]), np.array(references)


class StyleEncoder(torch.nn.Module):
    """Latent of a crop [B,4,h,w] -> style code [B,width]: means and deviations of three layers, so where things are in
    the picture is lost and palette and texture stay. Codes have a root mean square of 0.05 to 0.25, drawn anew each
    time, because textual inversion lets the length of its vectors drift."""

    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(a, b, 3, padding=1, stride=s)
                                           for a, b, s in ((4, 32, 1), (32, 64, 2), (64, 96, 2))])
        pooled = 2 * (4 + 32 + 64 + 96)
        self.out = torch.nn.Sequential(torch.nn.Linear(pooled, 256), torch.nn.SiLU(), torch.nn.Linear(256, width))

    def forward(self, latent):
        layer, pooled = latent, [latent.mean((2, 3)), latent.std((2, 3))]
        for conv in self.layers:
            layer = torch.nn.functional.silu(conv(layer))
            pooled += [layer.mean((2, 3)), layer.std((2, 3))]
        code = self.out(torch.cat(pooled, 1))
        code = code * torch.rsqrt(code.square().mean(1, keepdim=True) + 1e-6)
        low, high = np.log(0.05), np.log(0.25)
        length = torch.exp(low + (high - low) * torch.rand(len(code), 1, device=code.device))
        return length * code


class CodeInPlace:
    """A hook on the token embedding that writes a style code over the last word PLACE of the prompts that have one."""

    def __init__(self, text, place):
        self.place, self.codes, self.rows = place, None, None
        text.get_input_embeddings().register_forward_hook(self.write)

    def write(self, _module, inputs, embedded):
        if self.codes is None:
            return None
        ids = inputs[0][self.rows]
        position = ids.shape[1] - 1 - (ids == self.place).int().flip(1).argmax(1)
        embedded = embedded.clone()
        embedded[self.rows, position] = embedded[self.rows, position] + self.codes.to(embedded.dtype)
        return embedded


def main():
    data, out = sys.argv[1:3]
    prompts = Prompts(data, CLIPTokenizer.from_pretrained(f"{out}/tokenizer"), np.random.default_rng(1))
    seen, rows, shown = collections.Counter(), 0, []
    for _ in range(400):
        crops, ids, which, references = prompts.batch(18)
        seen.update(pool(prompts.captions[k]) for k in crops)
        rows += len(ids)
        k = len(crops) - 1
        words = prompts.tokenizer.decode(ids[which[k]].tolist(), skip_special_tokens=True)
        shown.append((pool(prompts.captions[crops[k]]), words, "code" if references[which[k]] >= 0 else ""))
    total = sum(seen.values())
    print({name: round(seen[name] / total, 3) for name in POOLS}, "prompts a batch of 18:", rows / 400)
    print(*shown[:40], sep="\n")


if __name__ == "__main__":
    main()
