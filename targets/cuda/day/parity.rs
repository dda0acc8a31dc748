//! Every test that an NVIDIA card has to pass, as one program (`make gpu-day`): it travels to machines that build nothing,
//! and what the test programs have in common travels once. `parity NAME::` runs the tests of one file.
#![allow(clippy::duplicate_mod)] // each file brings what it compares with, as it does where it is a program of its own

// the kernels beside the processor's; what only the emulated device can play is in open.rs
#[path = "../tests/add.rs"]
mod add;
#[path = "../tests/attention.rs"]
mod attention;
#[path = "../tests/conv.rs"]
mod conv;
#[path = "../tests/device.rs"]
mod device;
#[path = "../tests/geglu.rs"]
mod geglu;
#[path = "../tests/graph.rs"]
mod graph;
#[path = "../tests/linear.rs"]
mod linear;
#[path = "../tests/norm.rs"]
mod norm;

// networks, paintings and lessons beside PyTorch's and the processor's
#[path = "../../../tests/bundles.rs"]
mod bundles;
#[path = "../../../tests/gpu.rs"]
mod gpu;
#[path = "../../../tests/gradients.rs"]
mod gradients;
#[path = "../../../tests/learning.rs"]
mod learning;
#[path = "../../../tests/networks.rs"]
mod networks;
#[path = "../../../tests/painting.rs"]
mod painting;
