//! Ctrl-C, or a plain `kill`: the first asks for an orderly end, the second is obeyed at once.

use pleinair::{Error, Result};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether an end was asked for, with Ctrl-C or a plain `kill`. What must survive more than that (`kill -9`, a power cut) is in
/// the checkpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub(super) fn listen() -> Result<Self> {
        let interrupt = Interrupt::default();
        let asked = interrupt.0.clone();
        let handler = move || {
            if asked.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            let _ =
                writeln!(std::io::stderr(), "\npleinair: ending after this step; press Ctrl-C again to end at once");
        };
        ctrlc::set_handler(handler)
            .map_err(|e| Error::io(Path::new("the Ctrl-C handler"))(std::io::Error::other(e)))?;
        Ok(interrupt)
    }

    /// To be called wherever work can stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once an end was asked for.
    pub(super) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
