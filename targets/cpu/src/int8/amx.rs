//! AMX: 32 rows of 2 panels as four tiles of sums, in inline assembly, since the intrinsics are unstable.

use super::kernel::{Kernel, Sums, Tile};
use super::pack::{DEPTH, PANEL};
use crate::amx::{TILE_ROWS, configure, release};
use crate::isa::Amx;
use std::arch::asm;

impl Kernel for Amx {
    const ROWS: usize = 2 * TILE_ROWS;
    const ROW_STEP: usize = TILE_ROWS;
    const PANELS: usize = 2;

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
    fn sums(self, tile: &Tile<'_>, sums: &mut Sums) {
        // SAFETY: as above, and `begin` has configured the tiles.
        unsafe { multiply(tile, sums) }
    }
}

/// A tile of 16 rows or one panel is done twice: such tiles are rare, and a second form of this could be wrong.
///
/// # Safety
/// The tiles must be configured.
unsafe fn multiply(tile: &Tile<'_>, sums: &mut Sums) {
    assert!(tile.rows().is_multiple_of(TILE_ROWS) && tile.depth().is_multiple_of(DEPTH));
    let top = tile.row(0).as_ptr();
    let bottom = tile.row(tile.rows() - TILE_ROWS).as_ptr();
    let (left, right) = (tile.panel(0).as_ptr(), tile.panel(tile.panels() - 1).as_ptr());
    let into = sums.0.as_mut_ptr().cast::<i32>();
    if tile.depth() == 0 {
        sums.0.as_flattened_mut().fill(0);
        return;
    }
    // SAFETY: `top` and `bottom` begin 16 rows of `depth` bytes, `left` and `right` `depth / 64` tiles of 1024 bytes;
    // `Sums` is 32 rows of 2 panels of i32.
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
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{bottom} + {stride}]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
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
            stride = in(reg) tile.stride(),
            line = in(reg) 64usize,
            pitch = in(reg) Sums::STRIDE * size_of::<i32>(),
            into = in(reg) into,
            lower = in(reg) into.add(TILE_ROWS * Sums::STRIDE),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

const _: () = assert!(PANEL * size_of::<i32>() == 64 && Sums::STRIDE == 2 * PANEL);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::block::{Product, multiply};
    use super::super::{PackedWeight, Rows, pack};
    use crate::amx::trap::{Opcode, amx, done};
    use crate::isa::{Amx, Scalar};

    fn bytes(seed: u32, count: usize) -> Vec<i8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as i8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn tiles_give_the_sums_of_plain_rust() {
        let Some(amx) = amx("int8 tiles") else { return };
        let before = done(Opcode::Int8);
        for (m, n, k) in
            [(1, 1, 1), (16, 16, 64), (17, 17, 65), (31, 33, 128), (33, 48, 320), (64, 64, 63), (97, 80, 640)]
        {
            let (a, w) = (bytes(m as u32, m * k), bytes(7, n * k));
            let packed = pack::pack(&w, n, k);
            let sums = pack::sums(&packed, n, k);
            let (a_scales, w_scales, bias) = (vec![0.5; m], vec![0.25; n], vec![1.0; n]);
            let weight = PackedWeight::new(&packed, &w_scales, &sums, k).unwrap();
            let rows = Rows { values: &a, stride: k, scales: &a_scales };
            let (mut got, mut want) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
            multiply(amx, Product::new(rows, weight, Some(&bias), &mut got));
            multiply(Scalar::new().unwrap(), Product::new(rows, weight, Some(&bias), &mut want));
            assert_eq!(got, want, "m{m} n{n} k{k}");
        }
        assert!(Amx::new().is_some() || done(Opcode::Int8) > before, "nothing trapped, so nothing was tested");
    }
}
