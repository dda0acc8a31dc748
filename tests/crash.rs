//! Kills the daemon at random moments under load and looks what is left. `CRASHES=50` sets how often.
//!
//! A kill is a power cut as far as a process can feel one: the page cache survives it. That what was announced is on
//! the disk by then is the order of writing's business (`daemon::store`), with a sync before every announcement.

mod serving;

use rand_mt::Mt64;
use serde_json::Value;
use serving::{Server, sha256};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CONFIG: &str = "[queue]\npaintings = 6\nlessons = 2\nattempts = 1000\n[learning]\npreview_every = 0\n";
/// Enough never to end.
const LESSON_STEPS: usize = 1_000_000;
const CHECKPOINT_EVERY: u64 = pleinair::train::CHECKPOINT_EVERY as u64;

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    /// Orders that were taken, in order.
    taken: Vec<String>,
    /// Paintings announced as finished.
    finished: BTreeSet<String>,
    /// The last step of the lesson that was announced.
    step: u64,
}

#[derive(Debug, Default)]
struct Counts {
    finished: usize,
    served: usize,
    longest_queue: usize,
    resumed_at: Vec<u64>,
    slowest_start: Duration,
}

#[test]
fn nothing_announced_is_lost() {
    let crashes: usize = std::env::var("CRASHES").map_or(9, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Told::default()));
    let mut rng = Mt64::new(crashes as u64);
    let mut counts = Counts::default();
    let mut lesson = None;
    for crash in 0..=crashes {
        let began = Instant::now();
        let server = Server::start(folder.path(), CONFIG);
        counts.slowest_start = counts.slowest_start.max(began.elapsed());
        check(&server, &told.lock().unwrap(), lesson.as_deref(), &mut counts);
        if crash == crashes {
            break;
        }
        let before = told.lock().unwrap().step;
        let listener = listen(&server, &told);
        if lesson.is_none() {
            lesson = Some(server.order_lesson(LESSON_STEPS).unwrap());
        }
        // paintings come first: in every third round none is ordered, so that the lesson has its turn
        let painter = (crash % 3 < 2).then(|| order(&server, &told));
        let moment = Duration::from_millis(rng.next_u64() % 1500);
        if painter.is_none() {
            let target = before + rng.next_u64() % (2 * CHECKPOINT_EVERY);
            serving::wait(Duration::from_secs(60), "the lesson's turn", || told.lock().unwrap().step >= target);
        }
        std::thread::sleep(moment);
        server.kill();
        if let Some(painter) = painter {
            painter.join().unwrap();
        }
        if let Some(first) = listener.join().unwrap() {
            // the checkpoint of step 25k is on the disk before step 25k + 1 is announced
            let least = before.saturating_sub(1) / CHECKPOINT_EVERY * CHECKPOINT_EVERY + 1;
            assert!(first >= least, "the lesson had announced step {before} and went on with {first}");
            counts.resumed_at.push(first);
        }
    }
    let told = told.lock().unwrap();
    println!(
        "{crashes} kills: {} orders taken, none lost; {} paintings announced, each whole after every start ({} checks of \
         a checksum); up to {} waiting, in their order; the lesson was at step {} and went on {} times, the last time at \
         step {}; slowest start {:.2} s",
        told.taken.len(),
        told.finished.len(),
        counts.served,
        counts.longest_queue,
        told.step,
        counts.resumed_at.len(),
        counts.resumed_at.last().unwrap_or(&0),
        counts.slowest_start.as_secs_f64(),
    );
    assert!(told.finished.len() >= crashes / 2, "too little was painted to prove anything");
    assert!(counts.resumed_at.last().is_some_and(|&step| step > CHECKPOINT_EVERY), "the lesson hardly went on");
}

/// Orders paintings until the daemon is gone.
fn order(server: &Server, told: &Arc<Mutex<Told>>) -> std::thread::JoinHandle<()> {
    let (url, told) = (server.url.clone(), told.clone());
    std::thread::spawn(move || {
        for number in 0.. {
            match serving::order_painting(&url, 2 + number % 12) {
                Ok(id) => told.lock().unwrap().taken.push(id),
                Err(ureq::Error::StatusCode(503 | 429)) => {}
                Err(_) => break,
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    })
}

/// Notes what is announced until the daemon is gone; the first step of the lesson, if there was one.
fn listen(server: &Server, told: &Arc<Mutex<Told>>) -> std::thread::JoinHandle<Option<u64>> {
    let (events, told) = (server.events(), told.clone());
    std::thread::spawn(move || {
        let mut first = None;
        for event in events {
            let mut told = told.lock().unwrap();
            match event["event"].as_str() {
                Some("finished") if event["kind"] == "painting" => {
                    told.finished.insert(event["id"].as_str().unwrap().to_owned());
                }
                Some("learning") => {
                    let step = event["step"].as_u64().unwrap();
                    first.get_or_insert(step);
                    told.step = step;
                }
                Some("failed") => panic!("{event}"),
                _ => {}
            }
        }
        first
    })
}

/// What must hold after every start.
fn check(server: &Server, told: &Told, lesson: Option<&str>, counts: &mut Counts) {
    for id in &told.finished {
        let painting = server.get(&format!("/api/v1/paintings/{id}")).unwrap();
        assert_eq!(painting["state"], "finished", "announced as finished: {painting}");
        let png = server.bytes(&format!("/api/v1/paintings/{id}/image.png")).unwrap();
        assert_eq!(sha256(&png), painting["painting"]["sha256"].as_str().unwrap());
        counts.served += 1;
    }
    // also what was finished, but not heard of
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/api/v1/paintings?limit=100{cursor}")).unwrap();
        let paintings = page["paintings"].as_array().unwrap();
        for painting in paintings {
            let id = painting["id"].as_str().unwrap();
            if !told.finished.contains(id) {
                let png = server.bytes(&format!("/api/v1/paintings/{id}/image.png")).unwrap();
                assert_eq!(sha256(&png), painting["sha256"].as_str().unwrap());
                pleinair::camera::Frame::from_bytes(&png, 1 << 20).unwrap();
                counts.served += 1;
            }
        }
        match paintings.last() {
            Some(last) => cursor = format!("&cursor={}", last["id"].as_str().unwrap()),
            None => break,
        }
    }
    for id in told.taken.iter().map(String::as_str).chain(lesson) {
        let job = server.get(&format!("/api/v1/jobs/{id}")).unwrap();
        assert!(["queued", "running", "finished"].contains(&job["state"].as_str().unwrap()), "{job}");
    }
    let jobs = server.get("/api/v1/jobs").unwrap();
    let jobs = jobs.as_array().or_else(|| jobs["jobs"].as_array()).unwrap();
    let waits =
        |job: &&Value| job["kind"] == "painting" && ["queued", "running"].contains(&job["state"].as_str().unwrap());
    let waiting: Vec<_> = jobs.iter().filter(waits).map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    let place = |id: &String| told.taken.iter().position(|taken| taken == id);
    // an order that was taken just as the daemon was killed may never have been answered
    let places: Vec<_> = waiting.iter().filter_map(place).collect();
    assert!(places.is_sorted(), "the queue's order has changed: {waiting:?}");
    counts.longest_queue = counts.longest_queue.max(waiting.len());
    counts.finished = told.finished.len();
}
