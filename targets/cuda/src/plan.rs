//! Which tiles a product is cut into, and into how many parts of k: what should be fastest by a count of clocks. It
//! depends on the sizes and the number of processors alone, so a result is the same every time.

/// Of k, in one step of the tensor-core kernels.
const DEPTH: usize = 32;
/// Multiplications of f16 a processor of the Ampere generation does in a clock; Hopper's does more, of everything.
const PRODUCTS_A_CLOCK: f64 = 1024.0;
/// Clocks from asking for a tile to having it, of which the pipeline hides all but this share of a step.
const STEP_LATENCY: f64 = 300.0;
/// What a second launch and the wait for the last block of the first cost.
const REDUCTION: f64 = 4000.0;
/// Bytes of partial sums that a processor writes or reads in a clock.
const BYTES_A_CLOCK: f64 = 16.0;
/// Of partial sums, in numbers.
const MOST_PARTIAL: usize = 16 << 20;
/// Fewer steps are not worth a part.
const FEWEST_STEPS: usize = 4;

/// A block's part of C.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tile {
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Blocks that one processor runs at a time, by their registers and shared memory.
    resident: usize,
    /// Share of the peak that it was made for: smaller tiles read each number more often.
    efficiency: f64,
}

/// The tiles of the tensor-core kernels, the largest first.
pub(crate) const TILES: [Tile; 3] = [
    Tile { m: 128, n: 128, resident: 2, efficiency: 0.8 },
    Tile { m: 128, n: 64, resident: 3, efficiency: 0.7 },
    Tile { m: 64, n: 64, resident: 4, efficiency: 0.55 },
];
/// Of the kernels that take their numbers one by one.
pub(crate) const SMALL: Tile = Tile { m: 64, n: 64, resident: 4, efficiency: 0.1 };

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// As many products.
    pub(crate) matrices: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Plan {
    pub(crate) tile: Tile,
    /// Of k; each gives partial sums if there is more than one.
    pub(crate) parts: usize,
    /// Of 32 of k, in each part; the last may have fewer.
    pub(crate) steps: usize,
}

impl Plan {
    /// All of k at once.
    pub(crate) fn whole(tile: Tile, sizes: Sizes) -> Self {
        Plan { tile, parts: 1, steps: sizes.k.div_ceil(DEPTH) }
    }

    /// The fastest with one of `tiles` on a GPU of so many processors.
    pub(crate) fn fastest(sizes: Sizes, tiles: &[Tile], processors: usize, may_split: bool) -> Self {
        let steps = sizes.k.div_ceil(DEPTH);
        let parts = |most: usize| (1..=most).map(|parts| steps.div_ceil(parts));
        let most = match may_split {
            true => (steps / FEWEST_STEPS).min(MOST_PARTIAL / (sizes.m * sizes.n).max(1)).clamp(1, 32),
            false => 1,
        };
        let candidates = tiles.iter().flat_map(|&tile| {
            // as many parts as that many steps each make: none is empty
            parts(most).map(move |each| Plan { tile, parts: steps.div_ceil(each), steps: each })
        });
        let clocks = |plan: &Plan| plan.clocks(sizes, processors);
        candidates.min_by(|a, b| clocks(a).total_cmp(&clocks(b))).unwrap_or(Plan::whole(SMALL, sizes))
    }

    /// How long the busiest processor should take.
    fn clocks(&self, Sizes { m, n, matrices, .. }: Sizes, processors: usize) -> f64 {
        let Tile { m: tile_m, n: tile_n, resident, efficiency } = self.tile;
        let blocks = m.div_ceil(tile_m) * n.div_ceil(tile_n) * matrices * self.parts;
        let blocks_each = blocks.div_ceil(processors.max(1));
        let multiply = blocks_each as f64 * (tile_m * tile_n * DEPTH) as f64 / PRODUCTS_A_CLOCK / efficiency;
        let wait = blocks_each.div_ceil(resident) as f64 * STEP_LATENCY;
        let reduce = match self.parts {
            1 => 0.0,
            parts => REDUCTION + (8 * parts * m * n) as f64 / (processors as f64 * BYTES_A_CLOCK),
        };
        self.steps as f64 * multiply.max(wait) + reduce
    }
}

#[cfg(test)]
mod tests {
    use super::{Plan, SMALL, Sizes, TILES};

    /// Jetson AGX Orin and H100.
    const PROCESSORS: [usize; 2] = [16, 132];

    #[test]
    fn every_part_has_work_and_all_of_k_is_covered() {
        for processors in [1, 16, 132] {
            for k in [1, 31, 32, 33, 127, 128, 320, 2880, 11520, 23040] {
                for (m, n) in [(1, 1), (2, 1280), (64, 64), (128, 1280), (8192, 320)] {
                    let plan = Plan::fastest(Sizes { m, n, k, matrices: 1 }, &TILES, processors, true);
                    let steps = k.div_ceil(32);
                    assert!(plan.parts * plan.steps >= steps, "{plan:?} for k = {k}");
                    assert!((plan.parts - 1) * plan.steps < steps, "{plan:?} for k = {k}");
                }
            }
        }
    }

    #[test]
    fn many_rows_take_large_tiles_and_few_rows_with_much_to_add_are_split() {
        for processors in PROCESSORS {
            let large = Plan::fastest(Sizes { m: 65536, n: 1280, k: 1280, matrices: 1 }, &TILES, processors, true);
            assert_eq!((large.tile, large.parts), (TILES[0], 1));
            let deep = Plan::fastest(Sizes { m: 128, n: 1280, k: 11520, matrices: 1 }, &TILES, processors, true);
            assert!(deep.parts > 1, "{deep:?}");
            let heads = Plan::fastest(Sizes { m: 128, n: 64, k: 11520, matrices: 16 }, &TILES, processors, false);
            assert_eq!(heads.parts, 1);
        }
    }

    #[test]
    fn a_choice_of_one_is_taken() {
        let sizes = Sizes { m: 7, n: 5, k: 36, matrices: 1 };
        let plan = Plan::fastest(sizes, &[SMALL], 16, true);
        assert_eq!(plan, Plan::whole(SMALL, sizes));
    }
}
