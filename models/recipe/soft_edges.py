"""The conditioning image of the ControlNet: soft edges that need no network."""
import torch
import torch.nn.functional as F


def soft_edges(rgb):
    """rgb [B,3,H,W] in [0,1] -> edges [B,3,H,W] in [0,1], the same value in all three channels.

    Y = 0.299 R + 0.587 G + 0.114 B; 5x5 binomial blur ([1 4 6 4 1]/16 in x and in y); gradients [-1 0 1] x [1 2 1]/4
    in x and in y; E = min(1, 4 sqrt(gx^2 + gy^2)). Each of the two filters replicates the edge pixel at the border.
    """
    device = rgb.device
    luma = (rgb.float() * torch.tensor([0.299, 0.587, 0.114], device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    binomial = torch.tensor([1.0, 4, 6, 4, 1], device=device) / 16
    kernel = torch.outer(binomial, binomial).view(1, 1, 5, 5)
    blurred = F.conv2d(F.pad(luma, (2, 2, 2, 2), mode="replicate"), kernel)
    slope, smooth = torch.tensor([-1.0, 0, 1], device=device), torch.tensor([1.0, 2, 1], device=device) / 4
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)]).unsqueeze(1)
    gradient = F.conv2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), kernels)
    return (4 * gradient.square().sum(1, keepdim=True).sqrt()).clamp(0, 1).expand(-1, 3, -1, -1)
