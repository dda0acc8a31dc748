//! Memory that is used again instead of being given back, and results that are not zeroed before they are written.

use crate::Plain;
// only for the library that defines the functions below
use libmimalloc_sys as _;
use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay`: milliseconds until freed pages go back to the system, 1000 at first, never if negative.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    /// Sets an option unless the environment (`MIMALLOC_PURGE_DELAY`) has; <https://microsoft.github.io/mimalloc>.
    fn mi_option_set_default(option: c_int, value: c_long);

    /// Gives free pages back, with `force` all of them.
    fn mi_collect(force: bool);
}

/// Lets a program whose allocator is mimalloc keep the pages it frees. Every layer frees maps of megabytes that the next
/// one takes again; pages that went back to the system in between come back cleared, one fault each, which was a tenth
/// of an evaluation of the UNet. The peak stays what it is. The user's `MIMALLOC_PURGE_DELAY` goes before.
pub fn keep_freed_memory() {
    // SAFETY: it sets a number that mimalloc reads whenever it frees; any value is allowed at any time.
    unsafe { mi_option_set_default(PURGE_DELAY, -1) };
}

/// For a program that runs for months: freed pages are kept for ten seconds, many times what lies between two layers. For
/// ever, each heap would stay as large as the most that ever was in it, and the sum creeps up for hours.
pub fn keep_freed_memory_for_a_while() {
    // SAFETY: as above.
    unsafe { mi_option_set_default(PURGE_DELAY, 10_000) };
}

/// Gives freed pages back to the system after all: between parts of the work whose maps have nothing in common.
pub fn return_freed_memory() {
    // SAFETY: it touches only what nobody has.
    unsafe { mi_collect(true) };
}

/// A result of `len` numbers for an op that writes all of them: zeroing it first would cost as much again as writing.
///
/// # Safety
/// No number may be read before it was written.
pub(crate) unsafe fn unwritten<T: Plain>(len: usize) -> Vec<T> {
    let values = Box::new_uninit_slice(len);
    // SAFETY: every bit pattern is a number, and the caller reads none before writing it.
    unsafe { values.assume_init() }.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn mi_option_get(option: c_int) -> c_long;
    }

    #[test]
    fn the_option_is_the_delay_of_purging_and_then_never() {
        // SAFETY: as above.
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            assert_eq!(delay(), 1000, "mimalloc's own");
            keep_freed_memory();
            assert_eq!(delay(), -1);
            keep_freed_memory_for_a_while();
            assert_eq!(delay(), 10_000);
        }
    }
}
