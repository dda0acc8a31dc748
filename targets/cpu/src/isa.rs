//! Instruction sets, found at run time.
//!
//! Each is a token that only its `new` gives out, and only where the CPU has it: a function that holds one may use those
//! instructions. [`Isa`] is whichever of them runs the kernels; all give the same int8 results to the last bit.

use std::fmt;

/// Something to be done with whatever instructions there are.
///
/// `run` and all that it calls must be `#[inline(always)]`: only what is inlined is compiled for them. That is why this
/// is no closure, of which the compiler makes a function of its own.
pub(crate) trait Work {
    fn run(self);
}

/// The proof that the CPU has an instruction set.
pub(crate) trait Token: Copy + Send + Sync {
    /// Does the work compiled for these instructions.
    fn vectorize(self, work: impl Work);
}

macro_rules! token {
    ($(#[$doc:meta])* $token:ident, $arch:literal, $features:literal, $found:expr) => {
        $(#[$doc])*
        #[cfg(target_arch = $arch)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $token(());

        #[cfg(target_arch = $arch)]
        impl $token {
            /// The token, if this CPU and its operating system allow these instructions.
            pub fn new() -> Option<Self> {
                $found.then_some($token(()))
            }
        }

        #[cfg(target_arch = $arch)]
        impl Token for $token {
            #[inline(always)]
            fn vectorize(self, work: impl Work) {
                #[target_feature(enable = $features)]
                fn inside(work: impl Work) {
                    work.run();
                }
                // SAFETY: the token exists, so the CPU has these features.
                unsafe { inside(work) }
            }
        }
    };
}

/// `AVX512` as every AVX-512 kernel here needs it.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

token!(
    /// Tiles of 16 rows of 64 bytes, their int8 and bfloat16 products (Sapphire Rapids and later), with AVX-512.
    Amx, "x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    has_avx512() && is_x86_feature_detected!("avx512bf16") && amx::allowed());
token!(
    /// 512-bit four-way dot products of bytes and two-way ones of bfloat16 (Cooper Lake, Zen 4 and later).
    Avx512Bf16, "x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    has_avx512() && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16"));
token!(
    /// 512-bit four-way dot products of bytes (Ice Lake, Zen 4 and later).
    Avx512Vnni, "x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    has_avx512() && is_x86_feature_detected!("avx512vnni"));
token!(
    /// 256-bit four-way dot products of bytes without AVX-512 (Alder Lake and later, Zen 5).
    AvxVnni, "x86_64", "avx2,fma,avxvnni",
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("avxvnni"));
token!(
    /// 256-bit integers (Haswell, Zen and later).
    Avx2, "x86_64", "avx2,fma", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
token!(
    /// 2x8 by 8x2 products of bytes (Armv8.6, Apple M2 and later).
    NeonI8mm, "aarch64", "neon,dotprod,i8mm",
    std::arch::is_aarch64_feature_detected!("i8mm") && std::arch::is_aarch64_feature_detected!("dotprod"));
token!(
    /// 128-bit four-way dot products of bytes (Armv8.4, Apple M1, Cortex-A76 and later).
    NeonDotprod, "aarch64", "neon,dotprod", std::arch::is_aarch64_feature_detected!("dotprod"));
token!(
    /// What every 64-bit Arm has.
    Neon, "aarch64", "neon", true);

/// Plain Rust: what every CPU can do, and what the kernels are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scalar(());

impl Scalar {
    /// The token, always.
    pub fn new() -> Option<Self> {
        Some(Scalar(()))
    }
}

impl Token for Scalar {
    #[inline(always)]
    fn vectorize(self, work: impl Work) {
        work.run();
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
impl Amx {
    /// The token for tests that carry out AMX's instructions themselves.
    pub(crate) fn emulated() -> Option<Self> {
        (has_avx512() && is_x86_feature_detected!("avx512bf16")).then_some(Amx(()))
    }
}

/// Detection of AMX, for which the standard library's macro is unstable.
#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Leaf 7, EDX: tiles, their bfloat16 and their int8 products.
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// Leaf 1, ECX: the system keeps extended registers, and `xgetbv` tells which.
    const OSXSAVE: u32 = 1 << 27;
    /// XCR0: tile configuration and tile data.
    const TILE_STATE: u64 = 0b11 << 17;

    /// Whether the CPU has int8 and bfloat16 tiles and the system lets this process use them.
    pub fn allowed() -> bool {
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        #[target_feature(enable = "xsave")]
        fn kept_registers() -> u64 {
            // SAFETY: register 0 exists wherever the instruction does.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: OSXSAVE says that the instruction is there.
        let kept = unsafe { kept_registers() };
        __cpuid_count(7, 0).edx & TILES == TILES && kept & TILE_STATE == TILE_STATE && asked_for()
    }

    /// Linux gives the 8 KiB of tile data only to processes that ask for them.
    fn asked_for() -> bool {
        if !cfg!(target_os = "linux") {
            return false;
        }
        const ARCH_PRCTL: u64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: this system call changes what this process may use and touches no memory; Linux overwrites rcx and r11.
        unsafe {
            asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }
}

macro_rules! isas {
    ($($arch:literal $token:ident $name:literal,)*) => {
        /// The instruction set that runs the kernels.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Isa {
            $(#[doc = concat!("`", $name, "`")] #[cfg(target_arch = $arch)] $token($token),)*
            /// `scalar`
            Scalar(Scalar),
        }

        /// Every name that `PLEINAIR_ISA` may have, on any CPU, the fastest first.
        pub const NAMES: &[&str] = &[$($name,)* "scalar"];

        impl Isa {
            /// Its name in [`NAMES`].
            pub fn name(self) -> &'static str {
                match self {
                    $(#[cfg(target_arch = $arch)] Isa::$token(_) => $name,)*
                    Isa::Scalar(_) => "scalar",
                }
            }

            /// The instruction set of that name, if this CPU has it.
            fn named(name: &str) -> Option<Self> {
                match name {
                    $(#[cfg(target_arch = $arch)] $name => $token::new().map(Isa::$token),)*
                    "scalar" => Scalar::new().map(Isa::Scalar),
                    _ => None,
                }
            }
        }

        /// Runs `$body` with `$token` bound to the concrete token of `$isa`.
        macro_rules! with_token {
            ($isa:expr, $bound:ident => $body:expr) => {
                match $isa {
                    $(#[cfg(target_arch = $arch)] $crate::isa::Isa::$token($bound) => $body,)*
                    $crate::isa::Isa::Scalar($bound) => $body,
                }
            };
        }
        pub(crate) use with_token;
    };
}

isas! {
    "x86_64" Amx "amx",
    "x86_64" Avx512Bf16 "avx512bf16",
    "x86_64" Avx512Vnni "avx512vnni",
    "x86_64" AvxVnni "avxvnni",
    "x86_64" Avx2 "avx2",
    "aarch64" NeonI8mm "neon-i8mm",
    "aarch64" NeonDotprod "neon-dotprod",
    "aarch64" Neon "neon",
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Every name with its instruction set, where this CPU has it; the fastest first.
pub fn found() -> Vec<(&'static str, Option<Isa>)> {
    NAMES.iter().map(|&name| (name, Isa::named(name))).collect()
}

/// The fastest instruction set this CPU has.
pub fn best() -> Isa {
    NAMES.iter().find_map(|name| Isa::named(name)).expect("every CPU runs plain Rust")
}

/// The instruction set that `forced`, the value of `PLEINAIR_ISA`, asks for; without it the fastest.
///
/// # Errors
/// If there is no such instruction set, or this CPU lacks it.
pub fn choose(forced: Option<&str>) -> Result<Isa, UnusableIsa> {
    let Some(name) = forced else { return Ok(best()) };
    Isa::named(name).ok_or_else(|| UnusableIsa { name: name.to_owned() })
}

/// `PLEINAIR_ISA` asks for an instruction set that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableIsa {
    /// What was asked for.
    pub name: String,
}

impl fmt::Display for UnusableIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usable: Vec<_> = found().into_iter().filter_map(|(name, isa)| isa.map(|_| name)).collect();
        let fault =
            if NAMES.contains(&self.name.as_str()) { "this CPU lacks" } else { "there is no instruction set called" };
        write!(f, "{fault} '{}' (PLEINAIR_ISA): leave it unset or choose one of {}", self.name, usable.join(", "))
    }
}

impl std::error::Error for UnusableIsa {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_is_the_best_and_every_one_found_can_be_forced() {
        assert_eq!(choose(None), Ok(best()));
        for (name, isa) in found() {
            match isa {
                Some(isa) => assert_eq!((choose(Some(name)), isa.name()), (Ok(isa), name)),
                None => assert!(choose(Some(name)).unwrap_err().to_string().contains(&format!("lacks '{name}'"))),
            }
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = choose(Some("sse9")).unwrap_err().to_string();
        assert!(error.contains("no instruction set called 'sse9'") && error.contains("scalar"), "{error}");
        assert!(choose(Some("")).is_err());
    }
}
