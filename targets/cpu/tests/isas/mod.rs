//! Every instruction set that this CPU has, for tests that run a kernel with each and say which ones it lacks.

use pleinair_cpu::isa::{self, Isa};
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;

/// Names that must be found, separated by spaces: an emulator's CPU has them all, or it is the wrong one.
const REQUIRED: &str = "PLEINAIR_TEST_ISAS";

/// What was printed already.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Every instruction set of this CPU, for the kernel called `what`; prints, once, which run and which are skipped.
pub fn isas(what: &str) -> Vec<Isa> {
    let required = std::env::var(REQUIRED).unwrap_or_default();
    let (mut run, mut skipped) = (vec![], vec![]);
    for (name, isa) in isa::found() {
        match isa {
            Some(isa) => run.push(isa),
            None => {
                // asked elsewhere than in our own detection, so that a fault there cannot skip a kernel
                assert!(
                    !system_has(name),
                    "{what}: the system says that this CPU has {name}, so it may not be skipped"
                );
                assert!(!required.split(' ').any(|r| r == name), "{what}: {REQUIRED} has {name}, this CPU has not");
                skipped.push(name);
            }
        }
    }
    assert!(run.contains(&isa::best()) && run.iter().any(|isa| isa.name() == "scalar"), "{what}: {run:?}");
    let ran: Vec<_> = run.iter().map(|isa| isa.name()).collect();
    let line = format!("{what}: ran {}; skipped, since the CPU lacks it: {}\n", ran.join(", "), skipped.join(", "));
    if SAID.lock().expect("no test panics while it prints").insert(what.to_owned()) {
        // the macros that print are silenced in tests
        std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    }
    run
}

/// What the system's list of flags says.
#[cfg(target_arch = "x86_64")]
fn system_has(name: &str) -> bool {
    let needed: &[&str] = match name {
        "amx" => &["amx_int8", "amx_bf16"],
        "avx512bf16" => &["avx512_bf16", "avx512_vnni"],
        "avx512vnni" => &["avx512_vnni"],
        "avxvnni" => &["avx_vnni"],
        "avx2" => &["avx2"],
        _ => return false,
    };
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    needed.iter().all(|needed| flags.split_whitespace().any(|flag| flag == *needed))
}

/// What the system told this process at its start; an emulator's `/proc/cpuinfo` is that of the machine below it.
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
fn system_has(name: &str) -> bool {
    let (list, flag) = match name {
        "neon-i8mm" => (libc::AT_HWCAP2, 1 << 13),
        "neon-dotprod" => (libc::AT_HWCAP, libc::HWCAP_ASIMDDP),
        "neon" => (libc::AT_HWCAP, libc::HWCAP_ASIMD),
        _ => return false,
    };
    // SAFETY: reads a table that the process was started with.
    unsafe { libc::getauxval(list) & flag != 0 }
}

#[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_os = "linux"))))]
fn system_has(_: &str) -> bool {
    false
}
