//! Models that cannot be converted: everything that is wrong is named, and nothing appears.

use super::*;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";
const CONTROLNET: &str = "controlnet/diffusion_pytorch_model.safetensors";

#[test]
fn tensors_that_are_missing_or_misshapen_are_named_all_at_once() {
    let studio = Studio::new();
    let model = studio.synth(1, "model");
    edit(&model.join(UNET), |tensors| {
        tensors.remove("conv_in.bias").unwrap();
        tensors.remove("mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight").unwrap();
        let conv = tensors.get_mut("up_blocks.1.resnets.0.conv1.weight").unwrap();
        conv.1.swap(0, 1);
    });
    edit(&model.join(TEXT), |tensors| drop(tensors.remove("text_model.final_layer_norm.weight").unwrap()));
    edit(&model.join(CONTROLNET), |tensors| drop(tensors.remove("controlnet_down_blocks.3.weight").unwrap()));
    let words = [
        "unet: tensor conv_in.bias [16] is missing",
        "unet: tensor mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight [32, 32] is missing",
        "unet: tensor up_blocks.1.resnets.0.conv1.weight has the shape [64, 32, 3, 3], wanted [32, 64, 3, 3]",
        "text_encoder: tensor text_model.final_layer_norm.weight [32] is missing",
        "controlnet: tensor controlnet_down_blocks.3.weight [16, 16, 1, 1] is missing",
        model.to_str().unwrap(),
    ];
    let error = studio.refuses(&model, "int8", &[], &words);
    assert!(matches!(&error, Error::Model { problems, .. } if problems.len() == 5), "{error}");
}

#[test]
fn the_vaes_missing_tensors_are_named_all_at_once() {
    let studio = Studio::new();
    let model = studio.synth(1, "model");
    edit(&model.join(VAE), |tensors| {
        tensors.remove("decoder.conv_in.weight").unwrap();
        tensors.remove("decoder.mid_block.resnets.1.norm2.bias").unwrap();
    });
    let words = ["decoder.conv_in.weight is missing", "decoder.mid_block.resnets.1.norm2.bias is missing"];
    studio.refuses(&model, "f16", &[], &words);
}

#[test]
fn numbers_that_are_none_are_refused_wherever_they_are() {
    let studio = Studio::new();
    for (i, (file, tensor)) in [
        (UNET, "mid_block.resnets.0.conv1.weight"),
        (UNET, "conv_norm_out.bias"),
        (CONTROLNET, "mid_block.resnets.0.conv1.weight"),
        (TEXT, "text_model.embeddings.token_embedding.weight"),
        (VAE, "decoder.conv_out.weight"),
    ]
    .into_iter()
    .enumerate()
    {
        let model = studio.synth(1, &format!("model{i}"));
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            edit(&model.join(file), |tensors| set_first(tensors, tensor, bad));
            for dtype in ["int8", "f32"] {
                studio.refuses(&model, dtype, &[], &[tensor, "finite"]);
            }
        }
    }
}

/// f16 ends at 65504; what rounds to it is no fault.
#[test]
fn values_beyond_f16_are_refused_with_a_remedy_that_works() {
    let studio = Studio::new();
    let model = studio.synth(1, "model");
    let (layer, tensor) = ("mid_block.resnets.0.conv1", "mid_block.resnets.0.conv1.weight");
    edit(&model.join(UNET), |tensors| set_first(tensors, tensor, 65519.0));
    studio.convert(&model, "f16", &[], "just fits");
    edit(&model.join(UNET), |tensors| set_first(tensors, tensor, -65520.0));
    let error = studio.refuses(&model, "f16", &[], &["unet.mid_block.resnets.0.conv1.weight", "65504", "--keep"]);
    let text = error.to_string();
    let rule = text.split("--keep '").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(rule, "unet.mid_block.resnets.0.conv1=f32");
    let bundle = studio.convert(&model, "f16", &["--keep", rule], "kept");
    let kept = &manifest(&bundle).unet.layers[layer];
    assert_eq!(kept.dtype, pleinair::bundle::manifest::Dtype::F32);
    let weights = pleinair::bundle::weights::Weights::map(&bundle, "unet").unwrap();
    let row = weights.root().pp(layer).kernel3x3(32, 32).unwrap().weight().row(0);
    assert_eq!(row[0], -65520.0);
    // int8 has a scale for it
    studio.convert(&model, "int8", &[], "int8");

    // what no rule reaches is told the other remedy, which works too
    edit(&model.join(UNET), |tensors| set_first(tensors, "conv_norm_out.bias", 1e6));
    studio.refuses(&model, "int8", &[], &["unet.conv_norm_out.bias", "--dtype f32"]);
    studio.convert(&model, "f32", &[], "f32");
}

#[test]
fn a_vae_beyond_f16_is_refused_with_a_remedy_that_works() {
    let studio = Studio::new();
    let model = studio.synth(1, "model");
    edit(&model.join(VAE), |tensors| set_first(tensors, "decoder.mid_block.resnets.0.conv1.weight", 1e5));
    studio.refuses(
        &model,
        "int8",
        &[],
        &["decoder.mid_block.resnets.0.conv1.weight", "too large for f16", "--dtype f32"],
    );
    studio.convert(&model, "f32", &[], "f32");
}

/// A tensor too many may be a part of a network that the configuration does not speak of: it is left out, and said so.
#[test]
fn tensors_that_are_not_used_are_noted() {
    let studio = Studio::new();
    let model = studio.copy(&tiny(), "model");
    edit(&model.join(CONTROLNET), |tensors| {
        let copy = tensors["conv_in.weight"].clone();
        tensors.insert("conv_inn.weight".into(), copy);
    });
    let summary = studio.try_convert(&model, "int8", &[], "bundle").unwrap();
    assert!(matches!(&summary.warnings[..], [one] if one.contains("controlnet") && one.contains("conv_inn.weight")));
    let run = studio.run(&["convert", "--from", "model", "--dtype", "f16", "--out", "again"]);
    run.ended(0, &["note: ", "conv_inn.weight"]);
    assert!(studio.try_convert(&tiny(), "int8", &[], "plain").unwrap().warnings.is_empty());
}

#[test]
fn other_architectures_and_files_that_are_no_models_are_named() {
    let studio = Studio::new();
    let model = studio.copy(&tiny(), "model");
    set(&model.join("unet/config.json"), "addition_embed_type", "text_time".into());
    studio.refuses(&model, "int8", &[], &["addition_embed_type", "not supported"]);
    set(&model.join("model_index.json"), "_class_name", "StableDiffusionXLPipeline".into());
    studio.refuses(&model, "int8", &[], &["StableDiffusionXLPipeline", "supported are Stable Diffusion 1.x"]);
    studio.refuses(&studio.path("nowhere"), "int8", &[], &["nowhere"]);
    std::fs::write(studio.path("text.safetensors"), "this is no model").unwrap();
    studio.refuses(&studio.path("text.safetensors"), "int8", &[], &["text.safetensors"]);
    std::fs::create_dir(studio.path("photographs")).unwrap();
    studio.refuses(&studio.path("photographs"), "int8", &[], &["photographs"]);

    let half = studio.copy(&tiny(), "half");
    let file = half.join(CONTROLNET);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    studio.refuses(&half, "int8", &[], &["diffusion_pytorch_model.safetensors", "cut off"]);
    std::fs::remove_file(&file).unwrap();
    studio.refuses(&half, "int8", &[], &["controlnet"]);
}

/// A bundle is no source: its weights are not what they were.
#[test]
fn a_bundle_is_not_converted_again() {
    let studio = Studio::new();
    let bundle = studio.convert(&tiny(), "int8", &[], "bundle");
    studio.refuses(&bundle, "f16", &[], &["is a bundle", "convert what it was made from"]);
}
