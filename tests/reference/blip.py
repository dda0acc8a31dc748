"""Makes tests/fixtures/captioners: two small random BLIPs, and what transformers answers with them.

    python tests/reference/blip.py

`base/` is as transformers 5 saves it: float16 safetensors without what is tied, `tokenizer.json`, `preprocessor_config.json`; its
configuration says only what differs from the defaults of transformers. `large/` has a vision tower wider and deeper than its
text decoder, as BLIP large has, and the form of older checkpoints: `pytorch_model.bin` with every tied tensor, buffers and a
head that captions do not need; `vocab.txt` alone.

`captioners.safetensors`, for each NAME of the two: `rgb.{k}` U8 [H, W, 3], `NAME.pixels.{k}` [1, 3, S, S], `NAME.features.{k}`
[1, N, D], `NAME.tokens.{k}` I64 [L] (greedy, from the first token to the last), `NAME.logits.{k}` [L, V], of every token
after those before it. Its `recipe`: `NAME.caption.{k}`, `decoded` (ids of `base` and their text), `rounding`. Checks that the captions
differ, that one ends by itself and one at the length limit, that no choice of a token is closer than float32 can tell,
and that every tensor matters but keys' biases, which softmax cancels.
"""
import json
import os
import shutil

import numpy as np
import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from model import FIXTURES, PHOTOGRAPH, rounding, write
from PIL import Image

FOLDER = os.path.join(FIXTURES, "captioners")
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] . , ? ! ' - a an the of on in with and painting drawing house boat tree sea sky man woman dog
cat red blue old small field river bridge night s m t n do not it is ##s ##ing ##ed ##er ##t village mountain flower vase table""".split()
BASE = dict(
    text_config=dict(vocab_size=len(WORDS) + 2, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
                     max_position_embeddings=24, bos_token_id=len(WORDS), sep_token_id=3),
    vision_config=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=32,
                       patch_size=8))
LARGE = dict(
    text_config=dict(vocab_size=len(WORDS) + 2, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
                     max_position_embeddings=32, bos_token_id=len(WORDS), sep_token_id=3, layer_norm_eps=1e-6,
                     hidden_act="gelu_new"),
    vision_config=dict(hidden_size=40, intermediate_size=32, num_hidden_layers=3, num_attention_heads=5, image_size=30,
                       patch_size=6, layer_norm_eps=1e-4))
MODELS = {"base": (BASE, 7), "large": (LARGE, 75)}
# runs of words that clean-up joins, and ids that are not words
DECODED = ["a house , a boat and a tree .", "it is a dog ' s house ! is it ? do not", "cat ##s and dog ##s paint ##ing", "a red ' boat ' n't",
           "old - man [SEP] a [MASK] village do not it ' m a 's"]


def random_blip(config, generator):
    """Weights large enough that pictures and words before decide what comes next."""
    blip = BlipForConditionalGeneration(BlipConfig(**config)).eval().requires_grad_(False)
    for name, tensor in blip.named_parameters():
        norm = "norm" in name.lower()
        std = 0.3 if tensor.dim() == 1 else 1.6 / tensor[0].numel() ** 0.5
        if "embedding" in name and "patch" not in name:
            std = 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + (1 if norm and name.endswith("weight") else 0))
        tensor.copy_(tensor.half().float())
    blip.tie_weights()
    return blip


def pictures():
    """u8 [H, W, 3]: the photograph, small, and waves with bars."""
    photograph = np.array(Image.open(PHOTOGRAPH).convert("RGB").resize((60, 41), Image.LANCZOS))
    y, x = np.mgrid[0:50, 0:27]
    waves = (127 + 127 * np.sin(np.stack([x / 3, y / 5, (x + y) / 4], -1))).astype(np.uint8)
    waves[10:14] = 255
    waves[:, 20:23] = 0
    upright = np.ascontiguousarray(photograph[:30, :30].transpose(1, 0, 2))[:, :, ::-1]
    return [photograph, waves, np.ascontiguousarray(upright)]


def processor_of(config):
    side = config["vision_config"]["image_size"]
    return BlipImageProcessorPil(size={"height": side, "width": side})


def answers(blip, inputs, tokens):
    dtype = blip.dtype
    found = {}
    for k, x in enumerate(inputs):
        features = blip.vision_model(x.to(dtype))[0]
        logits = blip.text_decoder(input_ids=tokens[k][None, :-1], encoder_hidden_states=features, is_decoder=True).logits
        found |= {f"features.{k}": features, f"logits.{k}": logits[0]}
    return found


def check(blip, inputs, tokens, single):
    for k in range(len(inputs)):
        best = single[f"logits.{k}"].topk(2, -1).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3, "a token is chosen by a hair"
        assert (single[f"logits.{k}"].argmax(-1) == tokens[k][1:]).all()
    for name, tensor in blip.named_parameters():
        kept = tensor.clone()
        tensor.zero_()
        change = max((v - single[key]).abs().max() for key, v in answers(blip, inputs, tokens).items())
        tensor.copy_(kept)
        assert change > 1e-3 or name.endswith("key.bias"), f"{name} changes nothing: {change}"


def sparse(config, blip):
    """What an economical config.json says."""
    return {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], **config}


def save(name, config, blip):
    folder = f"{FOLDER}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    vocabulary = f"{folder}/vocab.txt"
    open(vocabulary, "w").write("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    if name == "base":
        blip.half().save_pretrained(folder)
        blip.float()
        tokenizer.save_pretrained(folder)
        for unread in ["generation_config.json", "tokenizer_config.json", "vocab.txt"]:
            if os.path.exists(f"{folder}/{unread}"):
                os.remove(f"{folder}/{unread}")
        processor_of(config).save_pretrained(folder)
        os.chmod(f"{folder}/model.safetensors", 0o644)
    else:
        # as older releases saved it
        more = {"text_decoder.bert.embeddings.position_ids": torch.arange(32)[None], "itm_head.weight": torch.ones(2, 3)}
        torch.save({k: v.half() for k, v in blip.state_dict().items()} | more, f"{folder}/pytorch_model.bin")
        side = config["vision_config"]["image_size"]
        says = {"do_normalize": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_processor_type": "BlipImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3, "rescale_factor": 1 / 255, "size": side}
        json.dump(says, open(f"{folder}/preprocessor_config.json", "w"), indent=1)
    json.dump(sparse(config, blip), open(f"{folder}/config.json", "w"), indent=1)
    return tokenizer


tensors = {f"rgb.{k}": torch.from_numpy(rgb) for k, rgb in enumerate(pictures())}
recipe, lengths, far = {}, set(), {}
for name, (config, seed) in MODELS.items():
    blip = random_blip(config, torch.Generator().manual_seed(seed))
    tokenizer = save(name, config, blip)
    inputs = [processor_of(config)(Image.fromarray(rgb), return_tensors="pt").pixel_values for rgb in pictures()]
    tokens = [blip.generate(x)[0] for x in inputs]
    single = answers(blip, inputs, tokens)
    check(blip, inputs, tokens, single)
    again = BlipForConditionalGeneration.from_pretrained(f"{FOLDER}/{name}", dtype=torch.float32).eval()
    assert all((again.generate(x)[0] == t).all() for x, t in zip(inputs, tokens)), "saved and opened it says the same"
    far |= {f"{name}.{k}": v for k, v in rounding(single, answers(blip.double(), inputs, tokens)).items()}
    tensors |= {f"{name}.{k}": v for k, v in single.items()}
    for k, (x, t) in enumerate(zip(inputs, tokens)):
        tensors |= {f"{name}.tokens.{k}": t} | ({f"{name}.pixels.{k}": x} if k < (2 if name == "base" else 1) else {})
        recipe[f"{name}.caption.{k}"] = tokenizer.decode(t, skip_special_tokens=True)
        lengths.add((len(t) == 21, int(t[-1]) == 3))
        print(name, k, t.tolist(), recipe[f"{name}.caption.{k}"])
    assert len({recipe[f"{name}.caption.{k}"] for k in range(3)}) > 1
    if name == "base":
        ids = [[WORDS.index(w) if w in WORDS else 1 for w in text.split()] for text in DECODED] + [[len(WORDS) + 1, 11, 19, 5000, 3]]
        recipe["decoded"] = [[each, tokenizer.decode(each, skip_special_tokens=True)] for each in ids]
        print(recipe["decoded"])
assert lengths >= {(True, False), (False, True)}, lengths
recipe |= {"rounding": far, "models": {name: {"seed": seed, "config": config} for name, (config, seed) in MODELS.items()}}
write(f"{FIXTURES}/captioners.safetensors", tensors, recipe, limit=200_000)
