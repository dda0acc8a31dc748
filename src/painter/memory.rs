//! Which networks are in memory at the same time.

use crate::Result;
use crate::bundle::Bundle;
use candle_core::DType;

/// Feature maps of half precision take about so many bytes for each pixel of a picture, in the VAE's finest level as in
/// the UNet with four branches of guidance: counted at 512x512, Stable Diffusion 1.5.
const BYTES_A_PIXEL: u64 = 2 << 10;

/// How the parts of a model share its target's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residency {
    /// Weights lie mapped: what is not in use costs nothing, and parts go out and come in by the page.
    Mapped,
    /// Everything fits and stays.
    Together,
    /// The VAE makes room for the denoiser and the denoiser for the VAE.
    InTurn,
}

impl Residency {
    pub(super) fn of(bundle: &Bundle) -> Result<Self> {
        let target = bundle.target();
        Ok(match target.memory_bytes() {
            _ if target.is_cpu() => Residency::Mapped,
            Some(budget) if needed(bundle)? > budget => Residency::InTurn,
            _ => Residency::Together,
        })
    }
}

/// Bytes of all weights on a GPU and of the maps of a picture of the size the model was trained with.
fn needed(bundle: &Bundle) -> Result<u64> {
    let whole = if bundle.target().numbers() == DType::F32 { 4 } else { 2 };
    let mut bytes = (bundle.native_size() as u64).pow(2) * BYTES_A_PIXEL * whole / 2;
    let controlnets = bundle.controlnets.iter().map(|net| net.part.as_str());
    for part in ["text_encoder", "unet"].into_iter().chain(controlnets) {
        let weights = bundle.weights(part)?;
        // bundles are uploaded as they are stored, other models in the target's numbers
        bytes += if bundle.manifest.is_some() { weights.bytes() } else { weights.parameters() as u64 * whole };
    }
    Ok(bytes + bundle.vae_parameters()? * whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn atelier() -> Bundle {
        Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/atelier")).unwrap()
    }

    #[test]
    fn a_processor_maps_whatever_the_budget() {
        let target = atelier().target().clone().with_memory(Some(1));
        assert_eq!(Residency::of(&atelier().on(target)).unwrap(), Residency::Mapped);
    }

    #[test]
    fn the_need_counts_every_weight_and_the_maps() {
        let bundle = atelier();
        let parts = ["text_encoder", "unet", "controlnet"];
        let stored: usize = parts.iter().map(|part| bundle.weights(part).unwrap().parameters()).sum();
        let maps = (bundle.native_size() * bundle.native_size()) as u64 * BYTES_A_PIXEL;
        let (whole, vae) = (needed(&bundle).unwrap(), bundle.vae_parameters().unwrap());
        // a target's numbers are f32 on the processor
        assert_eq!(whole, 4 * (stored as u64 + vae) + 2 * maps);
        assert!(vae > 1_000_000 && vae < 20_000_000, "{vae}");
    }
}
