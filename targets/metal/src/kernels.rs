//! The sources of our own kernels, in the Metal Shading Language.

use crate::machine::Kind;

const SOURCES: [&str; 6] = [
    include_str!("../kernels/prelude.metal"),
    include_str!("../kernels/pointwise.metal"),
    include_str!("../kernels/weight.metal"),
    include_str!("../kernels/convolution.metal"),
    include_str!("../kernels/norm.metal"),
    include_str!("../kernels/attention.metal"),
];

/// All kernels for activations of one type, as one source.
pub fn source(kind: Kind) -> String {
    format!("typedef {} Number;\n{}", kind.metal_name(), SOURCES.join("\n"))
}

/// The kernels' names, in the order of the sources.
pub fn names() -> Vec<&'static str> {
    let after = |source: &'static str| source.split("kernel void ").skip(1);
    SOURCES.iter().flat_map(|source| after(source)).map(|rest| rest.split('(').next().unwrap_or(rest).trim()).collect()
}
