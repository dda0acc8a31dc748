//! Real cameras, made by ffmpeg (`make cameras` installs it): pipes of YUV4MPEG2 and MJPEG, a server of MJPEG; and servers
//! with the habits that IP cameras have.

use pleinair::camera::{Camera, Frame, Setup, Source, open};
use pleinair::{Error, Result};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WIDTH: usize = 320;
const HEIGHT: usize = 240;
const TEST_PICTURE: &str = "-f lavfi -i testsrc2=size=320x240:rate=10";

fn setup() -> Setup {
    Setup { frames_per_second: 120.0, ..Setup::default() }
}

fn camera(source: &str) -> Box<dyn Camera> {
    camera_with(source, &setup())
}

fn camera_with(source: &str, setup: &Setup) -> Box<dyn Camera> {
    open(&source.parse::<Source>().unwrap(), setup, Arc::default()).unwrap()
}

/// What a shell command writes.
fn output(command: &str) -> Vec<u8> {
    let output = Command::new("sh").args(["-c", command]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command}; is ffmpeg installed? `make cameras` does it");
    output.stdout
}

/// The frames of the test picture as ffmpeg itself makes RGB of them.
fn reference(count: usize) -> Vec<Frame> {
    let rgb = output(&format!("ffmpeg -v error {TEST_PICTURE} -frames:v {count} -pix_fmt rgb24 -f rawvideo -"));
    let frames: Vec<_> =
        rgb.chunks(WIDTH * HEIGHT * 3).map(|rgb| Frame::new(WIDTH, HEIGHT, rgb.to_vec()).unwrap()).collect();
    assert_eq!(frames.len(), count);
    frames
}

/// The mean and the largest difference of two frames, in levels.
fn difference(a: &Frame, b: &Frame) -> (f64, u8) {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let differences = a.rgb().iter().zip(b.rgb()).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (sum as f64 / a.rgb().len() as f64, differences.max().unwrap_or_default())
}

/// Which of the reference's frames this is.
///
/// # Panics
/// If it is none of them.
fn number(frame: &Frame, reference: &[Frame]) -> usize {
    let means: Vec<f64> = reference.iter().map(|reference| difference(frame, reference).0).collect();
    let best = (0..means.len()).min_by(|&a, &b| means[a].total_cmp(&means[b])).unwrap();
    let others = (0..means.len()).filter(|&i| i != best).map(|i| means[i]).fold(f64::INFINITY, f64::min);
    assert!(means[best] < 6.0 && means[best] < others, "frame {best}: {} levels off, another {others}", means[best]);
    best
}

#[test]
fn frames_of_the_test_picture_are_told_apart() {
    let reference = reference(20);
    assert_eq!(number(&reference[7], &reference), 7);
    let lighter = reference[7].rgb().iter().map(|v| v.saturating_add(20)).collect();
    let lighter = Frame::new(WIDTH, HEIGHT, lighter).unwrap();
    assert!(difference(&reference[7], &lighter).0 > 10.0);
    assert!(std::panic::catch_unwind(|| number(&lighter, &reference)).is_err());
}

#[test]
fn colours_of_a_y4m_pipe_are_ffmpegs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one.y4m");
    for format in ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuvj444p", "gray"] {
        let make = format!("ffmpeg -v error {TEST_PICTURE} -frames:v 1 -pix_fmt {format} -f yuv4mpegpipe -");
        std::fs::write(&file, output(&make)).unwrap();
        // chroma shared as it is, neither interpolated nor at half the precision
        let rgb = format!(
            "ffmpeg -v error -i {} -sws_flags neighbor+accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo -",
            file.display()
        );
        let expected = Frame::new(WIDTH, HEIGHT, output(&rgb)).unwrap();
        let frame = camera(&format!("command:{make}")).next_frame().unwrap();
        let (mean, most) = difference(&frame, &expected);
        println!("{format}: {mean:.3} levels in the mean, {most} at most");
        // both round: ours once, ffmpeg's through tables of 8 bits
        assert!(mean <= 0.1 && most <= 2, "{format}: {mean} levels in the mean, {most} at most");
    }
}

#[test]
fn colours_of_an_mjpeg_pipe_are_ffmpegs() {
    for format in ["yuvj444p", "yuvj420p"] {
        let make = format!("ffmpeg -v error {TEST_PICTURE} -frames:v 1 -pix_fmt {format} -q:v 2 -f mjpeg -");
        let rgb = format!(
            "{make} | ffmpeg -v error -f mjpeg -i - -sws_flags accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo -"
        );
        let expected = Frame::new(WIDTH, HEIGHT, output(&rgb)).unwrap();
        let frame = camera(&format!("command:{make}")).next_frame().unwrap();
        let (mean, most) = difference(&frame, &expected);
        println!("{format}: {mean:.3} levels in the mean, {most} at most");
        // where chroma is interpolated, each does it in its own way, at edges
        let bound = if format == "yuvj444p" { 5 } else { 255 };
        assert!(mean <= 1.5 && most <= bound, "{format}: {mean} levels in the mean, {most} at most");
    }
}

#[test]
fn a_slow_painter_sees_what_is_there_now() {
    let reference = reference(50);
    for output in ["-f yuv4mpegpipe -pix_fmt yuv420p", "-f mjpeg -q:v 2", "-f mpjpeg -q:v 2"] {
        let mut camera = camera(&format!("command:ffmpeg -v error -re {TEST_PICTURE} {output} -"));
        let first = number(&camera.next_frame().unwrap(), &reference);
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(2000));
        let second = number(&camera.next_frame().unwrap(), &reference);
        let third = number(&camera.next_frame().unwrap(), &reference);
        let passed = start.elapsed().as_secs_f64() * 10.0;
        println!("{output}: frames {first}, {second}, {third}; {passed:.1} frame times");
        // half a second of slack for a machine that is busy
        assert!(third > second && (third - first) as f64 > passed - 5.0, "{output}: {first}, {second}, {third}");
    }
}

#[test]
fn a_killed_program_is_noticed_within_a_second_and_can_be_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let source = format!("command:echo $$ >{}; exec ffmpeg -v error -re {TEST_PICTURE} -f mjpeg -", file.display());
    for _ in 0..2 {
        let mut camera = camera(&source);
        for _ in 0..3 {
            camera.next_frame().unwrap();
        }
        output(&format!("kill -9 $(cat {})", file.display()));
        let killed = Instant::now();
        let text = until_lost(camera.as_mut()).to_string();
        assert!(text.contains("command:echo ...") && text.contains("signal 9"), "{text}");
        assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    }
}

/// The error after the last frames.
fn until_lost(camera: &mut dyn Camera) -> Error {
    let mut frames = 0;
    loop {
        match camera.next_frame() {
            Ok(_) => frames += 1,
            Err(error) => return error,
        }
        assert!(frames < 1000);
    }
}

/// A server of MJPEG for one visitor, killed when dropped.
struct Server(Child);

impl Server {
    fn start(port: u16) -> Server {
        let arguments = format!(
            "exec ffmpeg -v error -re {TEST_PICTURE} -q:v 2 -f mpjpeg \
             -content_type 'multipart/x-mixed-replace;boundary=ffmpeg' -listen 1 http://127.0.0.1:{port}/"
        );
        Server(Command::new("sh").args(["-c", &arguments]).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Opens it again and again until there is a frame, as the daemon does.
fn until_found(source: &str) -> (Box<dyn Camera>, Frame) {
    let start = Instant::now();
    loop {
        let mut camera = camera(source);
        match camera.next_frame() {
            Ok(frame) => return (camera, frame),
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_real_server_is_seen_lost_and_found_again() {
    let reference = reference(100);
    let port = free_port();
    let source = format!("http://127.0.0.1:{port}/");
    let text = camera(&source).next_frame().unwrap_err().to_string();
    assert!(text.contains(&source) && text.contains("cannot be reached"), "{text}");
    for _ in 0..2 {
        let server = Server::start(port);
        let (mut camera, frame) = until_found(&source);
        let mut last = number(&frame, &reference);
        for _ in 0..5 {
            let next = number(&camera.next_frame().unwrap(), &reference);
            assert!(next > last, "{next} after {last}");
            last = next;
        }
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        let (_, next) = (camera.next_frame().unwrap(), number(&camera.next_frame().unwrap(), &reference));
        assert!((next - last) as f64 > start.elapsed().as_secs_f64() * 10.0 - 5.0, "{next} after {last}");

        drop(server);
        let killed = Instant::now();
        let text = until_lost(camera.as_mut()).to_string();
        assert!(text.contains(&source), "{text}");
        assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    }
}

/// A server that answers each request by `answer`, which is given the request's head; its address without a slash.
fn server(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut head = vec![];
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            answer(&String::from_utf8_lossy(&head), &mut connection);
        }
    });
    address.to_string()
}

fn jpeg(grey: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(vec![]);
    image::GrayImage::from_pixel(16, 8, image::Luma([grey])).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

fn grey(frame: Result<Frame>) -> u8 {
    let frame = frame.unwrap();
    assert_eq!((frame.width(), frame.height()), (16, 8));
    frame.rgb()[0]
}

/// Sends what can be sent: the camera may have gone.
fn send(connection: &mut TcpStream, parts: &[&[u8]]) {
    let _ = connection.write_all(&parts.concat());
}

#[test]
fn the_habits_of_ip_cameras_are_put_up_with() {
    let multipart = "multipart/x-mixed-replace;boundary=";
    // what the header says the boundary is, what it is, what each part says of its length
    type Length = fn(usize) -> String;
    let habits: [(String, &str, Length); 9] = [
        (format!("{multipart}frame"), "--frame", |length| format!("Content-Length: {length}\r\n")),
        (format!("{multipart}frame"), "--frame", |_| String::new()),
        (format!("{multipart}--frame"), "--frame", |length| format!("Content-length:{length}\r\n")),
        (format!("{multipart}--frame"), "----frame", |_| String::new()),
        (format!("{multipart}\"frame\""), "--frame", |_| String::new()),
        (format!("{multipart}frame"), "frame", |length| format!("Content-Length: {}\r\n", length / 2)),
        ("multipart/x-mixed-replace".into(), "--what", |length| format!("Content-Length: {}\r\n", length * 2)),
        ("application/octet-stream".into(), "", |_| String::new()),
        ("video/x-motion-jpeg".into(), "--b", |_| "X-Timestamp: 1.5\r\n".into()),
    ];
    for (kind, boundary, length) in habits {
        let shown = kind.clone();
        let address = server(move |_, connection| {
            send(connection, &[format!("HTTP/1.0 200 OK\r\nServer: x\r\nContent-Type: {kind}\r\n\r\n").as_bytes()]);
            for grey in [40, 80, 120] {
                let jpeg = jpeg(grey);
                if !boundary.is_empty() {
                    let head = format!("\r\n{boundary}\r\nContent-Type: image/jpeg\r\n{}\r\n", length(jpeg.len()));
                    send(connection, &[head.as_bytes()]);
                }
                let (first, second) = jpeg.split_at(jpeg.len() / 3);
                send(connection, &[first]);
                std::thread::sleep(Duration::from_millis(20));
                send(connection, &[second]);
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        let mut camera = camera(&format!("http://{address}/video"));
        let greys = [(); 3].map(|()| grey(camera.next_frame()));
        assert_eq!(greys, [40, 80, 120], "{shown}");
        let text = camera.next_frame().unwrap_err().to_string();
        assert!(text.contains("ended its stream"), "{shown}: {text}");
    }
}

#[test]
fn a_still_is_fetched_again_and_again_at_the_pace_asked_for() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    let address = server(move |head, connection| {
        assert!(head.starts_with("GET /shot.jpg?w=1 HTTP/1.1\r\n"), "{head}");
        let jpeg = jpeg(10 * (1 + asked.fetch_add(1, Ordering::SeqCst)) as u8);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: Image/JPEG\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            jpeg.len()
        );
        send(connection, &[head.as_bytes(), &jpeg]);
    });
    let mut camera =
        camera_with(&format!("http://{address}/shot.jpg?w=1"), &Setup { frames_per_second: 10.0, ..setup() });
    let start = Instant::now();
    let greys: Vec<u8> = (0..5).map(|_| grey(camera.next_frame())).collect();
    assert!(greys.is_sorted() && greys[4] >= 50, "{greys:?}");
    let (asked, most) = (count.load(Ordering::SeqCst), start.elapsed().as_secs_f64() * 10.0 + 2.0);
    assert!(asked as f64 <= most && start.elapsed() >= Duration::from_millis(400), "{asked} in {:?}", start.elapsed());
}

#[test]
fn user_and_password_are_sent_and_never_told() {
    let address = server(|head, connection| {
        // RFC 7617: base64 of ann:p@ss
        let known = head.to_ascii_lowercase().contains("authorization: basic yw5uonbac3m=");
        let jpeg = jpeg(77);
        match known && !head.contains("refuse") {
            true => send(connection, &[b"HTTP/1.1 200 OK\r\nContent-Type: video/x-jpeg\r\n\r\n", &jpeg]),
            false => send(connection, &[b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"]),
        }
    });
    assert_eq!(grey(camera(&format!("http://ann:p%40ss@{address}/")).next_frame()), 77);
    let complaint = |source: String| camera(&source).next_frame().unwrap_err().to_string();
    let text = complaint(format!("http://{address}/"));
    assert!(text.contains("wants a user and password"), "{text}");
    let text = complaint(format!("http://ann:p%40ss@{address}/?refuse=p%40ss"));
    assert!(text.contains("refuses the user and password") && text.contains(&address), "{text}");
    assert!(!text.contains("ann") && !text.contains("ss@") && !text.contains("p%40ss"), "{text}");
}

#[test]
fn what_is_no_camera_is_told_so() {
    let answers: [(&str, &str); 6] = [
        ("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html>", "answers with text/html"),
        ("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", "answers with image/png"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "nothing at this address"),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "500"),
        ("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 3\r\n\r\nabc", "without a picture"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "proper HTTP"),
    ];
    for (answer, about) in answers {
        let address = server(move |_, connection| send(connection, &[answer.as_bytes()]));
        let text = camera(&format!("http://{address}/")).next_frame().unwrap_err().to_string();
        assert!(text.contains(about) && text.contains(&address), "{answer}: {text}");
    }
}

#[test]
fn a_dead_server_is_noticed_in_time() {
    let lost_after = |source: &str, frames: usize| {
        let mut camera = camera_with(source, &Setup { timeout_seconds: 1.0, ..setup() });
        for _ in 0..frames {
            camera.next_frame().unwrap();
        }
        let start = Instant::now();
        let text = camera.next_frame().unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}: {text}", start.elapsed());
        assert!(text.contains("has sent nothing") || text.contains("in time"), "{text}");
    };
    let hang = Duration::from_secs(30);
    // never answers; answers without sending; sends one frame and half of another
    let address = server(move |_, _| std::thread::sleep(hang));
    lost_after(&format!("http://{address}/"), 0);
    let address = server(move |_, connection| {
        send(connection, &[b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n"]);
        std::thread::sleep(hang);
    });
    lost_after(&format!("http://{address}/"), 0);
    let address = server(move |_, connection| {
        let jpeg = jpeg(5);
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n";
        send(connection, &[head, &jpeg, &jpeg[..jpeg.len() / 2]]);
        std::thread::sleep(hang);
    });
    lost_after(&format!("http://{address}/"), 1);
}
