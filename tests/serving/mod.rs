//! `pleinair serve` as a client sees it, for tests that start, load and kill it.
#![allow(dead_code)] // each test binary uses its share

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running daemon; killed when dropped.
pub struct Server {
    child: Child,
    /// Such as `http://127.0.0.1:40123`.
    pub url: String,
    /// The last lines it wrote.
    log: Arc<Mutex<VecDeque<String>>>,
}

/// A model that paints 64x64 in no time.
pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15")
}

impl Server {
    /// Starts it with `pleinair.toml` in `folder` and its data beside it.
    pub fn start(folder: &Path, config: &str) -> Server {
        Server::start_with(folder, config, &model())
    }

    /// The same with another model.
    pub fn start_with(folder: &Path, config: &str, model: &Path) -> Server {
        let file = folder.join("pleinair.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleinair"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(&file);
        command.arg("--data").arg(folder.join("data")).arg("--bundle").arg(model);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let url = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended at once: {log:?}")).unwrap();
            if let Some(at) = line.find("http://127.0.0.1:") {
                let port = line[at + 17..].chars().take_while(char::is_ascii_digit).collect::<String>();
                break format!("http://127.0.0.1:{port}");
            }
            log.lock().unwrap().push_back(line);
        };
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_back(line);
                if kept.len() > 50 {
                    kept.pop_front();
                }
            }
        });
        Server { child, url, log }
    }

    /// As a power cut, as far as a process can feel one.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote last.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn get(&self, path: &str) -> Result<Value, ureq::Error> {
        agent().get(format!("{}{path}", self.url)).call()?.body_mut().read_json()
    }

    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, ureq::Error> {
        agent().get(format!("{}{path}", self.url)).call()?.body_mut().read_to_vec()
    }

    /// The id of the job, if it was taken.
    pub fn order_painting(&self, steps: usize) -> Result<String, ureq::Error> {
        order_painting(&self.url, steps)
    }

    /// The id of a lesson, if it was taken.
    pub fn order_lesson(&self, steps: usize) -> Result<String, ureq::Error> {
        let mut png = vec![];
        let pixels = (0..64 * 64 * 3).map(|i| (i * 5 % 256) as u8).collect();
        let canvas = pleinair::canvas::Canvas::new(64, 64, pixels).unwrap();
        canvas.write_png(&Default::default(), &mut png).unwrap();
        let fields = [("name", "soak"), ("stages", "2"), ("batch", "1"), ("steps", &steps.to_string())];
        let mut body = vec![];
        for (name, value) in fields {
            body.extend(
                format!("--part\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes(),
            );
        }
        body.extend(b"--part\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n");
        body.extend(b"Content-Type: image/png\r\n\r\n");
        body.extend(&png);
        body.extend(b"\r\n--part--\r\n");
        let request = agent().post(format!("{}/api/v1/styles", self.url));
        let mut answer = request.content_type("multipart/form-data; boundary=part").send(&body[..])?;
        let answer: Value = answer.body_mut().read_json()?;
        Ok(answer["id"].as_str().unwrap().to_owned())
    }

    /// Events from now on, until the daemon ends.
    pub fn events(&self) -> Events {
        let mut answer = streaming().get(format!("{}/api/v1/events", self.url)).call().unwrap();
        assert_eq!(answer.status(), 200);
        let body = std::mem::replace(answer.body_mut(), ureq::Body::builder().data(vec![]));
        Events(BufReader::new(Box::new(body.into_reader())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Server-sent events' data.
pub struct Events(BufReader<Box<dyn Read + Send>>);

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data:") {
                return serde_json::from_str(data.trim()).ok();
            }
        }
    }
}

pub fn order_painting(url: &str, steps: usize) -> Result<String, ureq::Error> {
    let wish = json!({"prompt": "a house by the sea", "steps": steps});
    let mut answer = agent().post(format!("{url}/api/v1/paintings")).send_json(&wish)?;
    let answer: Value = answer.body_mut().read_json()?;
    Ok(answer["id"].as_str().unwrap().to_owned())
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).build().into()
}

fn streaming() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_connect(Some(Duration::from_secs(10))).build().into()
}

/// Waits for something to become so.
pub fn wait(patience: Duration, what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !so() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
