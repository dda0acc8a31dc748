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
    let (slope, error) = slope(settled);
    let (first, last) = (settled[0].1, settled[settled.len() - 1].1);
    seconds.sort_by(f64::total_cmp);
    println!(
        "{minutes} minutes: {} paintings, {lessons} lessons; resident {:.1} MB then {:.1} MB, slope {:.2} +- {:.2} MB an hour; \
         seconds from order to picture: median {:.3}, 95% {:.3}, 99% {:.3}, longest {:.3}",
        seconds.len(),
        first / 1e6,
        last / 1e6,
        slope / 1e6,
        error / 1e6,
        percentile(&seconds, 0.5),
        percentile(&seconds, 0.95),
        percentile(&seconds, 0.99),
        seconds[seconds.len() - 1],
    );
    // noise: what the line's own error allows, and not less than one page cluster of the allocator in half an hour
    let noise = (3.0 * error).max(2.0 * (1 << 20) as f64);
    assert!(!(slope > noise), "resident memory grows by {:.2} MB an hour", slope / 1e6);
}
