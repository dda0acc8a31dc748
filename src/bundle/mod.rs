//! A model on disk, and how files reach the disk whole.

pub mod write;
