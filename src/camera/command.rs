//! `command:`: a program that writes frames to its output.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::source::without_passwords;
use super::stream::{End, Newest, Stream, pass_jpegs, pass_y4m};
use super::{Setup, Source};
use crate::error::{Error, Result};

/// Lines of the program's complaints that are kept, and the length of each.
const LINES: usize = 4;
const LINE_BYTES: usize = 300;
/// How long a program may take to end when asked to, and to say why it ended.
const GRACE: Duration = Duration::from_millis(700);

/// Starts the program.
///
/// # Errors
/// [`Error::Camera`] when the system cannot start it.
pub(super) fn open(source: &Source, command: &str, setup: &Setup, stop: Arc<AtomicBool>) -> Result<Stream> {
    let camera = source.to_string();
    let lost = |e: std::io::Error| Error::Camera { camera: camera.clone(), what: format!("cannot be started: {e}") };
    // Its own process group: what the shell starts ends with it.
    let mut child = Command::new("sh")
        .args(["-c", command])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(lost)?;
    let pipes = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (program, (stdout, stderr)) = (Arc::new(Program::new(child)), pipes);
    let listener = program.clone();
    std::thread::Builder::new().name("camera messages".into()).spawn(move || listener.listen(stderr)).map_err(lost)?;
    let keeper = Keeper(program.clone());
    let read = move |newest: &Newest| read(&program, stdout, newest);
    Ok(Stream::start(camera, setup.patience(), stop, keeper, read)?.slow_to_start())
}

/// Reads frames until the program ends; how it did.
fn read(program: &Program, stdout: ChildStdout, newest: &Newest) -> String {
    let mut reader = BufReader::with_capacity(256 << 10, stdout);
    let mut start = [0; 4];
    let got = read_fully(&mut reader, &mut start);
    let reader = start[..got].chain(reader);
    if &start == b"YUV4" {
        return match pass_y4m(reader, newest) {
            Ok(()) => program.ended(),
            // the header of a program that ended at once is no fault of the header
            Err(_) if program.status(GRACE).is_some() => program.ended(),
            Err(what) => what,
        };
    }
    match pass_jpegs(reader, newest) {
        (_, End::Closed) => program.ended(),
        (_, End::Failed(error)) => format!("cannot be read: {error}"),
        (_, End::NoPictures) => "writes neither MJPEG nor YUV4MPEG2; for ffmpeg, add -f mjpeg -q:v 3 -".into(),
        (_, End::Unwanted) => String::new(),
    }
}

/// Fills the buffer unless the end comes before.
fn read_fully(reader: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // the next read meets it again
            Err(_) => break,
        }
    }
    length
}

/// A running program and its last words.
struct Program {
    child: Mutex<Child>,
    group: Pid,
    lines: Mutex<VecDeque<String>>,
    silent: AtomicBool,
}

impl Program {
    fn new(child: Child) -> Program {
        let group = Pid::from_raw(child.id() as i32);
        Program { child: Mutex::new(child), group, lines: Mutex::default(), silent: AtomicBool::new(false) }
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the last lines that the program complains in.
    fn listen(&self, stderr: ChildStderr) {
        let mut reader = BufReader::new(stderr);
        let mut line = vec![];
        while let Ok(bytes) = reader.fill_buf() {
            // ffmpeg ends the lines of its progress with a carriage return
            let end = bytes.iter().position(|&b| b == b'\n' || b == b'\r');
            let (part, taken) = match end {
                Some(end) => (&bytes[..end], end + 1),
                None => (bytes, bytes.len()),
            };
            line.extend(&part[..part.len().min(LINE_BYTES.saturating_sub(line.len()))]);
            let over = taken == 0;
            reader.consume(taken);
            if end.is_some() || over {
                self.keep(&std::mem::take(&mut line));
            }
            if over {
                break;
            }
        }
        self.silent.store(true, Ordering::Release);
    }

    fn keep(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if !text.is_empty() {
            let mut lines = self.lines();
            lines.push_back(without_passwords(text));
            if lines.len() > LINES {
                lines.pop_front();
            }
        }
    }

    /// How it ended, if it does within this time.
    fn status(&self, time: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + time;
        loop {
            let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
            if let Ok(Some(status)) = status {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How it ended, as the rest of a sentence.
    fn ended(&self) -> String {
        let how = match self.status(GRACE) {
            Some(status) => match (status.code(), status.signal()) {
                (Some(0), _) => "ended".to_string(),
                (Some(127), _) => "was not found by the shell".to_string(),
                (Some(code), _) => format!("ended with exit code {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => format!("ended with {status}"),
            },
            None => "has closed its output".to_string(),
        };
        let end = Instant::now() + GRACE / 4;
        while !self.silent.load(Ordering::Acquire) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let lines = self.lines();
        if lines.is_empty() { how } else { format!("{how}: {}", Vec::from_iter(lines.iter().cloned()).join("; ")) }
    }

    /// Ends the program and all that it started: kindly, since a camera's driver may need to be told, and then by force.
    fn end(&self) {
        // An error says that nobody is left to be told.
        let _ = killpg(self.group, Signal::SIGTERM);
        let end = Instant::now() + GRACE;
        let all_gone = || self.status(Duration::ZERO).is_some() && killpg(self.group, None).is_err();
        while !all_gone() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = killpg(self.group, Signal::SIGKILL);
        let _ = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

/// Ends the program when the camera is dropped.
struct Keeper(Arc<Program>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::Camera;

    fn camera(command: &str) -> Stream {
        let source = Source::Command(command.into());
        let setup = Setup { timeout_seconds: 0.5, ..Setup::default() };
        open(&source, command, &setup, Arc::default()).unwrap()
    }

    fn complaint(command: &str) -> String {
        camera(command).next_frame().unwrap_err().to_string()
    }

    #[test]
    fn it_says_how_it_ended() {
        assert_eq!(complaint("true"), "the camera command:true ended");
        let text = complaint("for i in 1 2 3 4 5; do echo line $i rtsp://u:hidden@host/ >&2; done; exit 3");
        assert!(text.contains("exit code 3: line 2 rtsp://host/; line 3") && text.contains("line 5"), "{text}");
        assert!(!text.contains("hidden"), "{text}");
        assert!(complaint("no-such-program-anywhere x").contains("not found"), "found?");
        assert!(complaint("kill -9 $$").contains("signal 9"));
        assert!(complaint("echo YUV4MPEG2 W1 H1 Cfoo; sleep 60").contains("colour space"));
        assert!(complaint("printf YUV4; echo broken >&2; exit 1").contains("exit code 1: broken"));
        assert!(complaint("exec head -c 9000000 /dev/zero").contains("neither MJPEG nor YUV4MPEG2"));
        assert!(complaint("sleep 60").contains("nothing for 1 s"));
    }

    #[test]
    fn frames_come_before_the_end() {
        let mut camera = camera(r"printf 'YUV4MPEG2 W1 H1 Cmono\nFRAME\n\353'; sleep 0.1; exit 5");
        assert_eq!(camera.next_frame().unwrap().rgb(), [255; 3]);
        assert!(camera.next_frame().unwrap_err().to_string().contains("exit code 5"));
    }

    /// Whether a process still runs, a dead one not yet reaped left out.
    #[cfg(target_os = "linux")]
    fn runs(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_it_started_ends_with_the_camera() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        // one that is deaf to kindness, started by the shell
        let command = format!("trap '' TERM; sleep 60 & echo $! $$ > {}; wait; sleep 60", file.display());
        let camera = camera(&command);
        let mut pids: Vec<i32> = vec![];
        while pids.len() < 2 {
            std::thread::sleep(Duration::from_millis(10));
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            pids = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        }
        assert!(pids.iter().all(|&pid| runs(pid)));
        drop(camera);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!pids.iter().any(|&pid| runs(pid)), "{pids:?}");
    }
}
