//! AMX's tiles, 16 rows of 64 bytes, as every kernel with them configures them.

use std::arch::asm;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// The operand of `ldtilecfg`: palette 1, all eight tiles of 16 rows of 64 bytes.
#[repr(align(64))]
struct Configuration([u8; 64]);

static CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = TILE_ROWS as u8;
        tile += 1;
    }
    Configuration(bytes)
};

/// Readies the tiles of this thread.
///
/// # Safety
/// The CPU must have AMX and the system allow it.
pub(crate) unsafe fn configure() {
    // SAFETY: reads 64 bytes; tiles are used between `configure` and `release` only.
    unsafe { asm!("ldtilecfg [{}]", in(reg) CONFIGURATION.0.as_ptr(), options(nostack, readonly, preserves_flags)) }
}

/// Gives them back.
///
/// # Safety
/// The CPU must have AMX and the system allow it.
pub(crate) unsafe fn release() {
    // SAFETY: gives the tiles back.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod trap;
