"""Control pictures: what transformers, the ControlNet authors' annotators and OpenCV make of two small photographs.

    python tests/reference/controls.py

Gives tests/fixtures/controls/: `dpt/` and `depth-anything/` (random depth estimators as diffusers folders hold them:
config.json, preprocessor_config.json, model.onnx), `lineart.onnx` (the generator of arXiv 2203.12691, random), and
controls.safetensors with the pictures and the answers. The answers of the networks are onnxruntime's; `rounding` is their
distance from PyTorch in float64.
"""
import json
import os
import shutil

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from transformers import (DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTConfig,
                          DPTForDepthEstimation)
from transformers.models.depth_anything import modeling_depth_anything
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from export_vae import halve
from model import FIXTURES, photograph, write

# sizes that follow the picture's stay free in the trace
modeling_depth_anything.int = lambda size: size if isinstance(size, torch.Tensor) else int(size)
OUT = os.path.join(FIXTURES, "controls")
TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# the small size of a real processor: 384, and 518 with sides of 14
PROCESSORS = {
    "dpt": {"size": {"height": 64, "width": 64}, "keep_aspect_ratio": False, "ensure_multiple_of": 1,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "depth-anything": {"size": {"height": 56, "width": 56}, "keep_aspect_ratio": True, "ensure_multiple_of": 14,
                       "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}


class Generator(torch.nn.Module):
    """Informative Drawings: two halvings, residual blocks, two doublings; 1 where the paper stays white."""

    def __init__(self, width=8, blocks=2):
        super().__init__()
        conv, norm, relu = torch.nn.Conv2d, torch.nn.InstanceNorm2d, torch.nn.ReLU
        layers = [torch.nn.ReflectionPad2d(3), conv(3, width, 7), norm(width), relu()]
        for i in (1, 2):
            layers += [conv(width * i, width * i * 2, 3, stride=2, padding=1), norm(width * i * 2), relu()]
        self.head = torch.nn.Sequential(*layers)
        wide = 4 * width
        block = lambda: torch.nn.Sequential(torch.nn.ReflectionPad2d(1), conv(wide, wide, 3), norm(wide), relu(),
                                            torch.nn.ReflectionPad2d(1), conv(wide, wide, 3), norm(wide))
        self.blocks = torch.nn.ModuleList([block() for _ in range(blocks)])
        up = lambda a, b: [torch.nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), norm(b), relu()]
        self.tail = torch.nn.Sequential(*up(wide, wide // 2), *up(wide // 2, width), torch.nn.ReflectionPad2d(3),
                                        conv(width, 1, 7), torch.nn.Sigmoid())

    def forward(self, image):
        x = self.head(image)
        for block in self.blocks:
            x = x + block(x)
        return self.tail(x)


class Depth(torch.nn.Module):
    """`predicted_depth` alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        return self.network(pixel_values).predicted_depth


def randomise(module, seed):
    """Weights so large that the picture shows in the answer; norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_((1.0 if "norm" in name and name.endswith("weight") or "lambda" in name else 0.0) + 0.1 * draw)
            elif "embeddings" in name and p.ndim == 3:
                p.copy_(0.2 * draw)
            else:
                p.copy_(1.3 * draw / p[0].numel() ** 0.5)
            p.copy_(p.half())  # so that halving the file costs nothing
    return module.eval()


def estimators():
    dpt = DPTConfig(**TINY, intermediate_size=32, image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
                    neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5],
                    readout_type="project", is_hybrid=False, use_auxiliary_head=False)
    dino = Dinov2Config(**TINY, mlp_ratio=2, image_size=56, patch_size=14, out_indices=[1, 2, 3, 4],
                        reshape_hidden_states=False, apply_layernorm=True)
    anything = DepthAnythingConfig(backbone_config=dino, patch_size=14, reassemble_hidden_size=16,
                                   neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, head_hidden_size=8)
    return {"dpt": randomise(DPTForDepthEstimation(dpt), 1),
            "depth-anything": randomise(DepthAnythingForDepthEstimation(anything), 2)}


def export(module, name_in, name_out, example, path, fixed=False):
    rank = module(example).ndim
    free = {0: "batch", 2: "height", 3: "width"}
    answer = {0: "batch", rank - 2: "out_height", rank - 1: "out_width"}
    torch.onnx.export(module, (example,), path, input_names=[name_in], output_names=[name_out], opset_version=17,
                      dynamo=False, dynamic_axes=None if fixed else {name_in: free, name_out: answer})
    halve(path)
    print(path, os.path.getsize(path), sorted({node.op_type for node in onnx.load(path).graph.node}))
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def off(found, exact):
    return float(f"{np.abs(found - exact).max():.2e}")


@torch.no_grad()
def depth(name, network, pictures, tensors, rounding):
    folder = f"{OUT}/{name}"
    network.config.save_pretrained(folder)
    processor = DPTImageProcessorPil(**PROCESSORS[name])
    config = processor.to_dict() | {"image_processor_type": "DPTImageProcessor"}
    with open(f"{folder}/preprocessor_config.json", "w") as f:
        json.dump(config, f, indent=2, default=list)
        f.write("\n")
    side = PROCESSORS[name]["size"]["height"]
    session = export(Depth(network), "pixel_values", "predicted_depth", torch.randn(1, 3, side, side),
                     f"{folder}/model.onnx", fixed=name == "dpt")
    double = Depth(network).double()
    for which, rgb in pictures.items():
        pixels = processor(rgb, return_tensors="np")["pixel_values"].astype(np.float32)
        answer = session.run(None, {"pixel_values": pixels})[0]
        exact = double(torch.from_numpy(pixels).double()).numpy()
        # transformers' pipeline "depth-estimation": post_process_depth_estimation, then postprocess
        grow = lambda d: torch.nn.functional.interpolate(torch.from_numpy(d)[None], size=rgb.shape[:2], mode="bicubic",
                                                         align_corners=False)[0, 0].numpy()
        unit = lambda d: (d - d.min()) / (d.max() - d.min())
        grown, key = unit(grow(answer)), f"{name}.{which}"
        print(f"  {key}: {pixels.shape[2:]} -> {answer.shape}, from {answer.min():.3f} to {answer.max():.3f}")
        assert answer.std() > 0.02 * np.abs(answer).max(), "the picture must show"
        tensors |= {f"{key}.pixels": torch.from_numpy(pixels), f"{key}.answer": torch.from_numpy(answer),
                    f"{key}.unit": torch.from_numpy(grown),
                    f"{key}.image": torch.from_numpy((grown * 255).astype("uint8"))}
        rounding |= {f"{key}.answer": off(answer, exact), f"{key}.unit": off(grown, unit(grow(exact))),
                     f"{key}.pixels": 0.0}


@torch.no_grad()
def lineart(pictures, tensors, rounding):
    network = randomise(Generator(), 3)
    session = export(network, "image", "line", torch.rand(1, 3, 64, 64), f"{OUT}/lineart.onnx")
    double = network.double()
    for which, rgb in pictures.items():
        # controlnet_aux's LineartDetector, at the picture's own size
        image = (rgb.astype(np.float32) / 255).transpose(2, 0, 1)[None]
        line = session.run(None, {"image": image})[0][0, 0]
        exact = double(torch.from_numpy(image).double())[0, 0].numpy()
        drawn = 255 - (line * 255.0).clip(0, 255).astype(np.uint8)
        print(f"  lineart.{which}: from {line.min():.3f} to {line.max():.3f}")
        assert line.std() > 0.05
        tensors |= {f"lineart.{which}.line": torch.from_numpy(line), f"lineart.{which}.image": torch.from_numpy(drawn)}
        rounding[f"lineart.{which}.line"] = off(line, exact)


def canny(tensors):
    """OpenCV's, of colour pictures as controlnet_aux's CannyDetector calls it, with the ControlNet authors' thresholds."""
    noise = np.random.default_rng(4).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    pictures = {"photograph": photograph(160, 80).numpy(), "noise": noise, "smooth": cv2.GaussianBlur(noise, (5, 5), 2),
                "bars": np.tile(np.repeat(np.array([0, 90, 255, 30], np.uint8), 5)[None, :, None], (9, 2, 3)),
                "thin": noise[:1], "dot": noise[:1, :1]}
    for which, rgb in pictures.items():
        tensors[f"canny.{which}.rgb"] = torch.from_numpy(rgb.copy())
        for low, high in ((100, 200), (40, 90)):
            edges = cv2.Canny(rgb, low, high)
            print(f"  canny.{which} {low}/{high}: {np.mean(edges > 0):.1%} white")
            tensors[f"canny.{which}.{low}-{high}"] = torch.from_numpy(edges)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    pictures = {"wide": photograph(64, 32).numpy(), "tall": photograph(96, 48).numpy()[:, 20:52].copy()}
    tensors = {f"{which}.rgb": torch.from_numpy(rgb) for which, rgb in pictures.items()}
    rounding = {}
    for name, network in estimators().items():
        depth(name, network, pictures, tensors, rounding)
    lineart(pictures, tensors, rounding)
    canny(tensors)
    versions = {"opencv": cv2.__version__, "onnxruntime": onnxruntime.__version__}
    write(f"{OUT}/controls.safetensors", tensors, {"rounding": rounding, "tools": versions}, 400_000)
    total = sum(os.path.getsize(os.path.join(root, file)) for root, _, files in os.walk(OUT) for file in files)
    print(f"{OUT}: {total} bytes")
    assert total < 1_000_000
    for root, _, files in os.walk(OUT):
        for file in files:
            os.chmod(os.path.join(root, file), 0o644)


main()
