//! Half an hour of paintings: does memory stay where it is, and do paintings stay as fast? `make soak`; `SOAK_MINUTES=1`
//! for a look.

mod serving;

use serving::Server;
use std::time::{Duration, Instant};

const CONFIG: &str =
    "[retention]\npaintings = 50\n[learning]\npreview_every = 20\n[security]\nrequests_per_minute = 100000\n";
/// A painting every so often has a lesson between. Often: the allocator's shelves are as large as the most that was ever
/// on them at once, and only what paintings and lessons need together shows that early.
const LESSON_EVERY: usize = 20;
/// How many stretches the time is cut into to tell growth from fluctuation.
const BLOCKS: usize = 8;

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

/// Slope of a straight line through the points and its standard error (least squares).
fn slope(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let slope = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|p| (p.1 - y - slope * (p.0 - x)).powi(2)).sum();
    (slope, (rest / (n - 2.0) / spread).sqrt())
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p).round() as usize]
}

#[test]
fn a_slope_is_found_with_its_error() {
    let line: Vec<_> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
    let (found, error) = slope(&line);
    assert!((found - 3.0).abs() < 1e-12 && error < 1e-12);
    let (found, error) = slope(&[(0.0, 0.0), (1.0, 2.0), (2.0, 0.0), (3.0, 2.0)]);
    assert!((found - 0.4).abs() < 1e-12 && error > 0.4, "{found} {error}");
}

/// Means of [`BLOCKS`] stretches of equally many samples. What memory a moment needs depends on what the moment before
/// needed, so that neighbouring samples tell less than their number says; means over minutes are nearly independent, and
/// their scatter about a line is an honest measure of the line's error (block averaging, Flyvbjerg and Petersen 1989).
fn blocks(samples: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |block: &[(f64, f64)]| {
        let n = block.len() as f64;
        (block.iter().map(|p| p.0).sum::<f64>() / n, block.iter().map(|p| p.1).sum::<f64>() / n)
    };
    samples.chunks_exact((samples.len() / BLOCKS).max(1)).take(BLOCKS).map(mean).collect()
}

/// Memory that wanders for a minute at a time, in MB, sampled every five seconds for 24 minutes, with a steady growth.
fn wandering(seed: u32, megabytes_an_hour: f64) -> Vec<(f64, f64)> {
    let (mut state, mut wander) = (seed, 0.0);
    let sample = |i: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        wander = 0.92 * wander + 2.0 * (f64::from(state >> 8) / f64::from(1 << 24) - 0.5);
        let hours = f64::from(i) / 720.0;
        (hours, 100.0 + wander + megabytes_an_hour * hours)
    };
    (0..288).map(sample).collect()
}

#[test]
fn memory_that_wanders_does_not_grow_and_a_leak_is_not_taken_for_wandering() {
    let grows = |samples: &[(f64, f64)]| {
        let (slope, error) = slope(samples);
        slope > 3.0 * error
    };
    let wanderings = |growth: f64| (1..=200).map(move |seed| wandering(seed * 7919, growth));
    let false_alarms = wanderings(0.0).filter(|samples| grows(&blocks(samples))).count();
    let naive = wanderings(0.0).filter(|samples| grows(samples)).count();
    assert!(false_alarms <= 8 && naive >= 30, "{false_alarms} and {naive} of 200 wanderings taken for growth");
    let found = wanderings(20.0).filter(|samples| grows(&blocks(samples))).count();
    assert!(found >= 190, "{found} of 200 leaks found");
}

#[test]
#[ignore = "takes half an hour: make soak"]
fn memory_stays_where_it_is() {
    let minutes: f64 = std::env::var("SOAK_MINUTES").map_or(30.0, |minutes| minutes.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), CONFIG);
    let began = Instant::now();
    let (mut memory, mut seconds) = (vec![], vec![]);
    let mut next_sample = Duration::ZERO;
    let mut lessons = 0;
    while began.elapsed() < Duration::from_secs_f64(minutes * 60.0) {
        if seconds.len() % LESSON_EVERY == LESSON_EVERY / 2 && server.order_lesson(30).is_ok() {
            lessons += 1;
        }
        let start = Instant::now();
        let id = server.order_painting(10).unwrap();
        let path = format!("/api/v1/paintings/{id}");
        loop {
            let job = server.get(&path).unwrap();
            match job["state"].as_str().unwrap() {
                "finished" => break,
                "queued" | "running" => std::thread::sleep(Duration::from_millis(5)),
                _ => panic!("{job}\n{}", server.log()),
            }
        }
        server.bytes(&format!("{path}/image.png")).unwrap();
        seconds.push(start.elapsed().as_secs_f64());
        if began.elapsed() >= next_sample {
            next_sample += Duration::from_secs(5);
            memory.push((began.elapsed().as_secs_f64() / 3600.0, resident(server.pid())));
        }
    }
    // the first fifth is warming up: pools, caches, the allocator's shelves
    let settled = &memory[memory.len() / 5..];
    let means = blocks(settled);
    let (slope, error) = slope(&means);
    println!("resident, MB: {}", means.iter().map(|mean| format!("{:.1}", mean.1 / 1e6)).collect::<Vec<_>>().join(" "));
    seconds.sort_by(f64::total_cmp);
    println!(
        "{minutes} minutes: {} paintings, {lessons} lessons; slope {:.2} +- {:.2} MB an hour; \
         seconds from order to picture: median {:.3}, 95% {:.3}, 99% {:.3}, longest {:.3}",
        seconds.len(),
        slope / 1e6,
        error / 1e6,
        percentile(&seconds, 0.5),
        percentile(&seconds, 0.95),
        percentile(&seconds, 0.99),
        seconds[seconds.len() - 1],
    );
    // what the line's own error allows, and, should all means lie on it by chance, a megabyte in half an hour
    let noise = (3.0 * error).max(2.0 * (1 << 20) as f64);
    assert!(!(slope > noise), "resident memory grows by {:.2} MB an hour", slope / 1e6);
}
