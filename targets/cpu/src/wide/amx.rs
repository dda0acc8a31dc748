//! AMX: 32 rows of 2 panels in bf16 as four tiles of sums, in inline assembly, since the intrinsics are unstable.
//!
//! A tile takes products of even and of odd inputs apart, adds both and flushes what is subnormal; its sums are as exact as
//! any others.

use super::kernel::{Element, Kernel, Sums, Tile};
use crate::amx::{TILE_ROWS, configure, release};
use crate::int8::pack::PANEL;
use crate::isa::Amx;
use half::bf16;
use std::arch::asm;

/// Inputs of a tile: 64 bytes of each row.
const DEPTH: usize = 32;

impl Kernel<bf16> for Amx {
    const ROWS: usize = 2 * TILE_ROWS;
    const ROW_STEP: usize = TILE_ROWS;
    const PANELS: usize = 2;
    const DEPTH_STEP: usize = DEPTH;

    #[inline(always)]
    fn begin(self) {
        // SAFETY: the token exists, so the CPU has tiles and the system keeps them.
        unsafe { configure() }
    }

    #[inline(always)]
    fn end(self) {
        // SAFETY: as above.
        unsafe { release() }
    }

    #[inline(always)]
    fn sums(self, tile: &Tile<'_, bf16>, sums: &mut Sums) {
        // SAFETY: as above, and `begin` has configured the tiles.
        unsafe { multiply(tile, sums) }
    }
}

/// A tile of 16 rows or one panel is done twice: such tiles are rare, and a second form of this could be wrong.
///
/// # Safety
/// The tiles must be configured.
unsafe fn multiply(tile: &Tile<'_, bf16>, sums: &mut Sums) {
    assert!(tile.rows().is_multiple_of(TILE_ROWS) && tile.depth().is_multiple_of(DEPTH) && tile.depth() > 0);
    let top = tile.row(0).as_ptr();
    let bottom = tile.row(tile.rows() - TILE_ROWS).as_ptr();
    let (left, right) = (tile.panel(0).as_ptr(), tile.panel(tile.panels() - 1).as_ptr());
    let into = sums.0.as_mut_ptr().cast::<f32>();
    // SAFETY: `top` and `bottom` begin 16 rows of `depth` numbers, `left` and `right` `depth / 32` tiles of 1024 bytes;
    // `Sums` is 32 rows of 2 panels of f32.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{left} + {line}]",
            "tileloadd tmm4, [{top} + {stride}]",
            "tileloadd tmm7, [{right} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{bottom} + {stride}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {top}, 64",
            "add {bottom}, 64",
            "add {left}, 1024",
            "add {right}, 1024",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{into} + {pitch}], tmm0",
            "tilestored [{into} + {pitch} + 64], tmm1",
            "tilestored [{lower} + {pitch}], tmm2",
            "tilestored [{lower} + {pitch} + 64], tmm3",
            top = inout(reg) top => _,
            bottom = inout(reg) bottom => _,
            left = inout(reg) left => _,
            right = inout(reg) right => _,
            tiles = inout(reg) tile.depth() / DEPTH => _,
            stride = in(reg) tile.stride() * size_of::<bf16>(),
            line = in(reg) 64usize,
            pitch = in(reg) Sums::STRIDE * size_of::<f32>(),
            into = in(reg) into,
            lower = in(reg) into.add(TILE_ROWS * Sums::STRIDE),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

const _: () = assert!(<bf16 as Element>::GROUP * size_of::<bf16>() * PANEL == 64 && Sums::STRIDE == 2 * PANEL);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::block::{Product, multiply};
    use super::super::pack::Factor;
    use super::super::{Grid, Neighbourhoods, Rows, Source};
    use crate::amx::trap::{Opcode, amx, done};
    use crate::isa::{Amx, Scalar};
    use crate::mapped::Numbers;
    use crate::weight::{Values, Weight};
    use half::bf16;

    /// Numbers in [-1, 1), one of `steps` on either side of zero.
    fn numbers(seed: u32, steps: i32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) as i32 % (2 * steps) - steps) as f32 / steps as f32
        };
        (0..count).map(|_| next()).collect()
    }

    fn weight(outputs: usize, inputs: usize) -> Weight {
        let values: Vec<_> = numbers(7, 64, outputs * inputs).into_iter().map(bf16::from_f32).collect();
        Weight::new(outputs, inputs, Values::Bf16(Numbers::from(values))).unwrap()
    }

    /// Inputs and weights are so coarse that f32 has every sum exactly, whatever its order: so tiles and plain Rust agree.
    fn assert_same(what: &str, amx: Amx, source: impl Source, factor: Factor<'_>) {
        let bias = numbers(9, 64, factor.width());
        let product = Product { source, in_scales: None, factor, out_scales: None, bias: Some(&bias) };
        let before = done(Opcode::Bf16);
        let got = multiply::<bf16, _, _>(amx, &product);
        assert!(Amx::new().is_some() || done(Opcode::Bf16) > before, "nothing trapped, so nothing was tested");
        assert_eq!(got, multiply::<f32, _, _>(Scalar::new().unwrap(), &product), "{what}");
    }

    /// (rows, outputs, inputs) around a tile's 16 or 32 rows, 16 or 32 outputs and 32 inputs, and the parts of the inputs.
    const SIZES: [(usize, usize, usize); 11] = [
        (1, 1, 1),
        (15, 31, 31),
        (16, 16, 32),
        (17, 17, 33),
        (31, 33, 64),
        (32, 32, 65),
        (33, 48, 320),
        (64, 64, 63),
        (65, 15, 96),
        (97, 80, 640),
        (40, 20, 1600),
    ];

    #[test]
    fn tiles_give_the_sums_of_plain_rust() {
        let Some(amx) = amx("bf16 tiles") else { return };
        for (m, n, k) in SIZES {
            let (weight, x, dy) = (weight(n, k), numbers(1, 64, m * k), numbers(2, 64, m * n));
            assert_same(&format!("m{m} n{n} k{k}"), amx, Rows::new(&x, k), Factor::forward(&weight));
            assert_same(&format!("m{m} n{n} k{k} back"), amx, Rows::new(&dy, n), Factor::backward(&weight, 1));
        }
    }

    #[test]
    fn tiles_give_the_convolutions_of_plain_rust() {
        let Some(amx) = amx("bf16 tiles, 3x3 convolution") else { return };
        for (height, width, stride, repeat) in [(1, 1, 1, 1), (5, 7, 1, 1), (8, 4, 2, 1), (6, 10, 1, 2)] {
            for (channels, outputs) in [(1, 1), (7, 33), (64, 17)] {
                let grid = Grid { height, width, stride, spread: 1, repeat };
                let (stored_height, stored_width) = grid.stored_size();
                let x = numbers(3, 64, 2 * stored_height * stored_width * channels);
                let weight = weight(outputs, 9 * channels);
                let what = format!("{grid:?}, {channels} to {outputs}");
                assert_same(&what, amx, Neighbourhoods::new(&x, channels, grid), Factor::forward(&weight));
            }
        }
    }

    /// Numbers that need rounding: no further from the exact sums than as many roundings as there are inputs and parts.
    #[test]
    fn sums_are_as_exact_as_any() {
        let Some(amx) = amx("bf16 tiles, rounding") else { return };
        let (m, n, k) = (33, 17, 1000);
        let rounded = |x: Vec<f32>| -> Vec<_> { x.iter().map(|x| bf16::from_f32(x * x * x + 0.01)).collect() };
        let (x, w) = (rounded(numbers(4, 1 << 14, m * k)), rounded(numbers(5, 1 << 14, n * k)));
        let weight = Weight::new(n, k, Values::Bf16(Numbers::from(w.clone()))).unwrap();
        let x: Vec<_> = x.iter().map(|x| x.to_f32()).collect();
        let source = Rows::new(&x, k);
        let factor = Factor::forward(&weight);
        let product = Product { source, in_scales: None, factor, out_scales: None, bias: None };
        let mut worst = 0f64;
        for (i, &got) in multiply::<bf16, _, _>(amx, &product).iter().enumerate() {
            let terms = x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]).map(|(&x, w)| x as f64 * w.to_f64());
            let (want, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            // a product of bf16 is exact, a sum is rounded with each of its inputs and parts
            let bound = (k + 4) as f64 * (f32::EPSILON / 2.0) as f64 * size;
            let diff = (got as f64 - want).abs();
            assert!(diff <= bound, "value {i} is {got}, not {want} within {bound:e}");
            worst = worst.max(diff);
        }
        assert!(worst > 0.0, "nothing was rounded, so nothing was tested");
    }
}
