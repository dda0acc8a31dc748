"""PSNR of the VAE on 128 px crops: by kind on the 64 crops kept from training, and on pictures never seen.

`psnr.py DATA OUT SAMPLES`
"""
import collections
import glob
import json
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

def main():
    data, out, samples = sys.argv[1:4]
    vae = AutoencoderKL.from_pretrained(f"{out}/vae").float().eval()
    with open(f"{data}/captions.json") as f:
        captions = json.load(f)
    x = np.load(f"{data}/x.npy", mmap_mode="r")
    crops = [(captions[i]["kind"] + " (kept crop)", x[i]) for i in np.load(f"{data}/val_idx.npy")]
    for path in sorted(glob.glob(f"{samples}/content/*") + glob.glob(f"{samples}/style/*")):
        im = Image.open(path).convert("RGB")
        kind = "unseen photo" if "/content/" in path else "unseen renderer" if "render_" in path else "unseen painting"
        s = 192 / min(im.size)
        im = im.resize((round(im.width * s), round(im.height * s)), Image.LANCZOS)
        u, v = (im.width - 128) // 2, (im.height - 128) // 2
        crops.append((kind, np.array(im.crop((u, v, u + 128, v + 128)))))
    by_kind, preview = collections.defaultdict(list), []
    for kind, c in crops:
        a = torch.from_numpy(np.ascontiguousarray(c)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            z = vae.encode(a).latent_dist.mode()
            r = vae.decode(z).sample.clamp(-1, 1)
        by_kind[kind].append(float(-10 * torch.log10(((a - r) / 2).square().mean())))
        preview.append((z * vae.config.scaling_factor, torch.nn.functional.avg_pool2d(a, 4)))
    for k, v in sorted(by_kind.items()):
        print(f"{k}: n={len(v)} mean {np.mean(v):.2f} dB, median {np.median(v):.2f}, worst {np.min(v):.2f}")
    kept = [p for k, v in by_kind.items() if "kept" in k for p in v]
    print(f"all kept crops: mean {np.mean(kept):.2f} dB")
    z = torch.cat([p[0].permute(0, 2, 3, 1).reshape(-1, 4) for p in preview])
    rgb = torch.cat([p[1].permute(0, 2, 3, 1).reshape(-1, 3) for p in preview])
    w = torch.linalg.lstsq(torch.cat([z, torch.ones(len(z), 1)], 1), rgb).solution
    print("preview, scaled latent to RGB in [-1,1] (rows: 4 channels, then the bias):", np.round(w.numpy(), 3).tolist())


if __name__ == "__main__":
    main()
