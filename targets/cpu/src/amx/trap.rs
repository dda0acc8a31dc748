//! Runs the AMX kernels on CPUs without AMX: each tile instruction traps, and the handler does what it says (Intel's
//! Software Developer's Manual, volume 2, and its VEX encodings). So the very machine code is tested; where the CPU has
//! AMX nothing traps and the same tests run on it.

use crate::isa::Amx;
use std::cell::{Cell, UnsafeCell};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The tiles of a thread, 16 rows of 64 bytes, and the rows and bytes per row that are configured.
struct Tiles {
    bytes: UnsafeCell<[[[u8; 64]; 16]; 8]>,
    rows: Cell<[usize; 8]>,
    row_bytes: Cell<[usize; 8]>,
}

thread_local! {
    static TILES: Tiles = const {
        Tiles { bytes: UnsafeCell::new([[[0; 64]; 16]; 8]), rows: Cell::new([0; 8]), row_bytes: Cell::new([0; 8]) }
    };
}

/// The instructions that are counted.
#[derive(Clone, Copy)]
pub(crate) enum Opcode {
    /// `tdpbssd`
    Int8,
    /// `tdpbf16ps`
    Bf16,
}

/// How often each was carried out, on any thread.
static DONE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// How often it was carried out here.
pub(crate) fn done(opcode: Opcode) -> usize {
    DONE[opcode as usize].load(Ordering::Relaxed)
}

/// General registers in the order of their numbers in an instruction.
const REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// A VEX instruction of the map 0F38 that was taken apart.
struct Instruction {
    opcode: u8,
    prefix: u8,
    /// ModRM's middle field, ModRM's low field, VEX.vvvv.
    reg: usize,
    rm: usize,
    vvvv: usize,
    /// Address without its index, and the index register's value, for operands in memory.
    memory: Option<(usize, usize)>,
    len: usize,
}

/// # Safety
/// `code` must be an instruction the CPU refused.
unsafe fn decode(code: *const u8, registers: &[i64; 23]) -> Option<Instruction> {
    // SAFETY: the longest instruction read here has 10 bytes, and code does not end in the middle of one.
    let at = |i: usize| unsafe { *code.add(i) };
    if at(0) != 0xc4 || at(1) & 0x1f != 2 {
        return None;
    }
    let (extend_x, extend_b) = ((!at(1) >> 6 & 1) as usize * 8, (!at(1) >> 5 & 1) as usize * 8);
    let (opcode, modrm) = (at(3), at(4));
    let value = |register: usize| registers[REGISTERS[register] as usize] as usize;
    let rm = (modrm & 7) as usize;
    let mut len = 5;
    let memory = match modrm >> 6 {
        3 => None,
        mode => {
            let (mut base, mut index) = (rm + extend_b, 0);
            if rm == 4 {
                let sib = at(5);
                len += 1;
                base = (sib & 7) as usize + extend_b;
                let number = (sib >> 3 & 7) as usize + extend_x;
                index = if number == 4 { 0 } else { value(number) << (sib >> 6) };
            }
            let displacement = match mode {
                0 => 0,
                1 => at(len) as i8 as isize,
                _ => i32::from_le_bytes([at(len), at(len + 1), at(len + 2), at(len + 3)]) as isize,
            };
            // an absolute address has no base
            if mode == 0 && base & 7 == 5 {
                return None;
            }
            len += [0, 1, 4][mode as usize];
            Some((value(base).wrapping_add_signed(displacement), index))
        }
    };
    let (reg, vvvv) = ((modrm >> 3 & 7) as usize, (!at(2) >> 3 & 0xf) as usize);
    Some(Instruction { opcode, prefix: at(2) & 3, reg, rm, vvvv, memory, len })
}

/// Zero for what is too small to be a normal number: the instructions take and give no others.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn bf16(bytes: [u8; 2]) -> f32 {
    flush(f32::from_bits((u16::from_le_bytes(bytes) as u32) << 16))
}

/// Does what the instruction says; `false` if it is none of AMX's.
fn execute(tiles: &Tiles, i: &Instruction) -> bool {
    // SAFETY: only this thread's handler reads or writes its tiles, and it is not entered twice.
    let bytes = unsafe { &mut *tiles.bytes.get() };
    let (mut rows, mut row_bytes) = (tiles.rows.get(), tiles.row_bytes.get());
    const NONE: u8 = 0;
    const F3: u8 = 2;
    const F2: u8 = 3;
    match (i.prefix, i.opcode, i.memory) {
        // ldtilecfg
        (NONE, 0x49, Some((address, _))) => {
            // SAFETY: the operand is 64 bytes.
            let config = unsafe { &*(address as *const [u8; 64]) };
            assert_eq!(config[0], 1, "palette");
            for tile in 0..8 {
                rows[tile] = config[48 + tile] as usize;
                row_bytes[tile] = config[16 + 2 * tile] as usize;
            }
        }
        // tilerelease
        (NONE, 0x49, None) => (rows, row_bytes) = ([0; 8], [0; 8]),
        // tilezero
        (F2, 0x49, None) => bytes[i.reg] = [[0; 64]; 16],
        // tileloadd
        (F2, 0x4b, Some((address, stride))) => {
            bytes[i.reg] = [[0; 64]; 16];
            for row in 0..rows[i.reg] {
                let from = (address + row * stride) as *const u8;
                // SAFETY: the operand is that many rows of that many bytes.
                let from = unsafe { std::slice::from_raw_parts(from, row_bytes[i.reg]) };
                bytes[i.reg][row][..from.len()].copy_from_slice(from);
            }
        }
        // tilestored
        (F3, 0x4b, Some((address, stride))) => {
            for row in 0..rows[i.reg] {
                let into = (address + row * stride) as *mut u8;
                // SAFETY: the operand is that many rows of that many bytes.
                let into = unsafe { std::slice::from_raw_parts_mut(into, row_bytes[i.reg]) };
                into.copy_from_slice(&bytes[i.reg][row][..row_bytes[i.reg]]);
            }
        }
        // tdpbssd
        (F2, 0x5e, None) => {
            let (a, b) = (bytes[i.rm], bytes[i.vvvv]);
            for m in 0..rows[i.reg] {
                for n in 0..row_bytes[i.reg] / 4 {
                    let sum = &mut bytes[i.reg][m][4 * n..][..4];
                    let products =
                        (0..row_bytes[i.rm]).map(|k| a[m][k] as i8 as i32 * b[k / 4][4 * n + k % 4] as i8 as i32);
                    let before = i32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
                    sum.copy_from_slice(&(before + products.sum::<i32>()).to_le_bytes());
                }
            }
            DONE[Opcode::Int8 as usize].fetch_add(1, Ordering::Relaxed);
        }
        // tdpbf16ps
        (F3, 0x5c, None) => {
            let (a, b) = (bytes[i.rm], bytes[i.vvvv]);
            for m in 0..rows[i.reg] {
                for n in 0..row_bytes[i.reg] / 4 {
                    let mut sums = [0.0f32; 2];
                    for k in 0..row_bytes[i.rm] / 4 {
                        for half in 0..2 {
                            let at = |row: &[u8; 64], column: usize| bf16([row[column], row[column + 1]]);
                            let (a, b) = (at(&a[m], 4 * k + 2 * half), at(&b[k], 4 * n + 2 * half));
                            sums[half] = flush(a.mul_add(b, sums[half]));
                        }
                    }
                    let sum = &mut bytes[i.reg][m][4 * n..][..4];
                    let before = flush(f32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]));
                    sum.copy_from_slice(&flush(before + flush(sums[0] + sums[1])).to_le_bytes());
                }
            }
            DONE[Opcode::Bf16 as usize].fetch_add(1, Ordering::Relaxed);
        }
        _ => return false,
    }
    tiles.rows.set(rows);
    tiles.row_bytes.set(row_bytes);
    true
}

extern "C" fn on_illegal_instruction(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes a `ucontext_t` to handlers installed with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the CPU refused what stands there.
    match unsafe { decode(at, registers) } {
        Some(instruction) if TILES.with(|tiles| execute(tiles, &instruction)) => {
            registers[libc::REG_RIP as usize] += instruction.len as i64;
        }
        // SAFETY: not ours: let it end the process as if nothing had been installed.
        _ => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

/// The token, real or not; `None` where there is no AVX-512 either. Says which for the kernel called `what`.
pub(crate) fn amx(what: &str) -> Option<Amx> {
    let (token, how) = match (Amx::new(), Amx::emulated()) {
        (Some(amx), _) => (Some(amx), "ran"),
        (None, Some(amx)) => {
            install();
            (Some(amx), "ran with each tile instruction carried out by the test")
        }
        (None, None) => (None, "skipped, since the CPU lacks even AVX-512"),
    };
    // the macros that print are silenced in tests
    std::io::stderr().write_all(format!("{what}: amx {how}\n").as_bytes()).expect("standard error is open");
    token
}

fn install() {
    // SAFETY: a handler of the right kind; what it does not know ends the process as before.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_illegal_instruction as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
    }
}
