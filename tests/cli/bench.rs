//! `bench`: what it prints, and what it refuses to measure.

use super::*;

/// The keys that scripts read.
const KEYS: [&str; 16] = [
    "answer_rms",
    "batch",
    "bundle",
    "device",
    "dtype",
    "evaluations",
    "isa",
    "median_seconds",
    "not_recorded",
    "numbers",
    "open_seconds",
    "peak_rss_bytes",
    "runs",
    "seconds",
    "size",
    "what",
];

fn bench(what: &str, more: &[&str]) -> serde_json::Value {
    Studio::new().done(&with(&["bench", what, "--bundle", TINY, "--json"], more)).json()
}

#[test]
fn every_measurement_has_the_same_keys() {
    for (what, more, batch, runs, evaluations) in [
        ("unet", &["--batch", "2", "--runs", "4"][..], 2, 4, 2),
        ("paint", &["--steps", "3", "--runs", "2"], 1, 2, 6),
        ("learn", &["--batch", "3", "--runs", "2"], 3, 2, 3),
    ] {
        let report = bench(what, &with(more, &["--size", "128x64"]));
        let mut keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, KEYS, "{what}");
        assert_eq!([&report["what"], &report["size"]], [what, "128x64"]);
        assert_eq!([&report["bundle"], &report["device"], &report["dtype"]], ["tiny-sd15", "cpu", "f32"]);
        assert_eq!([&report["batch"], &report["runs"], &report["evaluations"]], [batch, runs, evaluations], "{what}");
        let seconds: Vec<_> = report["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_eq!(seconds.len(), runs as usize);
        let (low, high) = seconds.iter().fold((f64::MAX, 0.0f64), |(low, high), &s| (low.min(s), high.max(s)));
        let median = report["median_seconds"].as_f64().unwrap();
        assert!(low > 0.0 && (low..=high).contains(&median), "{report}");
        assert!(report["open_seconds"].as_f64().unwrap() > 0.0);
        match report["peak_rss_bytes"].as_u64() {
            Some(bytes) => assert!((1 << 20..1 << 34).contains(&bytes), "{bytes}"),
            None => assert_ne!(std::env::consts::OS, "linux"),
        }
    }
}

#[test]
fn without_wishes_it_measures_the_models_own_size() {
    let report = bench("unet", &[]);
    assert_eq!([&report["size"], &report["runs"]], [&serde_json::json!("64x64"), &5.into()]);
    let run = Studio::new().done(&["bench", "unet", "--bundle", TINY, "--runs", "1"]);
    assert!(run.stdout.starts_with("UNet 64x64 batch 1, tiny-sd15 f32 on "), "{}", run.stdout);
    assert_eq!(run.stdout.lines().count(), 1);
}

#[test]
fn the_instruction_set_is_the_one_that_was_forced() {
    let studio = Studio::new();
    let mut command = studio.command(PROGRAM, &["bench", "unet", "--bundle", TINY, "--runs", "1", "--json"]);
    let run = Run::of(command.env("PLEINAIR_ISA", "scalar"));
    assert_eq!(run.json()["isa"], "scalar");
    Run::of(command.env("PLEINAIR_ISA", "abacus")).failed(2, &["abacus", "PLEINAIR_ISA"]);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let studio = Studio::new();
    for (more, code, words) in [
        (&["sleep"][..], 2, &["unet, paint, learn"][..]),
        (&[], 2, &["<WHAT>"]),
        (&["unet", "--size", "60x64"], 2, &["60x64", "multiples of 64"]),
        (&["unet", "--size", "0x64"], 2, &["above 0"]),
        (&["unet", "--batch", "0"], 2, &["--batch"]),
        (&["unet", "--runs", "0"], 2, &["--runs"]),
        (&["paint", "--batch", "2"], 2, &["one picture", "leave --batch out"]),
        (&["paint", "--steps", "0"], 2, &["give 1 to 1000"]),
    ] {
        studio.refuses(&with(&["bench", "--bundle", TINY], more), code, words);
    }
    studio.refuses(&["bench", "unet", "--bundle", "missing"], 1, &["no such model folder", "--bundle"]);
}
