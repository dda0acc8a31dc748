"""The VAE of a diffusers folder as the two ONNX files that pleinair opens: `export_vae.py FOLDER`.

Writes FOLDER/vae/encoder.onnx (`image` [B, 3, H, W] in [-1, 1] to `moments` [B, 8, H/f, W/f], mean and log-variance, not
scaled) and FOLDER/vae/decoder.onnx (`latent` [B, 4, h, w] already divided by the scaling factor, to `image`). Needs the
versions in requirements.txt.
"""
import os
import sys

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers import AutoencoderKL
from onnx import TensorProto, helper, numpy_helper


class Encoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, image):
        return self.vae.quant_conv(self.vae.encoder(image))


class Decoder(Encoder):
    def forward(self, latent):
        return self.vae.decoder(self.vae.post_quant_conv(latent))


def halve(path):
    """Store float32 initialisers as float16 with a Cast in front of their use, as the default model's ONNX files do."""
    model = onnx.load(path)
    casts, kept = [], []
    for init in model.graph.initializer:
        array = numpy_helper.to_array(init)
        if init.data_type == TensorProto.FLOAT and array.size > 64:
            kept.append(numpy_helper.from_array(array.astype(np.float16), init.name + "_f16"))
            casts.append(helper.make_node("Cast", [init.name + "_f16"], [init.name], to=TensorProto.FLOAT))
        else:
            kept.append(init)
    nodes = casts + list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept), model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_onnx(module, name_in, name_out, example, path):
    """Free batch, height and width; compared with PyTorch at two sizes."""
    torch.onnx.export(module, (example,), path, input_names=[name_in], output_names=[name_out], opset_version=17,
                      dynamo=False, dynamic_axes={name_in: {0: "batch", 2: "height", 3: "width"},
                                                  name_out: {0: "batch", 2: "out_height", 3: "out_width"}})
    halve(path)
    session, (h, w) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), example.shape[2:]
    for batch, height, width in ((1, h, w), (2, h * 2, w * 3)):
        x = torch.randn(batch, example.shape[1], height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            expected = module(x).numpy()
        difference = np.abs(session.run(None, {name_in: x.numpy()})[0] - expected).max()
        print(f"  {os.path.basename(path)} {batch}x{height}x{width}: largest difference from PyTorch {difference:.1e}")
        assert difference <= 1e-5 * np.abs(expected).max() + 1e-5


def export(vae, folder):
    """Both files, from a float32 AutoencoderKL."""
    side = 8 * 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    write_onnx(Encoder(vae), "image", "moments", torch.randn(1, 3, side, side), f"{folder}/encoder.onnx")
    write_onnx(Decoder(vae), "latent", "image", torch.randn(1, channels, 8, 8), f"{folder}/decoder.onnx")


if __name__ == "__main__":
    place = os.path.join(sys.argv[1], "vae")
    export(AutoencoderKL.from_pretrained(place, torch_dtype=torch.float32).eval().requires_grad_(False), place)
