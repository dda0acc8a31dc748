//! Why there is no GPU, in one sentence: on the emulated device, which can play every machine.
#![cfg(feature = "cuda")]

use std::env;
use std::process::Command;

/// What `open` says in a process with these changes to its environment.
fn sentence(changes: &[(&str, &str)]) -> String {
    let mut child = Command::new(env::current_exe().expect("this test"));
    child.args(["--exact", "says_why", "--ignored", "--nocapture"]);
    for (name, value) in changes {
        child.env(name, value);
    }
    let output = child.output().expect("this test starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<&str> = text.lines().filter_map(|line| line.split_once("open: ").map(|(_, said)| said)).collect();
    assert_eq!(said.len(), 1, "one line: {text}");
    said[0].to_owned()
}

#[test]
#[ignore = "a child of the test below"]
fn says_why() {
    println!("open: {}", pleinair_cuda::open().map(|_| "a GPU".to_owned()).unwrap_or_else(|why| why));
}

#[test]
fn every_failure_is_one_sentence() {
    if env::var_os("EMULATED").is_none() {
        println!("needs the emulated device");
        return;
    }
    assert_eq!(sentence(&[]), "a GPU");
    for (changes, wanted) in [
        (&[("LD_LIBRARY_PATH", "")], "libcuda.so.1"),
        (&[("EMULATOR_DEVICES", "0")], "no NVIDIA GPU"),
        (&[("EMULATOR_CAPABILITY", "75")], "CUDA_COMPUTE_CAP=75"),
        (&[("EMULATOR_PTX", "0")], "update the driver"),
        (&[("EMULATOR_DRIVER", "12040")], "update the driver"),
    ] {
        let said = sentence(changes);
        assert!(said.contains(wanted) && said.len() < 200, "{changes:?}: {said}");
    }
}
