//! How int8 weights lie in memory and on disk, one layout for every CPU.
//!
//! Outputs in panels of 16, inputs in groups of 4: `[N/16][Kp/4][16 outputs][4 inputs]`, N padded to a multiple of 16
//! and K to a multiple of 64 with zeros. One group of a panel is one 64-byte register for a four-way dot product, 16
//! groups are one AMX tile.

use rayon::prelude::*;

/// Outputs of one panel.
pub const PANEL: usize = 16;
/// Inputs that lie side by side, the width of one four-way dot product.
pub const GROUP: usize = 4;
/// Inputs are padded to a multiple of this, the depth of an AMX tile.
pub const DEPTH: usize = 64;

/// Inputs with their padding.
pub const fn padded_inputs(inputs: usize) -> usize {
    inputs.next_multiple_of(DEPTH)
}

/// Outputs with their padding.
pub const fn padded_outputs(outputs: usize) -> usize {
    outputs.next_multiple_of(PANEL)
}

/// Bytes of a packed `[outputs, inputs]` weight.
pub const fn packed_len(outputs: usize, inputs: usize) -> usize {
    padded_outputs(outputs) * padded_inputs(inputs)
}

/// Where the weight from `input` to `output` lies.
pub(crate) const fn place(output: usize, input: usize, inputs: usize) -> usize {
    let panel = output / PANEL * PANEL * padded_inputs(inputs);
    panel + input / GROUP * PANEL * GROUP + output % PANEL * GROUP + input % GROUP
}

/// Packs a row-major `[outputs, inputs]` weight.
///
/// # Panics
/// If `rows` does not hold `outputs * inputs` values.
pub fn pack(rows: &[i8], outputs: usize, inputs: usize) -> Vec<i8> {
    assert_eq!(rows.len(), outputs * inputs, "weight of {outputs} rows of {inputs}");
    let mut packed = vec![0; packed_len(outputs, inputs)];
    if inputs == 0 {
        return packed;
    }
    let panels = packed.par_chunks_mut(PANEL * padded_inputs(inputs)).zip(rows.par_chunks(PANEL * inputs));
    panels.for_each(|(panel, rows)| {
        for (output, row) in rows.chunks_exact(inputs).enumerate() {
            let (groups, rest) = row.as_chunks::<GROUP>();
            for (i, group) in groups.iter().enumerate() {
                panel[place(output, i * GROUP, inputs)..][..GROUP].copy_from_slice(group);
            }
            if !rest.is_empty() {
                panel[place(output, groups.len() * GROUP, inputs)..][..rest.len()].copy_from_slice(rest);
            }
        }
    });
    packed
}

/// The row-major `[outputs, inputs]` weight again.
///
/// # Panics
/// If `packed` has not [`packed_len`] bytes.
pub fn unpack(packed: &[i8], outputs: usize, inputs: usize) -> Vec<i8> {
    assert_eq!(packed.len(), packed_len(outputs, inputs), "packed weight of {outputs} rows of {inputs}");
    let mut rows = vec![0; outputs * inputs];
    for output in 0..outputs {
        let row = &mut rows[output * inputs..][..inputs];
        for (i, group) in row.chunks_mut(GROUP).enumerate() {
            group.copy_from_slice(&packed[place(output, i * GROUP, inputs)..][..group.len()]);
        }
    }
    rows
}

/// The sum of each output's weights, `[outputs]`: what kernels for unsigned activations subtract 128 times.
///
/// # Panics
/// If `packed` has not [`packed_len`] bytes.
pub fn sums(packed: &[i8], outputs: usize, inputs: usize) -> Vec<i32> {
    assert_eq!(packed.len(), packed_len(outputs, inputs), "packed weight of {outputs} rows of {inputs}");
    let mut sums = vec![0; padded_outputs(outputs)];
    for (panel, sums) in packed.chunks_exact(PANEL * padded_inputs(inputs).max(1)).zip(sums.chunks_exact_mut(PANEL)) {
        for group in panel.chunks_exact(PANEL * GROUP) {
            for (sum, weights) in sums.iter_mut().zip(group.chunks_exact(GROUP)) {
                *sum += weights.iter().map(|&w| w as i32).sum::<i32>();
            }
        }
    }
    sums.truncate(outputs);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weight() -> impl Strategy<Value = (Vec<i8>, usize, usize)> {
        (0usize..70, 0usize..140).prop_flat_map(|(outputs, inputs)| {
            (prop::collection::vec(any::<i8>(), outputs * inputs), Just(outputs), Just(inputs))
        })
    }

    proptest! {
        #[test]
        fn unpacking_gives_the_rows_back((rows, outputs, inputs) in weight()) {
            let packed = pack(&rows, outputs, inputs);
            prop_assert_eq!(packed.len(), packed_len(outputs, inputs));
            prop_assert_eq!(unpack(&packed, outputs, inputs), rows);
        }

        #[test]
        fn what_is_not_a_weight_is_zero((rows, outputs, inputs) in weight()) {
            let mut packed = pack(&rows, outputs, inputs);
            for output in 0..outputs {
                for input in 0..inputs {
                    packed[place(output, input, inputs)] = 0;
                }
            }
            prop_assert!(packed.iter().all(|&w| w == 0));
        }

        #[test]
        fn sums_are_those_of_the_rows((rows, outputs, inputs) in weight()) {
            let want: Vec<i32> =
                (0..outputs).map(|o| rows[o * inputs..][..inputs].iter().map(|&w| w as i32).sum()).collect();
            prop_assert_eq!(sums(&pack(&rows, outputs, inputs), outputs, inputs), want);
        }
    }

    #[test]
    fn sixteen_groups_of_a_panel_are_one_tile() {
        let (outputs, inputs) = (17, 65);
        let rows: Vec<i8> = (0..outputs * inputs).map(|i| (i % 127 + 1) as i8).collect();
        let packed = pack(&rows, outputs, inputs);
        assert_eq!(packed.len(), 32 * 128);
        // output 3's inputs 4..8 are the second group's fourth quartet
        assert_eq!(packed[64 + 3 * 4..][..4], rows[3 * inputs + 4..][..4]);
        // output 16 opens the second panel, which begins after both tiles of the first
        assert_eq!(packed[2 * 1024..][..4], rows[16 * inputs..][..4]);
        // input 64 opens the second tile and has padding beside it
        assert_eq!(packed[1024..][..4], [rows[64], 0, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "weight of 2 rows of 3")]
    fn a_weight_of_another_size_is_refused() {
        pack(&[0; 5], 2, 3);
    }
}
