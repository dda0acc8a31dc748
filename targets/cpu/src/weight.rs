//! The frozen matrix of a linear layer or a convolution, as it lies on the disk: f32, f16, bf16 or int8.

use crate::int8::{PackedWeight, pack};
use crate::isa::{self, Isa};
use crate::mapped::Numbers;
use crate::wide::Precision;
use candle_core::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::OnceLock;

/// `W: [outputs, inputs]`. A 3x3 convolution has `inputs = 9 * in`, ordered (ky, kx, in).
#[derive(Debug, Clone)]
pub struct Weight {
    outputs: usize,
    inputs: usize,
    values: Values,
    isa: Isa,
    /// Whether products are as narrow as the values.
    narrow: bool,
    /// One over [`Int8::smooth`].
    reciprocals: Option<Vec<f32>>,
    /// See [`pack::sums`]; made for the first product, since it reads the whole weight.
    sums: OnceLock<Vec<i32>>,
}

/// A weight that is multiplied with int8 activations.
pub(crate) struct Int8Product<'a> {
    pub(crate) isa: Isa,
    pub(crate) weight: PackedWeight<'a>,
    /// What each channel of the input is multiplied with before it is quantised.
    pub(crate) reciprocals: Option<&'a [f32]>,
}

/// How the values are stored.
#[derive(Debug, Clone)]
pub enum Values {
    /// `[outputs, inputs]`.
    F32(Numbers<f32>),
    /// `[outputs, inputs]`.
    F16(Numbers<f16>),
    /// `[outputs, inputs]`.
    Bf16(Numbers<bf16>),
    /// With a scale for each output.
    Int8(Int8),
}

/// Symmetric int8: `W[o, i] = values[o, i] * scales[o] / smooth[i]`.
#[derive(Debug, Clone)]
pub struct Int8 {
    /// In -127..=127, ordered as `packing` says.
    pub values: Numbers<i8>,
    /// Their order.
    pub packing: Packing,
    /// `[outputs]`.
    pub scales: Numbers<f32>,
    /// What a layer's input is divided by before it is quantised itself (SmoothQuant, arXiv 2211.10438, eq. 3): one
    /// number a channel, `[inputs]` or, for a 3x3 convolution, `[inputs / 9]`; none where it would all be 1.
    pub smooth: Option<Numbers<f32>>,
}

/// The order of int8 values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// `[outputs, inputs]`.
    Rows,
    /// As [`crate::int8::pack`] lays them out for the CPU's kernels.
    Panels,
}

impl Packing {
    /// The shape in which a file has the values of `[outputs, inputs]`: its rank tells the packing.
    pub fn shape(self, outputs: usize, inputs: usize) -> Vec<usize> {
        match self {
            Packing::Rows => vec![outputs, inputs],
            Packing::Panels => {
                let (panels, groups) =
                    (pack::padded_outputs(outputs) / pack::PANEL, pack::padded_inputs(inputs) / pack::GROUP);
                vec![panels, groups, pack::PANEL, pack::GROUP]
            }
        }
    }
}

impl Weight {
    /// # Errors
    /// If there are not exactly as many values as the shape asks for.
    pub fn new(outputs: usize, inputs: usize, values: Values) -> Result<Self> {
        let smooth_fits = |len: usize| len == inputs || 9 * len == inputs;
        let fits = match &values {
            Values::F32(values) => values.len() == outputs * inputs,
            Values::F16(values) => values.len() == outputs * inputs,
            Values::Bf16(values) => values.len() == outputs * inputs,
            Values::Int8(int8) => {
                int8.values.len() == int8.packing.shape(outputs, inputs).iter().product::<usize>()
                    && int8.scales.len() == outputs
                    && int8.smooth.as_ref().is_none_or(|s| smooth_fits(s.len()))
            }
        };
        if !fits || outputs == 0 || inputs == 0 {
            bail!("a weight of {outputs} x {inputs} got another number of values")
        }
        let reciprocals = match &values {
            Values::Int8(Int8 { smooth: Some(smooth), .. }) => Some(smooth.iter().map(|s| 1.0 / s).collect()),
            _ => None,
        };
        let (isa, sums) = (isa::best(), OnceLock::new());
        Ok(Weight { outputs, inputs, values, isa, narrow: false, reciprocals, sums })
    }

    /// The same weight, multiplied by the kernels of an instruction set, and as narrow as it is stored: with int8
    /// activations where it is packed for that, with bf16 ones where it is bf16 itself. Without, products are in f32.
    pub fn with_kernels(self, isa: Isa) -> Self {
        Weight { isa, narrow: true, ..self }
    }

    /// What its products run on.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// The type of forward products other than int8.
    pub(crate) fn forward_precision(&self) -> Precision {
        match &self.values {
            Values::Bf16(_) if self.narrow => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// The type of backward products.
    pub(crate) fn backward_precision(&self) -> Precision {
        match &self.values {
            Values::Bf16(_) | Values::Int8(Int8 { packing: Packing::Panels, .. }) if self.narrow => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// One over each channel's smoothing.
    pub(crate) fn reciprocals(&self) -> Option<&[f32]> {
        self.reciprocals.as_deref()
    }

    /// Whether it is smoothed for so many channels, or not at all.
    pub(crate) fn fits_channels(&self, channels: usize) -> bool {
        self.reciprocals.as_ref().is_none_or(|r| r.len() == channels)
    }

    /// The weight for a product of int8 activations, where there are kernels for it.
    pub(crate) fn int8(&self) -> Result<Option<Int8Product<'_>>> {
        let Values::Int8(int8 @ Int8 { packing: Packing::Panels, .. }) = &self.values else { return Ok(None) };
        if !self.narrow {
            return Ok(None);
        }
        let sums = self.sums.get_or_init(|| {
            let mut sums = pack::sums(&int8.values, self.outputs, self.inputs);
            sums.truncate(self.outputs); // the padding has none
            sums
        });
        let weight = PackedWeight::new(&int8.values, &int8.scales, sums, self.inputs)?;
        Ok(Some(Int8Product { isa: self.isa, weight, reciprocals: self.reciprocals() }))
    }

    /// Rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How the values are stored.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// `[outputs, inputs]` in f32: the values themselves where they are f32, else a copy for as long as it is needed.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        if let Values::F32(values) = &self.values {
            return Cow::Borrowed(values);
        }
        let mut all = vec![0.0; self.outputs * self.inputs];
        let int8_rows = match &self.values {
            Values::Int8(int8) => int8.rows(self.outputs, self.inputs),
            _ => Cow::Borrowed(&[][..]),
        };
        all.par_chunks_mut(self.inputs).enumerate().for_each(|(o, into)| match &self.values {
            Values::F32(values) => into.copy_from_slice(&values[o * self.inputs..][..self.inputs]),
            Values::F16(values) => values[o * self.inputs..][..self.inputs].convert_to_f32_slice(into),
            Values::Bf16(values) => values[o * self.inputs..][..self.inputs].convert_to_f32_slice(into),
            Values::Int8(int8) => int8.dequantise_row(&int8_rows[o * self.inputs..][..self.inputs], o, into),
        });
        Cow::Owned(all)
    }

    /// Row `output` in f32, `[inputs]`.
    pub fn row(&self, output: usize) -> Vec<f32> {
        let span = output * self.inputs..(output + 1) * self.inputs;
        match &self.values {
            Values::F32(values) => values[span].to_vec(),
            Values::F16(values) => values[span].to_f32_vec(),
            Values::Bf16(values) => values[span].to_f32_vec(),
            Values::Int8(int8) => {
                let mut row = vec![0.0; self.inputs];
                int8.dequantise_row(&int8.rows(self.outputs, self.inputs)[span], output, &mut row);
                row
            }
        }
    }
}

/// Rows of `[out, in, 3, 3]` as a checkpoint has them, as `[out, (ky, kx, in)]`.
pub fn channels_last(kernel: &[f32], inputs: usize) -> Vec<f32> {
    let mut rows = vec![0.0; kernel.len()];
    rows.par_chunks_mut(9 * inputs).zip(kernel.par_chunks(9 * inputs)).for_each(|(row, kernel)| {
        for (i, taps) in kernel.chunks_exact(9).enumerate() {
            for (t, &value) in taps.iter().enumerate() {
                row[t * inputs + i] = value;
            }
        }
    });
    rows
}

impl Int8 {
    /// The values as `[outputs, inputs]`, which must be the weight's own.
    pub fn rows(&self, outputs: usize, inputs: usize) -> Cow<'_, [i8]> {
        match self.packing {
            Packing::Rows => Cow::Borrowed(&self.values),
            Packing::Panels => Cow::Owned(pack::unpack(&self.values, outputs, inputs)),
        }
    }

    fn dequantise_row(&self, row: &[i8], output: usize, into: &mut [f32]) {
        let scale = self.scales[output];
        for (into, &q) in into.iter_mut().zip(row) {
            *into = q as f32 * scale;
        }
        if let Some(smooth) = &self.smooth {
            for tap in into.chunks_mut(smooth.len()) {
                tap.iter_mut().zip(smooth.iter()).for_each(|(value, s)| *value /= s);
            }
        }
    }
}
