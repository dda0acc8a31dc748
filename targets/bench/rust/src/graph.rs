//! The same UNet as an ONNX graph in tract, optimised for one size and run on all cores.

use crate::{Arguments, TIMESTEP, noise};
use anyhow::{Context, Result};
use std::sync::Arc;
use tract_core::prelude::*;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{Framework, InferenceModelExt};

pub(crate) struct Unet {
    plan: Arc<TypedRunnableModel>,
    latent: Tensor,
    states: Tensor,
    threads: Executor,
}

impl Unet {
    pub(crate) fn open(arguments: &Arguments) -> Result<Self> {
        let file = arguments.work.join("tract/unet.onnx");
        let (latent, states) = (arguments.latent(), arguments.states());
        let plan = tract_onnx::onnx()
            .model_for_path(&file)
            .context("the graph cannot be read; contestants.py prepare tract-f32 makes it")?
            .with_input_fact(0, f32::fact(latent).into())?
            .with_input_fact(1, i64::fact([0usize; 0]).into())?
            .with_input_fact(2, f32::fact(states).into())?
            .into_optimized()?
            .into_runnable()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Unet {
            plan,
            latent: Tensor::from_shape(&latent, &noise(0, latent.iter().product()))?,
            states: Tensor::from_shape(&states, &noise(1, states.iter().product()))?,
            threads: Executor::multithread_with_name(cores, "tract"),
        })
    }

    pub(crate) fn run(&self) -> Result<Vec<f32>> {
        let inputs = tvec!(
            self.latent.clone().into_tvalue(),
            tensor0(TIMESTEP).into_tvalue(),
            self.states.clone().into_tvalue()
        );
        let outputs = multithread_tract_scope(self.threads.clone(), || self.plan.run(inputs))?;
        let output = outputs.first().context("tract gave no output")?;
        Ok(output.to_plain_array_view::<f32>()?.iter().copied().collect())
    }
}
