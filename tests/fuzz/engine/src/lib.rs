//! Nothing of its own: cargo builds libFuzzer for it (see `tests/fuzz/run.sh`).
