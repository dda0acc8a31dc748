//! The `pleinair` program: arguments to calls, results to exit codes.
#![forbid(unsafe_code)]

mod cli;

use pleinair::Error;
use std::io::Write;
use std::process::ExitCode;

// Feature maps of megabytes, taken anew by every operation, would otherwise be page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pleinair_cpu::leave_candles_pool_asleep();
    pleinair_cpu::keep_freed_memory();
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when this cannot be written.
            let _ = writeln!(std::io::stderr(), "pleinair: {error}");
            exit_code(&error)
        }
    }
}

/// 1 failed, 2 wrong usage, 130 interrupted (128 + SIGINT, as shells have it).
fn exit_code(error: &Error) -> ExitCode {
    ExitCode::from(match error {
        Error::Usage(_) => 2,
        Error::Interrupted => 130,
        _ => 1,
    })
}
