"""What every training loop needs: device, precision, learning rate, averaged weights, checkpoints, log.

Environment: DEVICE (cpu, cuda), PRECISION (bf16, f32), COMPILE (1, 0), THREADS_FILE (a file with the number of CPU
threads, read while training: `echo 1 > FILE` makes room for others).
"""
import json
import os
import time

import numpy as np
import torch

DEVICE = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = os.environ.get("PRECISION", "bf16")
COMPILE = os.environ.get("COMPILE", "1") == "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
# one graph a window size: kernels for "any size" are a third slower
torch._dynamo.config.automatic_dynamic_shapes = False


def follow_threads():
    """Let the file named in THREADS_FILE change the number of CPU threads of a running training."""
    path = os.environ.get("THREADS_FILE")
    if path and os.path.exists(path):
        with open(path) as f:
            n = int(f.read() or 1)
        if n != torch.get_num_threads():
            torch.set_num_threads(n)
            log(threads=n)


def autocast():
    """bfloat16 where PRECISION says so, float32 otherwise."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=PRECISION == "bf16")


def compiled(function):
    """torch.compile: three to four times faster on CPUs, where PyTorch's own GroupNorm backward is slow."""
    return torch.compile(function) if COMPILE else function


def to_unit(pixels):
    """uint8 [B,H,W,3] -> float [B,3,H,W] in [-1,1], channels last, on the device."""
    t = torch.from_numpy(np.array(pixels)).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1
    return t.contiguous(memory_format=torch.channels_last)


class Average:
    """Exponential moving average of a model's weights; a short memory at first."""

    def __init__(self, model, decay):
        self.decay, self.updates = decay, 0
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model):
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for k, v in model.state_dict().items():
            if v.is_floating_point():
                self.weights[k].lerp_(v, 1 - decay)
            else:
                self.weights[k].copy_(v)

    def swap(self, model):
        """Exchange the model's weights with the averaged ones (call again to swap back)."""
        now = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.weights)
        self.weights = now


class Schedule:
    """Linear warm-up, then constant, until the file OUT/finish appears: it holds the minutes left, over which the
    learning rate falls as a cosine to 2 % of its peak; then the training ends. `MINUTES` sets a time box instead: the
    fall begins at 60 % of it. So a training may be ended well at any moment, whatever the speed was."""

    def __init__(self, out, peak, warmup, minutes=None, spent=0.0):
        self.flag, self.peak, self.warmup = os.path.join(out, "finish"), peak, warmup
        self.started, self.spent_before = time.time(), spent
        self.fall_from = self.fall_to = None
        if minutes:
            end = self.started - spent + 60 * minutes
            self.fall_from, self.fall_to = end - 0.4 * 60 * minutes, end

    def seconds(self):
        """Seconds of training, those before a resume included."""
        return self.spent_before + time.time() - self.started

    def done(self):
        if os.path.exists(self.flag):
            with open(self.flag) as f:
                minutes = float(f.read())
            os.remove(self.flag)
            self.fall_from, self.fall_to = time.time(), time.time() + 60 * minutes
            log(finishing_in_minutes=minutes)
        return self.fall_to is not None and time.time() >= self.fall_to

    def learning_rate(self, step):
        rate = self.peak * min(1.0, (step + 1) / self.warmup)
        if self.fall_from is None or time.time() < self.fall_from:
            return rate
        fallen = min(1.0, (time.time() - self.fall_from) / max(1e-9, self.fall_to - self.fall_from))
        return float(rate * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * fallen))))


def save_atomically(state, path):
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def log(**facts):
    print(json.dumps({k: (round(v, 5) if isinstance(v, float) else v) for k, v in facts.items()}), flush=True)
