//! Where the networks run and in what numbers: chosen once, when a model is opened.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use pleinair_cpu::isa::{self, Isa};
use serde::{Deserialize, Serialize};

/// A kind of device, as a person names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A GPU where this build has kernels for one and the machine has one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

/// The numbers that feature maps and gradients are on a GPU; on the processor they are always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numbers {
    /// Half precision: products on tensor cores, sums in f32.
    #[default]
    F16,
    /// Single precision, to compare with.
    F32,
}

/// What runs the networks.
#[derive(Debug, Clone)]
pub struct Target {
    device: Device,
    numbers: DType,
    isa: Isa,
    memory_bytes: Option<u64>,
}

impl Target {
    /// The processor, with the kernels of one instruction set.
    pub fn cpu(isa: Isa) -> Self {
        Target { device: Device::Cpu, numbers: DType::F32, isa, memory_bytes: None }
    }

    /// The device of a kind. [`Kind::Auto`] takes the processor where there is no GPU, and says why if this build could
    /// use one.
    ///
    /// # Errors
    /// [`Error::Usage`] if a GPU is asked for by name and cannot be used.
    pub fn open(kind: Kind, isa: Isa) -> Result<(Self, Option<String>)> {
        let gpu = |device| Target { device, numbers: DType::F16, isa, memory_bytes: None };
        match kind {
            Kind::Cpu => Ok((Self::cpu(isa), None)),
            Kind::Cuda => Ok((gpu(cuda().map_err(Error::Usage)?), None)),
            Kind::Metal => Ok((gpu(metal().map_err(Error::Usage)?), None)),
            Kind::Auto => match GPU {
                None => Ok((Self::cpu(isa), None)),
                Some(open) => Ok(match open() {
                    Ok(device) => (gpu(device), None),
                    Err(why) => (Self::cpu(isa), Some(why)),
                }),
            },
        }
    }

    /// The same with other numbers, if it is a GPU.
    pub fn with_numbers(self, numbers: Numbers) -> Self {
        let numbers = match numbers {
            Numbers::F16 if !self.is_cpu() => DType::F16,
            _ => DType::F32,
        };
        Target { numbers, ..self }
    }

    /// The same with at most so many bytes for weights and feature maps; without a number, all there is.
    pub fn with_memory(self, memory_bytes: Option<u64>) -> Self {
        Target { memory_bytes, ..self }
    }

    /// The most bytes that weights and feature maps may take together on a GPU.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// Where weights and feature maps lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Numbers of feature maps.
    pub fn numbers(&self) -> DType {
        self.numbers
    }

    /// The instruction set of the processor's kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether the processor itself runs the networks, from weights that lie mapped in memory.
    pub fn is_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    /// Which GPU it is, if it is one.
    pub fn gpu(&self) -> Option<Kind> {
        match self.device {
            Device::Cpu => None,
            Device::Cuda(_) => Some(Kind::Cuda),
            Device::Metal(_) => Some(Kind::Metal),
        }
    }

    /// `cpu`, `cuda` or `metal`.
    pub fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        }
    }

    /// Numbers of the outside world, f32 in main memory, as a network takes them. Gradients flow back through it.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn take_in(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_device(&self.device)?.to_dtype(self.numbers)?)
    }

    /// What a network gives, as f32 in main memory. Gradients flow back through it.
    ///
    /// # Errors
    /// If the device fails; what was queued before is waited for.
    pub fn hand_out(&self, y: &Tensor) -> Result<Tensor> {
        Ok(y.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
    }
}

impl Default for Target {
    fn default() -> Self {
        Self::cpu(isa::best())
    }
}

type Open = fn() -> std::result::Result<Device, String>;

/// What this build can use besides the processor.
const GPU: Option<Open> = if cfg!(feature = "cuda") {
    Some(cuda)
} else if cfg!(feature = "metal") {
    Some(metal)
} else {
    None
};

#[cfg(feature = "cuda")]
fn cuda() -> std::result::Result<Device, String> {
    pleinair_cuda::open()
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> std::result::Result<Device, String> {
    Err("this build of pleinair has no CUDA".into())
}

#[cfg(feature = "metal")]
fn metal() -> std::result::Result<Device, String> {
    pleinair_metal::open()
}

#[cfg(not(feature = "metal"))]
fn metal() -> std::result::Result<Device, String> {
    Err("this build of pleinair has no Metal".into())
}
