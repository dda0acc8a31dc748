//! A frozen weight on the device, and parts of it as they are multiplied.

use super::Bench;
use crate::machine::{Kind, Machine, Matrix, Place, parameters};
use candle_core::{Result, bail};
use std::ops::Range;
use std::sync::Arc;

/// How the values are stored.
#[derive(Debug)]
pub enum Stored<'a, M> {
    /// `[outputs, inputs]`.
    F32(Place<'a, M>),
    /// `[outputs, inputs]`.
    F16(Place<'a, M>),
    /// `W[o, i] = rows[o, i] * scales[o] / smooth[i]`.
    Int8 {
        /// `[outputs, inputs]`.
        rows: Place<'a, M>,
        /// `[outputs]`, f32.
        scales: Place<'a, M>,
        /// f32, and how many: one for each channel.
        smooth: Option<(Place<'a, M>, usize)>,
    },
}

/// `W: [outputs, inputs]`.
#[derive(Debug)]
pub struct Weight<'a, M> {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// The values.
    pub stored: Stored<'a, M>,
}

parameters! {
    /// A part of a weight.
    Tile { count: usize, columns: usize, inputs: usize, first_row: usize, first_column: usize, channels: usize }
}

/// Some rows and columns of a weight, in the type of the activations.
pub(crate) enum Part<'a, M> {
    /// They lie in the weight like that.
    Stored(Place<'a, M>, usize),
    /// They have been made.
    Made(Arc<M>, usize),
}

impl<M> Part<'_, M> {
    pub(crate) fn matrix(&self) -> Matrix<'_, M> {
        match self {
            Part::Stored(place, stride) => Matrix::new(*place, *stride),
            Part::Made(memory, stride) => Matrix::new(Place::start(memory), *stride),
        }
    }
}

impl<'a, M> Weight<'a, M> {
    /// Where the values lie if they need not be converted for products of this type.
    fn as_is(&self, kind: Kind) -> Option<Place<'a, M>> {
        match (&self.stored, kind) {
            (Stored::F32(place), Kind::F32) | (Stored::F16(place), Kind::F16) => Some(*place),
            _ => None,
        }
    }

    /// How many rows of a tile of `columns` may be converted at once.
    pub(crate) fn rows_at_once<D: Machine<Memory = M>>(&self, bench: Bench<'_, D>) -> usize {
        self.at_once(bench, self.outputs, self.inputs)
    }

    /// How many columns of all rows may be converted at once.
    pub(crate) fn columns_at_once<D: Machine<Memory = M>>(&self, bench: Bench<'_, D>) -> usize {
        self.at_once(bench, self.inputs, self.outputs)
    }

    fn at_once<D: Machine<Memory = M>>(&self, bench: Bench<'_, D>, all: usize, numbers: usize) -> usize {
        match self.as_is(bench.kind) {
            Some(_) => all,
            None => (bench.limits.tile / (numbers * bench.kind.bytes())).clamp(1, all),
        }
    }

    /// Fails if the smoothing is not for so many channels.
    pub(crate) fn check_smoothing(&self, channels: usize) -> Result<()> {
        match self.stored {
            Stored::Int8 { smooth: Some((_, len)), .. } if len != channels => {
                bail!("a layer for {channels} features has a weight smoothed for {len}")
            }
            _ => Ok(()),
        }
    }

    /// `W[rows, columns]` in the type of the activations.
    pub(crate) fn part<D: Machine<Memory = M>>(
        &self,
        bench: Bench<'_, D>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Part<'a, M>> {
        if let Some(place) = self.as_is(bench.kind) {
            return Ok(Part::Stored(place.after(rows.start * self.inputs + columns.start, bench.kind), self.inputs));
        }
        let (count, width) = (rows.len() * columns.len(), columns.len());
        let made = bench.numbers(count)?;
        let tile = Tile {
            count,
            columns: width,
            inputs: self.inputs,
            first_row: rows.start,
            first_column: columns.start,
            channels: match self.stored {
                Stored::Int8 { smooth: Some((_, len)), .. } => len,
                _ => 0,
            },
        }
        .words()?;
        let into = [Place::start(&*made)];
        match self.stored {
            Stored::F32(w) => bench.run("float_tile", &[w], &into, &tile, count)?,
            Stored::F16(w) => bench.run("half_tile", &[w], &into, &tile, count)?,
            Stored::Int8 { rows, scales, smooth } => {
                // something must be bound where there is no smoothing
                let smooth = smooth.map_or(scales, |(place, _)| place);
                bench.run("int8_tile", &[rows, scales, smooth], &into, &tile, count)?
            }
        }
        Ok(Part::Made(made, width))
    }
}
