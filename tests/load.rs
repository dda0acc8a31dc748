//! A hundred clients while paintings are painted: how much slower are these, and does a request hang? `make load`.
//!
//! The clients share the processor with the daemon; what they cost themselves is counted against it.

mod serving;

use serving::Server;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CONFIG: &str = "[security]\nrequests_per_minute = 100000\n";
/// Clients of the API and of the events.
const POLLING: usize = 50;
const LISTENING: usize = 50;
/// Between two requests of a client that asks.
const PAUSE: Duration = Duration::from_millis(500);
const PAINTINGS: usize = 8;
const MOST_SLOWDOWN: f64 = 1.10;
const LONGEST_REQUEST: Duration = Duration::from_secs(5);
const PATHS: [&str; 5] = ["/api/v1/paintings", "/api/v1/jobs", "/api/v1/styles", "/api/v1/kiosk", "/readyz"];

/// Clients that come and go together.
struct Crowd {
    gone: Arc<AtomicBool>,
    slowest: Arc<Mutex<Duration>>,
    asked: Arc<AtomicUsize>,
    told: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Crowd {
    fn come(server: &Server) -> Crowd {
        let address = server.url.strip_prefix("http://").unwrap().to_owned();
        let mut crowd = Crowd {
            gone: Arc::default(),
            slowest: Arc::default(),
            asked: Arc::default(),
            told: Arc::default(),
            threads: vec![],
        };
        for number in 0..POLLING {
            let (gone, slowest, asked) = (crowd.gone.clone(), crowd.slowest.clone(), crowd.asked.clone());
            let address = address.clone();
            crowd.threads.push(std::thread::spawn(move || {
                std::thread::sleep(PAUSE.mul_f64(number as f64 / POLLING as f64));
                while !gone.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    ask(&address, PATHS[number % PATHS.len()]);
                    let took = began.elapsed();
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = took.max(*slowest);
                    drop(slowest);
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE.saturating_sub(took));
                }
            }));
        }
        for _ in 0..LISTENING {
            let (gone, told) = (crowd.gone.clone(), crowd.told.clone());
            let mut stream = connect(&address, "/api/v1/events");
            crowd.threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while !gone.load(Ordering::SeqCst) {
                    match stream.read(&mut buffer) {
                        Ok(0) => panic!("the stream of events ended"),
                        Ok(_) => drop(told.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => {} // nothing happened for a while
                    }
                }
            }));
        }
        crowd
    }

    /// The slowest request, requests and events.
    fn go(self) -> (Duration, usize, usize) {
        self.gone.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let slowest = *self.slowest.lock().unwrap();
        (slowest, self.asked.load(Ordering::SeqCst), self.told.load(Ordering::SeqCst))
    }
}

fn connect(address: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn ask(address: &str, path: &str) {
    let mut stream = connect(address, path);
    stream.set_read_timeout(Some(LONGEST_REQUEST)).unwrap();
    let mut answer = vec![];
    stream.read_to_end(&mut answer).unwrap_or_else(|fault| panic!("{path} hangs: {fault}"));
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}: {}", String::from_utf8_lossy(&answer));
}

/// Seconds of a painting.
fn paint(server: &Server) -> f64 {
    let began = Instant::now();
    let id = server.order_painting(15).unwrap();
    serving::wait(Duration::from_secs(300), "the painting", || {
        server.get(&format!("/api/v1/jobs/{id}")).unwrap()["state"] == "finished"
    });
    began.elapsed().as_secs_f64()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2] + seconds[(seconds.len() - 1) / 2]) / 2.0
}

#[test]
#[ignore = "measures: make load"]
fn a_hundred_clients_hardly_slow_a_painting() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/atelier");
    let server = Server::start_with(folder.path(), CONFIG, &model);
    paint(&server); // warm
    let (mut alone, mut crowded) = (vec![], vec![]);
    let (mut slowest, mut asked, mut told) = (Duration::ZERO, 0, 0);
    for _ in 0..PAINTINGS {
        alone.push(paint(&server));
        let crowd = Crowd::come(&server);
        crowded.push(paint(&server));
        let (slow, requests, events) = crowd.go();
        (slowest, asked, told) = (slowest.max(slow), asked + requests, told + events);
    }
    let (alone, crowded) = (median(alone), median(crowded));
    println!(
        "{PAINTINGS} paintings: {alone:.3} s alone, {crowded:.3} s ({:+.1}%) beside {POLLING} clients that asked {asked} times, \
         the slowest answer after {:.0} ms, and {LISTENING} that were told {told} times",
        (crowded / alone - 1.0) * 100.0,
        slowest.as_secs_f64() * 1e3,
    );
    assert!(asked > 0 && told > 0, "there was no load");
    assert!(slowest <= LONGEST_REQUEST);
    assert!(crowded / alone < MOST_SLOWDOWN);
}
