//! The frozen helpers beside the networks.

pub mod soft_edges;
