//! A frozen model given as ONNX, in tract.

use crate::{Error, Result};
use candle_core::Device;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use tract_core::prelude::*;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{Framework, InferenceModel, InferenceModelExt};

type Plan = Arc<TypedRunnableModel>;

/// One ONNX file and its plans: optimised once for each size of the input, and kept.
pub(super) struct OnnxModel {
    path: PathBuf,
    model: InferenceModel,
    plans: Mutex<HashMap<Vec<usize>, Plan>>,
    /// Made for the first run.
    threads: OnceLock<Executor>,
}

impl std::fmt::Debug for OnnxModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.fmt(f)
    }
}

impl OnnxModel {
    /// Reads the file.
    ///
    /// # Errors
    /// If it is not ONNX.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let model =
            super::expand::onnx().model_for_path(path).map_err(|e| Error::file(path, format!("not ONNX: {e:#}")))?;
        Ok(OnnxModel { path: path.to_path_buf(), model, plans: Mutex::default(), threads: OnceLock::new() })
    }

    /// The answer of a VAE's encoder to `pixels: [B, 3, H, W]`.
    ///
    /// # Errors
    /// If it does not have that many channels.
    pub(super) fn moments(&self, pixels: &candle_core::Tensor, wanted: usize) -> Result<candle_core::Tensor> {
        let moments = self.run(pixels)?;
        match moments.dim(1)? {
            channels if channels == wanted => Ok(moments),
            channels => {
                let what = format!("answers with {channels} channels, wanted {wanted} moments (mean and log-variance)");
                Err(Error::file(&self.path, what))
            }
        }
    }

    /// What is wrong with what the network does.
    pub(super) fn fault(&self, what: String) -> Error {
        Error::file(&self.path, what)
    }

    fn plan(&self, dims: &[usize]) -> Result<Plan> {
        let mut plans = self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(plan) = plans.get(dims) {
            return Ok(plan.clone());
        }
        let plan = self
            .model
            .clone()
            .with_input_fact(0, f32::fact(dims).into())
            .and_then(|m| m.into_optimized())
            .and_then(|m| m.into_runnable())
            .map_err(|e| Error::file(&self.path, format!("does not run on an input of {dims:?}: {e:#}")))?;
        plans.insert(dims.to_vec(), plan.clone());
        Ok(plan)
    }

    /// The first output for the only input, both f32.
    ///
    /// # Errors
    /// If the model does not take an input of that shape.
    pub(super) fn run(&self, input: &candle_core::Tensor) -> Result<candle_core::Tensor> {
        let failed = |e: TractError| Error::Side(format!("{}: {e:#}", self.path.display()));
        let plan = self.plan(input.dims())?;
        let values = input.flatten_all()?.to_vec1::<f32>()?;
        let input = tract_core::prelude::Tensor::from_shape(input.dims(), &values).map_err(failed)?;
        let threads = self.threads.get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Executor::multithread_with_name(cores, "tract")
        });
        let outputs =
            multithread_tract_scope(threads.clone(), || plan.run(tvec!(input.into_tvalue()))).map_err(failed)?;
        let output = outputs.first().ok_or_else(|| Error::Side(format!("{}: no output", self.path.display())))?;
        let view = output.to_plain_array_view::<f32>().map_err(failed)?;
        let values: Vec<f32> = view.iter().copied().collect();
        Ok(candle_core::Tensor::from_vec(values, output.shape(), &Device::Cpu)?)
    }
}
