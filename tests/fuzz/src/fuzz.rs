//! libFuzzer's side of the fuzzers: it owns `main` and calls the functions below. `FUZZ_TARGET` names the target, and
//! `FUZZ_SEEDS` the folder that its good files are written to before libFuzzer reads them there.
#![no_main]

use pleinair_fuzz::{Target, mutate, seeds};
use std::path::Path;
use std::sync::OnceLock;

static TARGET: OnceLock<Target> = OnceLock::new();

unsafe extern "C" {
    /// libFuzzer's own mutations of `size` bytes, in place; the new size, at most `longest`.
    fn LLVMFuzzerMutate(data: *mut u8, size: usize, longest: usize) -> usize;
}

fn target() -> Target {
    *TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names the target");
        Target::named(&name).unwrap_or_else(|| panic!("there is no target {name}"))
    })
}

/// Called once, before any input is read.
#[unsafe(no_mangle)]
extern "C" fn LLVMFuzzerInitialize(_arguments: *mut i32, _values: *mut *mut *mut u8) -> i32 {
    let report = std::panic::take_hook();
    // libFuzzer keeps the input when the process is aborted
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    if let Some(folder) = std::env::var_os("FUZZ_SEEDS") {
        for (name, data) in seeds::of(target()) {
            std::fs::write(Path::new(&folder).join(name), data).expect("the folder of seeds can be written to");
        }
    }
    0
}

/// Called for each input.
#[unsafe(no_mangle)]
extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> i32 {
    let data = match size {
        0 => &[],
        // SAFETY: libFuzzer lends `size` bytes for the length of this call.
        _ => unsafe { std::slice::from_raw_parts(data, size) },
    };
    target().run(data);
    0
}

/// Called for each mutation: `data` has room for `longest` bytes and holds `size`.
#[unsafe(no_mangle)]
extern "C" fn LLVMFuzzerCustomMutator(data: *mut u8, size: usize, longest: usize, seed: u32) -> usize {
    // SAFETY: libFuzzer lends `longest` bytes, all of them initialised, for the length of this call.
    let buffer = unsafe { std::slice::from_raw_parts_mut(data, longest) };
    let blindly = |bytes: &[u8], longest: usize| {
        let mut room = bytes.to_vec();
        room.resize(longest.max(bytes.len()), 0);
        // SAFETY: the vector has room for `longest` bytes and holds `bytes.len()` of meaning, no more than that.
        let size = unsafe { LLVMFuzzerMutate(room.as_mut_ptr(), bytes.len(), room.len()) };
        room.truncate(size);
        room
    };
    let mutant = mutate::mutated(target(), &buffer[..size], longest, seed, blindly);
    buffer[..mutant.len()].copy_from_slice(&mutant);
    mutant.len()
}
