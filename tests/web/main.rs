//! The web interface without a socket: the router is called directly, with a tiny model that paints 64x64 in no time.

mod api;
mod events;
mod learning;
#[path = "../reference/mod.rs"]
mod reference;
mod sdapi;
mod security;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use pleinair::camera::Frame;
use pleinair::canvas::Canvas;
use pleinair::config::Config;
use pleinair::daemon::{Daemon, Threads};
use pleinair::painter::Painter;
use pleinair::web::{Access, Journal, Role, Site};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tower::ServiceExt;

const LOOPBACK: &str = "127.0.0.1:7860";
/// An address other devices reach; reserved for documentation.
const LAN: &str = "192.0.2.7:7860";
/// No painting or lesson of these tests takes so long on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon in a folder of its own, and its site.
struct House {
    daemon: Daemon,
    access: Access,
    site: Site,
    router: Router,
    threads: Option<Threads>,
    folder: TempDir,
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Refused with this status and one sentence.
    #[track_caller]
    fn refused(&self, status: u16, word: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        let error = self.json()["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned();
        assert!(error.contains(word), "no {word:?} in: {error}");
    }

    #[track_caller]
    fn fine(self) -> Answer {
        assert!(self.status.is_success(), "{self:?}");
        self
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl House {
    fn new() -> House {
        House::with(LOOPBACK, |_| {})
    }

    /// Listens, as far as anybody can tell, on this address.
    fn with(listen: &str, change: impl FnOnce(&mut Config)) -> House {
        House::opened(tempfile::tempdir().unwrap(), listen, change)
    }

    fn opened(folder: TempDir, listen: &str, change: impl FnOnce(&mut Config)) -> House {
        House::with_model(folder, listen, reference::painter("tiny-sd15"), change)
    }

    fn with_model(folder: TempDir, listen: &str, painter: Painter, change: impl FnOnce(&mut Config)) -> House {
        let mut config = Config { data: folder.path().join("data"), ..Config::default() };
        config.security.requests_per_minute = 100_000;
        change(&mut config);
        let access = Access::open(&config, listen.parse::<SocketAddr>().unwrap()).unwrap();
        let (daemon, threads) = Daemon::start(config, painter, Default::default()).unwrap();
        let site = Site::new(daemon.clone(), access.clone(), Journal::default());
        House { router: site.router(), daemon, access, site, threads: Some(threads), folder }
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, 1 << 26)).await.unwrap().unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(request(Method::GET, path, &[], Body::empty())).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.ask(request(Method::DELETE, path, &[], Body::empty())).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let kind = [("content-type", "application/json")];
        self.ask(request(method, path, &kind, Body::from(body.to_string()))).await
    }

    async fn form(&self, path: &str, fields: &[(&str, &str)], files: &[(&str, Vec<u8>)]) -> Answer {
        let kind = [("content-type", "multipart/form-data; boundary=part")];
        self.ask(request(Method::POST, path, &kind, Body::from(multipart(fields, files)))).await
    }

    /// Until a job is over; its state.
    async fn over(&self, id: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let job = self.get(&format!("/api/v1/jobs/{id}")).await.json();
            let state = job["state"].as_str().unwrap_or_else(|| panic!("{job}")).to_owned();
            if !["queued", "running"].contains(&state.as_str()) {
                return state;
            }
            assert!(Instant::now() < end, "{job}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The id of a painting that was ordered.
    async fn order(&self, wish: Value) -> String {
        let answer = self.post("/api/v1/paintings", wish).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// A finished painting's id.
    async fn painted(&self) -> String {
        let id = self.order(json!({"prompt": "a house", "steps": 2})).await;
        assert_eq!(self.over(&id).await, "finished");
        id
    }

    /// The token of a role.
    fn token(&self, role: Role) -> String {
        let url = self.access.pairing_url(role).expect("tokens are required");
        url.split_once("token=").unwrap().1.to_owned()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.daemon.stop();
        self.site.close();
        if let Some(threads) = self.threads.take() {
            assert!(threads.wait(PATIENCE) || std::thread::panicking(), "a thread does not end");
        }
    }
}

fn request(method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", LOOPBACK);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

fn multipart(fields: &[(&str, &str)], files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![];
    for (name, value) in fields {
        body.extend(format!("--part\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    for (name, bytes) in files {
        let head =
            format!("--part\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"../../etc/passwd\"\r\n");
        body.extend(head.bytes());
        body.extend(b"Content-Type: application/octet-stream\r\n\r\n");
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--part--\r\n");
    body
}

fn photo(width: usize, height: usize) -> Frame {
    let pixels = (0..width * height * 3).map(|i| (i * 7 % 256) as u8).collect();
    Frame::new(width, height, pixels).unwrap()
}

fn png(width: usize, height: usize) -> Vec<u8> {
    let mut bytes = vec![];
    Canvas::from(photo(width, height)).write_png(&Default::default(), &mut bytes).unwrap();
    bytes
}

/// Server-sent events, one `(name, data)` after the other.
struct Stream {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(house: &House) -> Stream {
        let request = request(Method::GET, "/api/v1/events", &[], Body::empty());
        let response = house.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Stream { body: response.into_body().into_data_stream(), text: String::new() };
        while !stream.text.contains("listening") {
            assert!(stream.more().await, "no greeting");
        }
        stream.text.clear();
        stream
    }

    async fn more(&mut self) -> bool {
        match tokio::time::timeout(PATIENCE, self.body.next()).await.expect("the stream goes on") {
            Some(bytes) => {
                self.text += std::str::from_utf8(&bytes.unwrap()).unwrap();
                true
            }
            None => false,
        }
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let found = field("event:").zip(field("data:")).map(|(name, data)| (name.to_owned(), data.to_owned()));
                self.text = rest.to_owned();
                if let Some((name, data)) = found {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
                continue; // a comment
            }
            if !self.more().await {
                return None;
            }
        }
    }
}
