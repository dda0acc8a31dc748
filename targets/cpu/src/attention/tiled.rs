//! Tiles of scores and of weighted sums, as the forward and the backward need them.
//!
//! Queries lie in the lanes of registers, so that the softmax needs no sums across lanes and any number of channels a head
//! fills whole registers.

#[cfg(target_arch = "x86_64")]
use super::products::Pairs;
use super::products::{Products, Single, Vector};
use super::{Precision, backward, forward};
use crate::float::Floats;
use crate::isa;

/// How an instruction set computes attention.
pub(super) trait Tiles: Floats {
    /// Queries of a block: those in the registers of a tile.
    const QUERIES: usize;
    /// Keys of a tile.
    const ROWS: usize;

    /// Must be `#[inline(always)]`.
    fn attend(self, part: forward::Part<'_, '_>);

    /// Must be `#[inline(always)]`.
    fn attend_back(self, part: backward::Part<'_, '_>);
}

/// `token: rows of a tile x registers of a row, products in bf16`.
macro_rules! tiles {
    ($($(#[$cfg:meta])* $token:ident: $rows:literal x $registers:literal, $bf16:ident;)*) => {$(
        $(#[$cfg])*
        impl Tiles for isa::$token {
            const QUERIES: usize = $registers * <isa::$token as Floats>::LANES;
            const ROWS: usize = $rows;

            #[inline(always)]
            fn attend(self, part: forward::Part<'_, '_>) {
                const QUERIES: usize = <isa::$token as Tiles>::QUERIES;
                match part.precision {
                    Precision::F32 => forward::attend::<_, $rows, $registers, QUERIES>(Single(self), part),
                    Precision::Bf16 => forward::attend::<_, $rows, $registers, QUERIES>($bf16(self), part),
                }
            }

            #[inline(always)]
            fn attend_back(self, part: backward::Part<'_, '_>) {
                const QUERIES: usize = <isa::$token as Tiles>::QUERIES;
                match part.precision {
                    Precision::F32 => backward::attend::<_, $rows, $registers, QUERIES>(Single(self), part),
                    Precision::Bf16 => backward::attend::<_, $rows, $registers, QUERIES>($bf16(self), part),
                }
            }
        }
    )*};
}

tiles! {
    #[cfg(target_arch = "x86_64")] Amx: 8 x 3, Pairs;
    #[cfg(target_arch = "x86_64")] Avx512Bf16: 8 x 3, Pairs;
    #[cfg(target_arch = "x86_64")] Avx512Vnni: 8 x 3, Single;
    #[cfg(target_arch = "x86_64")] AvxVnni: 6 x 2, Single;
    #[cfg(target_arch = "x86_64")] Avx2: 6 x 2, Single;
    #[cfg(target_arch = "aarch64")] NeonI8mm: 8 x 3, Single;
    #[cfg(target_arch = "aarch64")] NeonDotprod: 8 x 3, Single;
    #[cfg(target_arch = "aarch64")] Neon: 8 x 3, Single;
    Scalar: 4 x 2, Single;
}

/// Numbers of every query of a block.
#[repr(align(64))]
pub(super) struct PerQuery<const QUERIES: usize>(pub(super) [f32; QUERIES]);

/// Products of `rows`, in tiles, with the columns of a block of queries, both over their channels: `into[row][query]`, for
/// whole tiles.
#[inline(always)]
pub(super) fn across<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    rows: &[[f32; ROWS]],
    columns: &[[f32; QUERIES]],
    into: &mut [[f32; QUERIES]],
) {
    let f = p.floats();
    for (rows, into) in rows.chunks_exact(columns.len()).zip(into.chunks_exact_mut(ROWS)) {
        let mut sums = [[f.splat(0.0); REGISTERS]; ROWS];
        accumulate(p, rows, columns, &mut sums);
        for r in 0..ROWS {
            for i in 0..REGISTERS {
                f.store(sums[r][i], &mut into[r][i * <P::Floats as Floats>::LANES..]);
            }
        }
    }
}

/// `into[channel][query] +=` the sum of `rows`, whose channels lie in tiles of `cells` cells, weighted for each query.
#[inline(always)]
pub(super) fn weigh<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    channels: &[[f32; ROWS]],
    cells: usize,
    weights: &[[f32; QUERIES]],
    into: &mut [[f32; QUERIES]],
) {
    let f = p.floats();
    for (channels, into) in channels.chunks_exact(cells).zip(into.chunks_exact_mut(ROWS)) {
        let mut sums = [[f.splat(0.0); REGISTERS]; ROWS];
        for r in 0..ROWS {
            for i in 0..REGISTERS {
                sums[r][i] = f.load(&into[r][i * <P::Floats as Floats>::LANES..]);
            }
        }
        accumulate(p, &channels[..weights.len()], weights, &mut sums);
        for r in 0..ROWS {
            for i in 0..REGISTERS {
                f.store(sums[r][i], &mut into[r][i * <P::Floats as Floats>::LANES..]);
            }
        }
    }
}

/// `sums[r][i] += sum over k of a[k][r] * b[k][i]`, i counting registers.
#[inline(always)]
fn accumulate<P: Products, const ROWS: usize, const REGISTERS: usize, const QUERIES: usize>(
    p: P,
    a: &[[f32; ROWS]],
    b: &[[f32; QUERIES]],
    sums: &mut [[Vector<P>; REGISTERS]; ROWS],
) {
    let f = p.floats();
    let mut local = *sums;
    for (a, b) in a.iter().zip(b) {
        let mut registers = [f.splat(0.0); REGISTERS];
        for i in 0..REGISTERS {
            registers[i] = f.load(&b[i * <P::Floats as Floats>::LANES..]);
        }
        for r in 0..ROWS {
            let a = f.splat(a[r]);
            for i in 0..REGISTERS {
                local[r][i] = p.dot(a, registers[i], local[r][i]);
            }
        }
    }
    *sums = local;
}

/// Scores of keys behind their query become minus infinity.
#[inline(always)]
pub(super) fn hide<const QUERIES: usize>(
    scores: &mut [[f32; QUERIES]],
    first_query: usize,
    first_key: usize,
    count: usize,
) {
    for (key, scores) in (first_key..).zip(&mut scores[..count]) {
        let hidden = key.saturating_sub(first_query).min(QUERIES);
        scores[..hidden].fill(f32::NEG_INFINITY);
    }
}
