"""Factor-4 AutoencoderKL. `vae.py DATA OUT [MINUTES]`; resumes from OUT/vae.pt, writes OUT/vae/ (averaged weights).

Loss: L1 + 0.7 x L1 on three levels of a Laplacian pyramid + a chroma term + 1e-6 x KL (summed per picture).
"""
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training import DEVICE, Average, Schedule, autocast, compiled, follow_threads, log, save_atomically, to_unit

CROP, BATCH = int(os.environ.get("CROP", 64)), int(os.environ.get("BATCH", 24))
PEAK = float(os.environ.get("LR", 1.2e-3))


def laplacian(a, b, levels=3):
    loss = 0
    for _ in range(levels):
        a2, b2 = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        up = lambda t: F.interpolate(t, scale_factor=2, mode="bilinear")
        loss = loss + ((a - up(a2)) - (b - up(b2))).abs().mean()
        a, b = a2, b2
    return loss


def chroma(a, b):
    """Colour at half and quarter size, without luma: four latent channels otherwise drop the green-violet axis."""
    d = a - b
    y = (d * torch.tensor([0.299, 0.587, 0.114], device=d.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    half = F.avg_pool2d(torch.cat([d[:, :1] - y, d[:, 2:] - y], 1), 2)
    return 1.5 * half.abs().mean() + 4 * F.avg_pool2d(half, 2).square().mean()


def main():
    data, out = sys.argv[1:3]
    minutes = float(sys.argv[3]) if len(sys.argv) > 3 else None
    torch.manual_seed(0)
    rng = np.random.default_rng()
    x = np.load(f"{data}/x.npy", mmap_mode="r")
    val = np.load(f"{data}/val_idx.npy")
    train = np.setdiff1d(np.arange(len(x)), val)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64, 96), layers_per_block=1,
        norm_num_groups=16, sample_size=256, scaling_factor=1.0,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ).to(DEVICE).to(memory_format=torch.channels_last)
    # a linear map from the latent to the picture at quarter size: keeps all three colour axes in the latent (without it
    # the encoder settles on luma and one colour axis), and gives a free preview
    preview = torch.nn.Conv2d(4, 3, 1).to(DEVICE)
    params = [*vae.parameters(), *preview.parameters()]
    opt = torch.optim.AdamW(params, lr=PEAK, betas=(0.9, 0.99), weight_decay=1e-4)
    average, step, spent = Average(vae, 0.995), 0, 0.0
    if os.path.exists(f"{out}/vae.pt"):
        state = torch.load(f"{out}/vae.pt", map_location=DEVICE)
        vae.load_state_dict(state["model"])
        preview.load_state_dict(state["preview"]), opt.load_state_dict(state["optimizer"])
        average.weights, average.updates, step, spent = state["average"], state["step"], state["step"], state["spent"]
    schedule = Schedule(out, PEAK, 100, minutes, spent)

    def there_and_back(a):
        q = vae.encode(a).latent_dist
        return vae.decode(q.sample()).sample, q.mean, q.logvar

    there_and_back = compiled(there_and_back)
    log(params=sum(p.numel() for p in vae.parameters()), crops=len(train), resumed_at=step)

    def validate():
        average.swap(vae)
        vae.eval()
        z, err = [], []
        with torch.no_grad(), autocast():
            for k in range(0, len(val), 16):
                a = to_unit(x[val[k:k + 16]])
                m = vae.encode(a).latent_dist.mode()
                r = vae.decode(m).sample.float().clamp(-1, 1)
                z.append(m.float())
                err += (-10 * torch.log10(((a - r) / 2).square().mean((1, 2, 3)))).tolist()
        vae.register_to_config(scaling_factor=float(1 / torch.cat(z).std()))
        vae.save_pretrained(f"{out}/vae")
        average.swap(vae)
        vae.train()
        save_atomically(dict(model=vae.state_dict(), preview=preview.state_dict(), optimizer=opt.state_dict(), average=average.weights, step=step, spent=schedule.seconds()),
                    f"{out}/vae.pt")
        log(step=step, psnr_db=float(np.mean(err)), psnr_min=float(np.min(err)), scaling=vae.config.scaling_factor)

    run = 0.0
    while not schedule.done():
        for g in opt.param_groups:
            g["lr"] = schedule.learning_rate(step)
        b = np.empty((BATCH, CROP, CROP, 3), np.uint8)
        for i, k in enumerate(rng.choice(train, BATCH)):
            u, v = rng.integers(0, x.shape[1] - CROP + 1, 2)
            b[i] = x[k, u:u + CROP, v:v + CROP]
            if rng.random() < 0.6:  # most pictures live on the blue-orange axis: exchange channels, so that none is special
                b[i] = b[i][..., rng.permutation(3)]
        a = to_unit(b)
        grey = a.mean(1, keepdim=True)  # and half of the time more saturated
        gain = 1 + torch.rand(BATCH, 1, 1, 1, device=DEVICE) * (torch.rand(BATCH, 1, 1, 1, device=DEVICE) < 0.5)
        a = (grey + gain * (a - grey)).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        with autocast():
            r, mean, logvar = there_and_back(a)
        r, mean, logvar = r.float(), mean.float(), logvar.float()
        pix, pyr = (r - a).abs().mean(), laplacian(r, a)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        col = chroma(r, a)
        pre = (preview(mean) - F.avg_pool2d(a, 4)).abs().mean()
        loss = pix + 0.7 * pyr + col + pre + 1e-6 * kl
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        average.update(vae)
        step += 1
        if step % 10 == 0:
            follow_threads()
        run = 0.95 * run + 0.05 * pix.item() if run else pix.item()
        if step % 50 == 0:
            log(step=step, s=int(schedule.seconds()), l1=run, pyramid=pyr.item(), chroma=col.item(), preview=pre.item(), kl=kl.item())
        if step % 500 == 0:
            validate()
    validate()


if __name__ == "__main__":
    main()
