//! `pleinair serve` on a real socket: it ends when it is told to, and goes on where it was.

use super::{PROGRAM, Studio, TINY};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a person or a service manager waits at most.
const END_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(studio: &Studio, more: &[&str]) -> Server {
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--data", "data", "--bundle", TINY];
        let mut command = studio.command(PROGRAM, &[&fixed[..], more].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("listening on "));
        let url = said.expect("it says where it listens").replace("listening on ", "");
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, url }
    }

    fn get(&self, path: &str) -> Value {
        ureq::get(format!("{}{path}", self.url)).call().unwrap().body_mut().read_json().unwrap()
    }

    fn post(&self, path: &str, body: Value) -> Value {
        ureq::post(format!("{}{path}", self.url)).send_json(body).unwrap().body_mut().read_json().unwrap()
    }

    fn learn(&self) -> Value {
        let mut body = vec![];
        for (name, value) in [("stages", "2"), ("batch", "1"), ("steps", "100000")] {
            let part = format!("--part\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            body.extend(part.bytes());
        }
        body.extend(b"--part\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n");
        body.extend(std::fs::read(super::PHOTO).unwrap());
        body.extend(b"\r\n--part--\r\n");
        let request = ureq::post(format!("{}/api/v1/styles", self.url));
        let mut answer = request.content_type("multipart/form-data; boundary=part").send(&body[..]).unwrap();
        answer.body_mut().read_json().unwrap()
    }

    /// Waits until a job has done a step.
    fn steps(&self, id: &str) {
        let end = Instant::now() + PATIENCE;
        while self.get(&format!("/api/v1/jobs/{id}"))["step"].as_u64().unwrap() == 0 {
            assert!(Instant::now() < end, "no step was taken");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells it to end; it does so in time and is content.
    fn end(mut self) {
        let told = Instant::now();
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(told.elapsed() < END_WITHIN, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn id(answer: &Value) -> String {
    answer["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn it_ends_in_time_while_it_paints_and_learns_and_goes_on_later() {
    let studio = Studio::new();
    let server = Server::start(&studio, &[]);
    // somebody listens and never lets go
    let events = ureq::get(format!("{}/api/v1/events", server.url)).call().unwrap();
    let lesson = id(&server.learn());
    server.steps(&lesson);
    server.end();

    let server = Server::start(&studio, &[]);
    let painting = id(&server.post("/api/v1/paintings", json!({"prompt": "a house", "steps": 900})));
    let short = id(&server.post("/api/v1/paintings", json!({"prompt": "a house", "steps": 2})));
    server.steps(&painting);
    server.end();
    drop(events);

    let server = Server::start(&studio, &[]);
    let state = |id: &str| server.get(&format!("/api/v1/jobs/{id}"))["state"].as_str().unwrap().to_owned();
    assert!(["queued", "running"].contains(&state(&lesson).as_str()));
    ureq::delete(format!("{}/api/v1/jobs/{painting}", server.url)).call().unwrap();
    let end = Instant::now() + PATIENCE;
    while state(&short) != "finished" {
        assert!(Instant::now() < end, "{}", state(&short));
        std::thread::sleep(Duration::from_millis(20));
    }
    let jobs = server.get("/api/v1/jobs");
    assert!(jobs["jobs"].as_array().unwrap().iter().all(|job| job["state"] != "failed"), "{jobs}");
    server.end();
}

#[test]
fn what_cannot_be_served_is_said() {
    let studio = Studio::new();
    studio.write("bad.toml", "listen = \"127.0.0.1:0\"\ncolour = \"red\"\n");
    let refused = |arguments: &[&str], words: &[&str]| {
        let run = studio.run(&[&["serve", "--data", "data", "--bundle", TINY], arguments].concat());
        run.failed(1, words);
    };
    refused(&["--config", "bad.toml"], &["bad.toml", "colour"]);
    refused(&["--config", "missing.toml"], &["missing.toml"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["--listen", &address], &[&address]);
    let server = Server::start(&studio, &[]);
    refused(&["--listen", "127.0.0.1:0"], &["another"]);
    server.end();
}
