//! Weights, as they are stored, into the panels of a product: a part of the inputs at a time, so that no more than that
//! ever exists in another form than the stored one.

use super::kernel::{Element, Turn, turn};
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
trait Number: Copy {
    /// Exactly, if `E` holds it.
    fn to<E: Element>(self) -> E;
}

impl Number for f32 {
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        E::round(self)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        E::from_bf16(self)
    }
}

impl Number for i8 {
    #[inline(always)]
    fn to<E: Element>(self) -> E {
        E::round(self as f32)
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

    /// Writes part `ks` of some panels, each `[depth / GROUP][16][GROUP]`, zero beyond the factor. Inlined, so that it is
    /// compiled for the token.
    ///
    /// # Panics
    /// If `into` is not as long, or `ks.start` no multiple of 16.
    #[inline(always)]
    pub(super) fn pack<E: Element>(
        &self,
        token: impl Turn,
        panels: Range<usize>,
        ks: Range<usize>,
        depth: usize,
        into: &mut [E],
    ) {
        assert!(ks.start.is_multiple_of(PANEL) && ks.end <= self.depth() && depth >= ks.len());
        assert_eq!(into.len(), panels.len() * depth * PANEL);
        match (self.values, self.direction) {
            (Values::F32(w), Direction::Forward) => self.pack_rows(token, w, panels, ks, depth, into),
            (Values::F16(w), Direction::Forward) => self.pack_rows(token, w, panels, ks, depth, into),
            (Values::Bf16(w), Direction::Forward) => self.pack_rows(token, w, panels, ks, depth, into),
            (Values::F32(w), Direction::Backward { taps }) => self.pack_columns(w, taps, panels, ks, depth, into),
            (Values::F16(w), Direction::Backward { taps }) => self.pack_columns(w, taps, panels, ks, depth, into),
            (Values::Bf16(w), Direction::Backward { taps }) => self.pack_columns(w, taps, panels, ks, depth, into),
            (Values::Int8(Int8 { values, packing, .. }), direction) => match (packing, direction) {
                (Packing::Rows, Direction::Forward) => self.pack_rows(token, values, panels, ks, depth, into),
                (Packing::Rows, Direction::Backward { taps }) => {
                    self.pack_columns(values, taps, panels, ks, depth, into);
                }
                (Packing::Panels, Direction::Forward) => self.pack_panels(values, panels, ks, depth, into),
                (Packing::Panels, Direction::Backward { taps }) => {
                    self.pack_turned_panels(values, taps, panels, ks, depth, into);
                }
            },
        }
    }

    /// From rows along K.
    #[inline(always)]
    fn pack_rows<E: Element, N: Number>(
        &self,
        token: impl Turn,
        w: &[N],
        panels: Range<usize>,
        ks: Range<usize>,
        depth: usize,
        into: &mut [E],
    ) {
        let inputs = self.inputs;
        for (panel, into) in panels.zip(into.chunks_exact_mut(depth * PANEL)) {
            let first = panel * PANEL;
            let rows = PANEL.min(self.outputs - first);
            // as many inputs as are turned at once
            let step = PANEL * E::GROUP;
            for (at, into) in (ks.start..).step_by(step).zip(into.chunks_mut(step * PANEL)) {
                let count = step.min(ks.end.saturating_sub(at));
                let mut stage = Stage([[E::ZERO; 2 * PANEL]; PANEL]);
                for r in 0..rows {
                    let row = &w[(first + r) * inputs + at..][..count];
                    if count == step {
                        for i in 0..step {
                            stage.0[r][i] = row[i].to();
                        }
                    } else {
                        stage.0[r].iter_mut().zip(row).for_each(|(into, &w)| *into = w.to());
                    }
                }
                let stage = stage.0.as_flattened();
                if into.len() == step * PANEL {
                    turn(token, stage, 2 * PANEL, into);
                } else {
                    let mut turned = Stage([[E::ZERO; 2 * PANEL]; PANEL]);
                    turn(token, stage, 2 * PANEL, turned.0.as_flattened_mut());
                    into.copy_from_slice(&turned.0.as_flattened()[..into.len()]);
                }
            }
        }
    }

    /// From rows along N.
    #[inline(always)]
    fn pack_columns<E: Element, N: Number>(
        &self,
        w: &[N],
        taps: usize,
        panels: Range<usize>,
        ks: Range<usize>,
        depth: usize,
        into: &mut [E],
    ) {
        let width = self.width();
        for group in 0..depth / E::GROUP {
            let rows: [Option<&[N]>; 2] = std::array::from_fn(|j| {
                let k = ks.start + group * E::GROUP + j;
                (j < E::GROUP && k < ks.end).then(|| {
                    let (tap, output) = (k / self.outputs, k % self.outputs);
                    &w[output * self.inputs + (taps - 1 - tap) * width..][..width]
                })
            });
            for (i, panel) in panels.clone().enumerate() {
                let mut sixteen = [[E::ZERO; PANEL]; 2];
                for j in 0..E::GROUP {
                    let Some(row) = rows[j] else { continue };
                    let row = &row[panel * PANEL..];
                    match row.first_chunk::<PANEL>() {
                        Some(row) => sixteen[j] = row.map(N::to),
                        None => sixteen[j].iter_mut().zip(row).for_each(|(into, &w)| *into = w.to()),
                    }
                }
                interleave(&sixteen, &mut into[(i * depth / E::GROUP + group) * PANEL * E::GROUP..]);
            }
        }
    }

    /// From int8 panels, which have K in groups.
    #[inline(always)]
    fn pack_panels<E: Element>(&self, w: &[i8], panels: Range<usize>, ks: Range<usize>, depth: usize, into: &mut [E]) {
        let size = PANEL * padded_inputs(self.inputs);
        for (panel, into) in panels.zip(into.chunks_exact_mut(depth * PANEL)) {
            // the padding is zero there as well
            let w = &w[panel * size..][..size][ks.start * PANEL..];
            for (k, into) in (0..).step_by(E::GROUP).zip(into.chunks_exact_mut(PANEL * E::GROUP)) {
                for j in 0..E::GROUP {
                    let k = k + j;
                    let four = w.get(k / INT8_GROUP * PANEL * INT8_GROUP..).unwrap_or(&[]);
                    for n in 0..PANEL {
                        let value = match k < ks.len() {
                            true => four[n * INT8_GROUP + k % INT8_GROUP].to(),
                            false => E::ZERO,
                        };
                        into[n * E::GROUP + j] = value;
                    }
                }
            }
        }
    }

    /// From int8 panels, which have N in groups.
    #[inline(always)]
    fn pack_turned_panels<E: Element>(
        &self,
        w: &[i8],
        taps: usize,
        panels: Range<usize>,
        ks: Range<usize>,
        depth: usize,
        into: &mut [E],
    ) {
        const WHOLE: usize = PANEL / INT8_GROUP;
        let (width, size) = (self.width(), padded_inputs(self.inputs) * PANEL);
        for (at, k) in (0..depth).step_by(PANEL).zip((ks.start..).step_by(PANEL)) {
            let count = PANEL.min(depth - at);
            let (tap, output) = (k / self.outputs, k % self.outputs);
            for (i, panel) in panels.clone().enumerate() {
                let first = panel * PANEL;
                let into = &mut into[(i * depth + at) * PANEL..][..count * PANEL];
                let mut sixteen = Bytes([[0; PANEL]; PANEL]);
                // sixteen outputs of one stored panel
                let aligned = output.is_multiple_of(PANEL) && output + PANEL <= self.outputs && k + PANEL <= ks.end;
                let from = taps.saturating_sub(1 + tap) * width + first;
                if aligned && from.is_multiple_of(INT8_GROUP) && first + PANEL <= width {
                    let groups = &w[output / PANEL * size + from * PANEL..][..WHOLE * PANEL * INT8_GROUP];
                    for g in 0..WHOLE {
                        for o in 0..PANEL {
                            let four = &groups[(g * PANEL + o) * INT8_GROUP..][..INT8_GROUP];
                            sixteen.0[o][g * INT8_GROUP..][..INT8_GROUP].copy_from_slice(four);
                        }
                    }
                } else {
                    for (j, k) in (k..ks.end).take(PANEL).enumerate() {
                        let (tap, output) = (k / self.outputs, k % self.outputs);
                        for n in 0..PANEL.min(width - first) {
                            sixteen.0[j][n] = w[place(output, (taps - 1 - tap) * width + first + n, self.inputs)];
                        }
                    }
                }
                for (group, into) in into.chunks_exact_mut(PANEL * E::GROUP).enumerate() {
                    let rows = std::array::from_fn(|j| sixteen.0[(group * E::GROUP + j) % PANEL].map(i8::to));
                    interleave(&rows, into);
                }
            }
        }
    }
}

/// A part of 16 rows before it is turned.
#[repr(align(64))]
struct Stage<E>([[E; 2 * PANEL]; PANEL]);

#[repr(align(64))]
struct Bytes([[i8; PANEL]; PANEL]);

/// `into[n * GROUP + j] = rows[j][n]`.
#[inline(always)]
fn interleave<E: Element>(rows: &[[E; PANEL]; 2], into: &mut [E]) {
    let into = &mut into[..PANEL * E::GROUP];
    for n in 0..PANEL {
        for j in 0..E::GROUP {
            into[n * E::GROUP + j] = rows[j][n];
        }
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
