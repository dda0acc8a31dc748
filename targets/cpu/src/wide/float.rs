//! Tiles of f32 on every instruction set.

use super::kernel::{Kernel, Sums, Tile};
use crate::float::Floats;
use crate::int8::for_rows;
use crate::int8::pack::PANEL;
use crate::isa::{self, Token, Work};

/// `token: panels of a tile, registers of a panel, numbers of rows`, the last one the most.
macro_rules! kernels {
    ($($(#[$cfg:meta])* $token:ident: $panels:literal, $registers:literal, $most:literal of $($rows:literal)*;)*) => {$(
        $(#[$cfg])*
        impl Kernel<f32> for isa::$token {
            const ROWS: usize = $most;
            const PANELS: usize = $panels;

            #[inline(always)]
            fn sums(self, tile: &Tile<'_, f32>, sums: &mut Sums) {
                const { assert!($registers * <isa::$token as Floats>::LANES == PANEL) };
                match tile.panels() {
                    1 => for_rows!(tile: $($rows)*, R => {
                        self.vectorize(Multiply::<_, R, $registers>(self, tile, sums));
                    }),
                    _ => for_rows!(tile: $($rows)*, R => {
                        self.vectorize(Multiply::<_, R, { $panels * $registers }>(self, tile, sums));
                    }),
                }
            }
        }
    )*};
}

// AVX-512 has 32 registers: 28 sums, 2 of weights, 1 of activations. AVX2 has 16: 12 sums, 2, 1. NEON has 32: 24, 4, 1.
kernels! {
    #[cfg(target_arch = "x86_64")] Amx: 2, 1, 14 of 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
    #[cfg(target_arch = "x86_64")] Avx512Bf16: 2, 1, 14 of 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
    #[cfg(target_arch = "x86_64")] Avx512Vnni: 2, 1, 14 of 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
    #[cfg(target_arch = "x86_64")] AvxVnni: 1, 2, 6 of 1 2 3 4 5 6;
    #[cfg(target_arch = "x86_64")] Avx2: 1, 2, 6 of 1 2 3 4 5 6;
    #[cfg(target_arch = "aarch64")] NeonI8mm: 1, 4, 6 of 1 2 3 4 5 6;
    #[cfg(target_arch = "aarch64")] NeonDotprod: 1, 4, 6 of 1 2 3 4 5 6;
    #[cfg(target_arch = "aarch64")] Neon: 1, 4, 6 of 1 2 3 4 5 6;
    Scalar: 1, 4, 4 of 1 2 3 4;
}

/// The sums of a tile of R rows and as many panels as have REGISTERS registers.
struct Multiply<'a, 't, F, const R: usize, const REGISTERS: usize>(F, &'a Tile<'t, f32>, &'a mut Sums);

impl<F: Floats, const R: usize, const REGISTERS: usize> Work for Multiply<'_, '_, F, R, REGISTERS> {
    #[inline(always)]
    fn run(self) {
        let Multiply(f, tile, sums) = self;
        assert!(tile.rows() == R && tile.panels() * PANEL == REGISTERS * F::LANES);
        let (depth, stride) = (tile.depth(), tile.stride());
        let (activations, weights) = (tile.row(0).as_ptr(), tile.panel(0).as_ptr());
        let mut sum = [[f.splat(0.0); REGISTERS]; R];
        for k in 0..depth {
            let mut registers = [f.splat(0.0); REGISTERS];
            for i in 0..REGISTERS {
                let (panel, lane) = (i * F::LANES / PANEL, i * F::LANES % PANEL);
                // SAFETY: panels follow each other, each of `depth` times 16 numbers.
                registers[i] = f.load(unsafe {
                    std::slice::from_raw_parts(weights.add((panel * depth + k) * PANEL + lane), F::LANES)
                });
            }
            for r in 0..R {
                // SAFETY: every one of the R rows holds `depth` numbers.
                let activation = f.splat(unsafe { *activations.add(r * stride + k) });
                for i in 0..REGISTERS {
                    sum[r][i] = f.mul_add(activation, registers[i], sum[r][i]);
                }
            }
        }
        for r in 0..R {
            for i in 0..REGISTERS {
                f.store(sum[r][i], &mut sums.0[r][i * F::LANES..]);
            }
        }
    }
}
