"""Which crop is trained on, under which prompt; and the style code that may stand in for a style word.

A style code is a vector in the place of one word of the prompt, computed from another crop of the same style by a small
network that is trained along and thrown away afterwards. It is what textual inversion looks for later: the UNet and the
text encoder learn here that a vector in that place decides the style, for as many styles as there are variants and
paintings, not only for the few that have a word.
"""
import collections
import json

import numpy as np
import torch

from training import DEVICE

SHARING = 3  # crops of a batch that share one prompt: the text encoder is a third of the cost otherwise
PLACE = "painting"  # the word whose place a style code takes ("... in the style of painting")
KINDS = {"photo": 0.12, "painting": 0.32, "render": 0.56}
STANDARD = 8.0  # the standard manner of a renderer is drawn so much more often: a bare style word should mean it
EMPTY, STYLE_ONLY, TONES, CODE = 0.10, 0.12, 0.22, 0.30  # shares of the prompts; the rest are full captions


class Prompts:
    """Draws crops and prompts; `codes=False` leaves the style codes out (the ControlNet is trained without)."""

    def __init__(self, data, tokenizer, rng, codes=True):
        with open(f"{data}/captions.json") as f:
            self.captions = json.load(f)
        self.tokenizer, self.rng, self.cache = tokenizer, rng, {}
        self.code = CODE if codes else 0.0
        place = tokenizer(PLACE, add_special_tokens=False).input_ids
        assert len(place) == 1, f"{PLACE!r} must be a single token"
        self.place = place[0]
        self.groups = {kind: collections.defaultdict(list) for kind in KINDS}
        for i, c in enumerate(self.captions):
            self.groups[c["kind"]][c["group"]].append(i)
        self.names = {kind: list(g) for kind, g in self.groups.items()}
        self.shares = {}
        for kind, g in self.groups.items():
            share = np.array([len(v) for v in g.values()], np.float64) ** 0.75
            share *= [STANDARD if name.endswith(" standard") else 1 for name in g]
            self.shares[kind] = share / share.sum()

    def ids(self, prompt):
        if prompt not in self.cache:
            self.cache[prompt] = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
        return self.cache[prompt]

    def draw_group(self):
        """Crop numbers of one group: crops of one style variant, of one painting, or photographs of one thing."""
        kinds = list(KINDS)
        kind = kinds[self.rng.choice(len(kinds), p=list(KINDS.values()))]
        names = self.names[kind]
        return kind, self.groups[kind][names[self.rng.choice(len(names), p=self.shares[kind])]]

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
            kind, members = self.draw_group()
            take = self.rng.choice(members, min(SHARING, n - len(crops)))
            caption, r = self.captions[take[0]], self.rng.random()
            if r < EMPTY:
                add(take, "")
            elif r < EMPTY + STYLE_ONLY:
                add(take, caption["style_only"])
            elif r < EMPTY + STYLE_ONLY + TONES:  # tones are measured for each crop, so each has its own prompt
                for k in take:
                    c = self.captions[k]
                    words = c["full"] if self.rng.random() < 0.6 else c["style_only"]
                    add([k], f"{words}, in {c['tones']} tones")
            elif r < EMPTY + STYLE_ONLY + TONES + self.code and kind != "photo":
                add(take, f"a painting in the style of {PLACE}", self.rng.choice(members))
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
