//! Weights, as they are stored, into the panels of a product: a part of the inputs at a time, so that no more than that
//! ever exists in another form than the stored one.

use super::kernel::{Bytes, Element, Turn, turn};
use crate::int8::pack::{GROUP as INT8_GROUP, PANEL, padded_inputs, place};
use crate::weight::{Int8, Packing, Values, Weight};
use half::{bf16, f16};
use std::ops::Range;

/// The second factor of a product, `[K, N]`, made of a stored weight's bare values: neither scales nor smoothing are in.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    values: &'a Values,
    /// Rows of the stored weight.
    outputs: usize,
    /// Columns of the stored weight.
    inputs: usize,
    direction: Direction,
}

/// What is multiplied with the weight.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Direction {
    /// Inputs: K are the inputs, N the outputs.
    Forward,
    /// The gradient of the outputs: K are (tap, output), N the channels of the input. The taps of a stored row count
    /// backwards, since what went to a pixel's right comes back from its left.
    Backward { taps: usize },
}

/// A stored number.
trait Number: Copy + Default {
    /// Exactly, if `E` holds it.
    fn to<E: Element>(self) -> E;

    /// The 32 bits of a group.
    #[inline(always)]
    fn word<E: Element>(group: [Self; 2]) -> u32 {
        E::word(group.map(Self::to))
    }

    /// The numbers themselves, if they are already of the product's type.
    #[inline(always)]
    fn same<E: Element>(_numbers: &[Self]) -> Option<&[E]> {
        None
    }
}

impl Number for f32 {
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        E::round(self)
    }

    #[inline(always)]
    fn same<E: Element>(numbers: &[Self]) -> Option<&[E]> {
        E::same_f32(numbers)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        E::from_bf16(self)
    }

    #[inline(always)]
    fn same<E: Element>(numbers: &[Self]) -> Option<&[E]> {
        E::same_bf16(numbers)
    }
}

impl Number for i8 {
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        E::round(self as f32)
    }

    #[inline(always)]
    fn word<E: Element>(group: [Self; 2]) -> u32 {
        E::word_of_i8(group)
    }
}

impl Number for f16 {
    /// Without a branch, so that the compiler does many at once.
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        let bits = self.to_bits() as u32;
        // the exponent counts from 112 further down, which also makes subnormals whole
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        let endless = if bits & 0x7c00 == 0x7c00 { 0xff << 23 } else { 0 };
        E::round(f32::from_bits(magnitude.to_bits() | endless | (bits & 0x8000) << 16))
    }
}

impl<'a> Factor<'a> {
    pub(super) fn forward(weight: &'a Weight) -> Self {
        let (outputs, inputs) = (weight.outputs(), weight.inputs());
        Factor { values: weight.values(), outputs, inputs, direction: Direction::Forward }
    }

    /// For a weight whose inputs are (tap, channel).
    pub(super) fn backward(weight: &'a Weight, taps: usize) -> Self {
        assert!(weight.inputs().is_multiple_of(taps), "{} inputs of {taps} taps", weight.inputs());
        Factor { direction: Direction::Backward { taps }, ..Factor::forward(weight) }
    }

    /// K.
    pub(super) fn depth(&self) -> usize {
        match self.direction {
            Direction::Forward => self.inputs,
            Direction::Backward { taps } => taps * self.outputs,
        }
    }

    /// N.
    pub(super) fn width(&self) -> usize {
        match self.direction {
            Direction::Forward => self.outputs,
            Direction::Backward { taps } => self.inputs / taps,
        }
    }

    /// Writes part `ks` of some panels, each `[groups][16]`, zero beyond the factor. Inlined, so that it is compiled for
    /// the token.
    ///
    /// # Panics
    /// If `into` is not as long, or `ks.start` no multiple of 16.
    #[inline(always)]
    pub(super) fn pack<E: Element>(&self, token: impl Turn, part: &Part, into: &mut [u32]) {
        let Part { panels, ks, groups } = part;
        assert!(ks.start.is_multiple_of(PANEL) && ks.end <= self.depth() && groups * E::GROUP >= ks.len());
        assert_eq!(into.len(), panels.len() * groups * PANEL);
        match (self.values, self.direction) {
            (Values::F32(w), Direction::Forward) => self.pack_rows::<E, _>(token, w, part, into),
            (Values::F16(w), Direction::Forward) => self.pack_rows::<E, _>(token, w, part, into),
            (Values::Bf16(w), Direction::Forward) => self.pack_rows::<E, _>(token, w, part, into),
            (Values::F32(w), Direction::Backward { taps }) => self.pack_columns::<E, _>(w, taps, part, into),
            (Values::F16(w), Direction::Backward { taps }) => self.pack_columns::<E, _>(w, taps, part, into),
            (Values::Bf16(w), Direction::Backward { taps }) => self.pack_columns::<E, _>(w, taps, part, into),
            (Values::Int8(Int8 { values: w, packing, .. }), direction) => match (packing, direction) {
                (Packing::Rows, Direction::Forward) => self.pack_rows::<E, _>(token, w, part, into),
                (Packing::Rows, Direction::Backward { taps }) => self.pack_columns::<E, _>(w, taps, part, into),
                (Packing::Panels, Direction::Forward) => self.pack_panels::<E>(w, part, into),
                (Packing::Panels, Direction::Backward { taps }) => {
                    self.pack_turned_panels::<E>(token, w, taps, part, into);
                }
            },
        }
    }

    /// From rows along K.
    #[inline(always)]
    fn pack_rows<E: Element, N: Number>(&self, token: impl Turn, w: &[N], part: &Part, into: &mut [u32]) {
        let Part { panels, ks, groups } = part;
        // as many inputs as are turned at once
        let step = PANEL * E::GROUP;
        for (panel, into) in panels.clone().zip(into.chunks_exact_mut(groups * PANEL)) {
            let first = panel * PANEL;
            let rows = PANEL.min(self.outputs - first);
            for (k, into) in (ks.start..).step_by(step).zip(into.chunks_mut(PANEL * PANEL)) {
                let count = step.min(ks.end.saturating_sub(k));
                let from = first * self.inputs + k;
                let whole = rows == PANEL && count == step;
                match N::same(w) {
                    Some(w) if whole => turn::<E>(token, &w[from..], self.inputs, into),
                    _ if whole => {
                        let mut stage = [[E::ZERO; 2 * PANEL]; PANEL];
                        for r in 0..PANEL {
                            let row = &w[from + r * self.inputs..][..step];
                            for i in 0..step {
                                stage[r][i] = row[i].to();
                            }
                        }
                        turn(token, stage.as_flattened(), 2 * PANEL, into);
                    }
                    _ => {
                        let mut stage = [[E::ZERO; 2 * PANEL]; PANEL];
                        for r in 0..rows {
                            let row = &w[from + r * self.inputs..][..count];
                            stage[r].iter_mut().zip(row).for_each(|(into, &w)| *into = w.to());
                        }
                        let mut turned = [0; PANEL * PANEL];
                        turn(token, stage.as_flattened(), 2 * PANEL, &mut turned);
                        into.copy_from_slice(&turned[..into.len()]);
                    }
                }
            }
        }
    }

    /// From rows along N.
    #[inline(always)]
    fn pack_columns<E: Element, N: Number>(&self, w: &[N], taps: usize, part: &Part, into: &mut [u32]) {
        let Part { panels, ks, groups } = part;
        let width = self.width();
        for group in 0..*groups {
            let rows: [&[N]; 2] = std::array::from_fn(|j| {
                let k = ks.start + group * E::GROUP + j;
                if j >= E::GROUP || k >= ks.end {
                    return &[][..];
                }
                let (tap, output) = (k / self.outputs, k % self.outputs);
                &w[output * self.inputs + (taps - 1 - tap) * width..][..width]
            });
            for (i, panel) in panels.clone().enumerate() {
                let rows = rows.map(|row| {
                    let row = row.get(panel * PANEL..).unwrap_or(&[]);
                    row.first_chunk::<PANEL>().copied().unwrap_or_else(|| {
                        let mut rest = [N::default(); PANEL];
                        rest[..row.len()].copy_from_slice(row);
                        rest
                    })
                });
                write_words::<E, N>([&rows[0], &rows[1]], &mut into[(i * groups + group) * PANEL..]);
            }
        }
    }

    /// From int8 panels, which have K in groups.
    #[inline(always)]
    fn pack_panels<E: Element>(&self, w: &[i8], part: &Part, into: &mut [u32]) {
        let Part { panels, ks, groups } = part;
        let size = PANEL * padded_inputs(self.inputs);
        for (panel, into) in panels.clone().zip(into.chunks_exact_mut(groups * PANEL)) {
            let w = &w[panel * size..][..size][ks.start * PANEL..];
            for (group, into) in into.chunks_exact_mut(PANEL).enumerate() {
                let k = group * E::GROUP;
                for n in 0..PANEL {
                    // beyond the inputs it is zero there as well, as far as that goes
                    let value = |k: usize| match k < ks.len() {
                        true => w[(k / INT8_GROUP * PANEL + n) * INT8_GROUP + k % INT8_GROUP],
                        false => 0,
                    };
                    into[n] = i8::word::<E>([value(k), if E::GROUP == 2 { value(k + 1) } else { 0 }]);
                }
            }
        }
    }

    /// From int8 panels, which have N in groups.
    #[inline(always)]
    fn pack_turned_panels<E: Element>(&self, token: impl Turn, w: &[i8], taps: usize, part: &Part, into: &mut [u32]) {
        let Part { panels, ks, groups } = part;
        let (width, size) = (self.width(), padded_inputs(self.inputs) * PANEL);
        let step = PANEL / E::GROUP;
        for (at, k) in (0..*groups).step_by(step).zip((ks.start..).step_by(PANEL)) {
            let count = step.min(groups - at);
            let (tap, output) = (k / self.outputs, k % self.outputs);
            // sixteen outputs of one stored panel
            let aligned = output.is_multiple_of(PANEL) && output + PANEL <= self.outputs && k + PANEL <= ks.end;
            for (i, panel) in panels.clone().enumerate() {
                let first = panel * PANEL;
                let mut rows = Bytes([[0; PANEL]; PANEL]);
                let from = taps.saturating_sub(1 + tap) * width + first;
                if aligned && from.is_multiple_of(INT8_GROUP) && first + PANEL <= width {
                    let from = output / PANEL * size + from * PANEL;
                    let groups = w[from..].first_chunk().expect("four groups of a stored panel");
                    token.turn_bytes(groups, &mut rows);
                } else {
                    for (row, k) in (k..ks.end).take(PANEL).enumerate() {
                        let (tap, output) = (k / self.outputs, k % self.outputs);
                        for n in 0..PANEL.min(width - first) {
                            let from = place(output, (taps - 1 - tap) * width + first + n, self.inputs);
                            rows.0[Bytes::place(row)][n] = w[from];
                        }
                    }
                }
                let into = &mut into[(i * groups + at) * PANEL..][..count * PANEL];
                for (group, into) in into.chunks_exact_mut(PANEL).enumerate() {
                    let row = |j: usize| &rows.0[Bytes::place((group * E::GROUP + j) % PANEL)];
                    write_words::<E, i8>([row(0), row(1)], into);
                }
            }
        }
    }
}

/// A part of a factor.
pub(super) struct Part {
    pub(super) panels: Range<usize>,
    pub(super) ks: Range<usize>,
    /// As many as `ks` fill, with the padding.
    pub(super) groups: usize,
}

/// A group of each of 16 outputs.
#[inline(always)]
fn write_words<E: Element, N: Number>(rows: [&[N; PANEL]; 2], into: &mut [u32]) {
    let into = &mut into[..PANEL];
    for n in 0..PANEL {
        into[n] = N::word::<E>([rows[0][n], rows[1][n]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_itself() {
        for half in (0..=u16::MAX).map(f16::from_bits) {
            let (got, want): (f32, f32) = (Number::to(half), half.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{half} as {got}");
        }
    }
}
