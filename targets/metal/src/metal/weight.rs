//! Frozen weights in the memory that CPU and GPU share.

use crate::machine::Place;
use crate::plan;
use block2::RcBlock;
use candle_core::{Device, MetalDevice, Result, bail};
use candle_metal_kernels::RESOURCE_OPTIONS;
use candle_metal_kernels::metal::Buffer;
use half::f16;
use objc2_metal::MTLDevice;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of a page on Apple silicon, a multiple of those on other Macs.
const PAGE: usize = 16 << 10;

/// How the values are stored.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// `[outputs, inputs]`.
    F32(&'a [f32]),
    /// `[outputs, inputs]`.
    F16(&'a [f16]),
    /// `W[o, i] = rows[o, i] * scales[o] / smooth[i]`. That saves memory, not time: before a product a part of the weight
    /// is made f16 or f32, since these GPUs multiply no int8 matrices.
    Int8 {
        /// `[outputs, inputs]`.
        rows: &'a [i8],
        /// `[outputs]`.
        scales: &'a [f32],
        /// `[inputs]` or, for a 3x3 convolution, `[inputs / 9]`.
        smooth: Option<&'a [f32]>,
    },
}

/// The frozen matrix of a linear layer or a convolution, `[outputs, inputs]`, as it is stored.
#[derive(Debug)]
pub struct Weight {
    outputs: usize,
    inputs: usize,
    stored: Stored,
}

/// Numbers on the device: a buffer, where in it they begin, and how many bytes they have.
#[derive(Debug)]
struct Numbers {
    buffer: Arc<Buffer>,
    offset: usize,
    bytes: usize,
    shared: bool,
}

#[derive(Debug)]
enum Stored {
    F32(Numbers),
    F16(Numbers),
    Int8 { rows: Numbers, scales: Numbers, smooth: Option<(Numbers, usize)> },
}

impl Weight {
    /// With a copy of the values.
    ///
    /// # Errors
    /// If there are not exactly as many values as the shape asks for, or no memory is left.
    pub fn new(device: &Device, outputs: usize, inputs: usize, values: Values<'_>) -> Result<Self> {
        Self::made(outputs, inputs, values, &Copies(device.as_metal_device()?))
    }

    /// With the values where they are, in a mapped file, if they lie in one: the GPU reads the file's pages, which are in
    /// memory once. `newBufferWithBytesNoCopy` takes an address and a length that are multiples of a page's size, so the
    /// buffer begins with the page that has the first value and ends with the page that has the last, and the weight keeps
    /// where in it the values begin; that needs a file which itself begins at a page, as every mapping does. (candle's
    /// `MetalStorage` can be made of such a buffer, but begins at its first byte, which only a file with every tensor at a
    /// page's start would suit.) What lies elsewhere, in a vector say, is copied.
    ///
    /// # Errors
    /// As [`Weight::new`].
    pub fn mapped<F: AsRef<[u8]> + Send + Sync + 'static>(
        device: &Device,
        outputs: usize,
        inputs: usize,
        values: Values<'_>,
        file: &Arc<F>,
    ) -> Result<Self> {
        Self::made(outputs, inputs, values, &Pages { device: device.as_metal_device()?, file })
    }

    fn made(outputs: usize, inputs: usize, values: Values<'_>, source: &impl Source) -> Result<Self> {
        let count = outputs * inputs;
        let fits = match values {
            Values::F32(values) => values.len() == count,
            Values::F16(values) => values.len() == count,
            Values::Int8 { rows, scales, smooth } => {
                let smooth_fits = smooth.is_none_or(|s| s.len() == inputs || 9 * s.len() == inputs);
                rows.len() == count && scales.len() == outputs && smooth_fits
            }
        };
        if !fits || count == 0 {
            bail!("a weight of {outputs} x {inputs} got another number of values")
        }
        let stored = match values {
            Values::F32(values) => Stored::F32(source.numbers(values)?),
            Values::F16(values) => Stored::F16(source.numbers(values)?),
            Values::Int8 { rows, scales, smooth } => {
                let smooth = match smooth {
                    Some(smooth) => Some((source.numbers(smooth)?, smooth.len())),
                    None => None,
                };
                Stored::Int8 { rows: source.numbers(rows)?, scales: source.numbers(scales)?, smooth }
            }
        };
        Ok(Weight { outputs, inputs, stored })
    }

    /// Rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Of the device's memory that it takes, the pages of mapped files not counted.
    pub fn bytes(&self) -> usize {
        let own = |numbers: &Numbers| if numbers.shared { 0 } else { numbers.bytes };
        match &self.stored {
            Stored::F32(values) | Stored::F16(values) => own(values),
            Stored::Int8 { rows, scales, smooth } => {
                own(rows) + own(scales) + smooth.as_ref().map_or(0, |(numbers, _)| own(numbers))
            }
        }
    }

    /// As the plans take it.
    pub(crate) fn on_device(&self) -> plan::Weight<'_, Buffer> {
        let stored = match &self.stored {
            Stored::F32(values) => plan::Stored::F32(values.place()),
            Stored::F16(values) => plan::Stored::F16(values.place()),
            Stored::Int8 { rows, scales, smooth } => plan::Stored::Int8 {
                rows: rows.place(),
                scales: scales.place(),
                smooth: smooth.as_ref().map(|(numbers, len)| (numbers.place(), *len)),
            },
        };
        plan::Weight { outputs: self.outputs, inputs: self.inputs, stored }
    }
}

impl Numbers {
    fn place(&self) -> Place<'_, Buffer> {
        Place { memory: &self.buffer, offset: self.offset }
    }
}

/// Where a weight's numbers on the device come from.
trait Source {
    fn numbers<T: Copy>(&self, values: &[T]) -> Result<Numbers>;
}

struct Copies<'a>(&'a MetalDevice);

impl Source for Copies<'_> {
    fn numbers<T: Copy>(&self, values: &[T]) -> Result<Numbers> {
        let buffer = self.0.new_buffer_with_data(values)?;
        Ok(Numbers { buffer, offset: 0, bytes: size_of_val(values), shared: false })
    }
}

struct Pages<'a, F> {
    device: &'a MetalDevice,
    file: &'a Arc<F>,
}

impl<F: AsRef<[u8]> + Send + Sync + 'static> Source for Pages<'_, F> {
    fn numbers<T: Copy>(&self, values: &[T]) -> Result<Numbers> {
        let file = (**self.file).as_ref();
        let (from, bytes) = (values.as_ptr().addr(), size_of_val(values));
        let Some(offset) = from.checked_sub(file.as_ptr().addr()).filter(|offset| offset + bytes <= file.len()) else {
            return Copies(self.device).numbers(values);
        };
        if !file.as_ptr().addr().is_multiple_of(PAGE) {
            return Copies(self.device).numbers(values);
        }
        let first = offset / PAGE * PAGE;
        let length = (offset + bytes).next_multiple_of(PAGE) - first;
        let start = NonNull::from(&file[first]).cast::<c_void>();
        // Metal's last reference drops the block, and that the file: also when the GPU still reads after the weight is gone.
        let owner = self.file.clone();
        let keep = RcBlock::new(move |_: NonNull<c_void>, _: usize| drop(owner.clone()));
        // SAFETY: `start` begins a page and lies in the file, whose last page is mapped whole; the block keeps the file, and a
        // slice that a shared file gave stays where it is as long as the file is shared. The block's `Arc` may be dropped
        // on any thread. The GPU reads what is given as input of a kernel and never writes it.
        let raw = unsafe {
            self.device.metal_device().as_ref().newBufferWithBytesNoCopy_length_options_deallocator(
                start,
                length,
                RESOURCE_OPTIONS,
                Some(&keep),
            )
        };
        match raw {
            Some(raw) => {
                Ok(Numbers { buffer: Arc::new(Buffer::new(raw)), offset: offset - first, bytes, shared: true })
            }
            None => Copies(self.device).numbers(values),
        }
    }
}
