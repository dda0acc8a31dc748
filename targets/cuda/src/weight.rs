//! The frozen matrix of a linear layer or a convolution in the GPU's memory, in the type that it is given.

use crate::gemm::Stored;
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Device, Result, bail};
use half::f16;

/// `W: [outputs, inputs]`. A 3x3 convolution has `inputs = 9 * in`, ordered (ky, kx, in).
#[derive(Debug)]
pub struct Weight {
    device: CudaDevice,
    outputs: usize,
    inputs: usize,
    numbers: Numbers,
}

/// The numbers of a weight in main memory, `[outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// As they are.
    F16(&'a [f16]),
    /// Symmetric int8: `W[o, i] = rows[o, i] * scales[o] / smooth[i]`.
    Int8 {
        /// In -127..=127.
        rows: &'a [i8],
        /// `[outputs]`.
        scales: &'a [f32],
        /// One number a channel, `[inputs]` or, for a 3x3 convolution, `[inputs / 9]`; none where all would be 1.
        smooth: Option<&'a [f32]>,
    },
}

/// The same on the GPU.
#[derive(Debug)]
enum Numbers {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Int8(Int8),
}

/// The scales and reciprocals are multiplied with powers of two that bring the largest of each into [128, 256): times an
/// int8 they then fit in f16, which is what the tensor cores multiply. `unit` undoes both, exactly.
#[derive(Debug)]
struct Int8 {
    rows: CudaSlice<i8>,
    scales: CudaSlice<f32>,
    /// Of the smoothing.
    reciprocals: Option<CudaSlice<f32>>,
    channels: Option<usize>,
    unit: f32,
}

/// What an int8 matrix is multiplied with beside itself: `factors` as its numbers are read, one a channel that is summed
/// over, and `scales` after the sum, one a column of the result, and `unit`.
pub(crate) struct Scaling<'a> {
    pub(crate) factors: Option<&'a CudaSlice<f32>>,
    pub(crate) scales: Option<&'a CudaSlice<f32>>,
    pub(crate) unit: f32,
}

/// Which way a layer is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Sums over the inputs.
    Forward,
    /// Sums over the outputs.
    Backward,
}

impl Weight {
    /// Copies the numbers to the GPU.
    ///
    /// # Errors
    /// If `device` is no CUDA device or out of memory; if there are not exactly as many numbers as the shape asks for; if
    /// a scale or smoothing is not finite, or a smoothing is zero.
    pub fn new(device: &Device, outputs: usize, inputs: usize, values: Values<'_>) -> Result<Self> {
        let Device::Cuda(device) = device else {
            bail!("a weight for CUDA kernels needs a CUDA device, got {device:?}")
        };
        let smooth_fits = |smooth: &[f32]| smooth.len() == inputs || 9 * smooth.len() == inputs;
        let fits = match values {
            Values::F32(values) => values.len() == outputs * inputs,
            Values::F16(values) => values.len() == outputs * inputs,
            Values::Int8 { rows, scales, smooth } => {
                rows.len() == outputs * inputs && scales.len() == outputs && smooth.is_none_or(smooth_fits)
            }
        };
        if !fits || outputs == 0 || inputs == 0 {
            bail!("a weight of {outputs} x {inputs} got another number of values")
        }
        let numbers = match values {
            Values::F32(values) => Numbers::F32(device.clone_htod(values)?),
            Values::F16(values) => Numbers::F16(device.clone_htod(values)?),
            Values::Int8 { rows, scales, smooth } => Numbers::Int8(Int8::new(device, rows, scales, smooth)?),
        };
        // the caller may drop its numbers now, which where GPU and processor share memory are perhaps still being copied
        device.synchronize()?;
        Ok(Weight { device: device.clone(), outputs, inputs, numbers })
    }

    /// Rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Of the GPU's memory.
    pub fn bytes(&self) -> usize {
        match &self.numbers {
            Numbers::F32(values) => values.num_bytes(),
            Numbers::F16(values) => values.num_bytes(),
            Numbers::Int8(int8) => {
                int8.rows.num_bytes()
                    + int8.scales.num_bytes()
                    + int8.reciprocals.as_ref().map_or(0, CudaSlice::num_bytes)
            }
        }
    }

    /// The numbers themselves.
    pub(crate) fn stored(&self) -> Stored<'_> {
        match &self.numbers {
            Numbers::F32(values) => Stored::F32(values.as_view()),
            Numbers::F16(values) => Stored::F16(values.as_view()),
            Numbers::Int8(int8) => Stored::Int8(int8.rows.as_view()),
        }
    }

    /// What belongs to them.
    pub(crate) fn scaling(&self, direction: Direction) -> Scaling<'_> {
        let Numbers::Int8(Int8 { scales, reciprocals, unit, .. }) = &self.numbers else {
            return Scaling { factors: None, scales: None, unit: 1.0 };
        };
        let (scales, reciprocals, unit) = (Some(scales), reciprocals.as_ref(), *unit);
        match direction {
            Direction::Forward => Scaling { factors: reciprocals, scales, unit },
            Direction::Backward => Scaling { factors: scales, scales: reciprocals, unit },
        }
    }

    /// Whether a layer of so many channels on `device` can use it.
    ///
    /// # Errors
    /// If it lies on another device or is smoothed for other channels.
    pub(crate) fn check(&self, device: &CudaDevice, channels: usize) -> Result<()> {
        if !self.device.same_device(device) {
            bail!("a frozen layer got an input on another device than its weight: open one device for both")
        }
        match &self.numbers {
            Numbers::Int8(Int8 { channels: Some(smoothed), .. }) if *smoothed != channels => {
                bail!("a frozen layer of {channels} channels has a weight smoothed for {smoothed}")
            }
            _ => Ok(()),
        }
    }
}

impl Int8 {
    fn new(device: &CudaDevice, rows: &[i8], scales: &[f32], smooth: Option<&[f32]>) -> Result<Self> {
        let (scales, mut unit) = fit(scales.to_vec())?;
        let reciprocals = match smooth {
            None => None,
            Some(smooth) => {
                let (reciprocals, more) = fit(smooth.iter().map(|s| 1.0 / s).collect())?;
                unit *= more;
                Some(device.clone_htod(&reciprocals)?)
            }
        };
        let channels = smooth.map(<[f32]>::len);
        Ok(Int8 { rows: device.clone_htod(rows)?, scales: device.clone_htod(&scales)?, reciprocals, channels, unit })
    }
}

/// The numbers times the power of two that brings the largest into [128, 256), and one over it.
fn fit(mut numbers: Vec<f32>) -> Result<(Vec<f32>, f32)> {
    if !numbers.iter().all(|n| n.is_finite()) {
        bail!("an int8 weight has a scale or a smoothing that is not finite: the file is damaged")
    }
    let most = numbers.iter().fold(0.0f32, |most, n| most.max(n.abs()));
    if most < 1e-30 {
        return Ok((numbers, 1.0)); // a matrix of zeros, as far as f16 can tell
    }
    let mut unit = 1.0f32;
    while most / unit >= 256.0 {
        unit *= 2.0;
    }
    while most / unit < 128.0 {
        unit /= 2.0;
    }
    numbers.iter_mut().for_each(|n| *n /= unit);
    Ok((numbers, unit))
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn scales_fit_in_f16_and_come_back_exactly() {
        for most in [1.1e-30f32, 1e-6, 0.013, 127.9, 128.0, 255.9, 256.0, 3e4, 1e30] {
            let numbers = vec![most, -most / 3.0, most / 1000.0];
            let (fitted, unit) = fit(numbers.clone()).unwrap();
            assert!((128.0..256.0).contains(&fitted[0]), "{most}: {}", fitted[0]);
            assert_eq!(fitted.iter().map(|n| n * unit).collect::<Vec<_>>(), numbers);
        }
        for nothing in [0.0, 1e-45] {
            assert_eq!(fit(vec![nothing; 3]).unwrap(), (vec![nothing; 3], 1.0));
        }
        assert!(fit(vec![1.0, f32::NAN]).is_err());
        assert!(fit(vec![f32::INFINITY]).is_err());
    }
}
