//! The program as people and scripts run it: exit codes, what is said, which files there are afterwards.

mod bad_input;
mod bench;
#[path = "../reference/bundle.rs"]
mod bundle;
mod bundles;
mod controls;
mod learning;
mod painting;
#[cfg(unix)]
mod serving;
mod styles;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pleinair");
/// A model of SD 1.5's structure that paints 64x64 in no time.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-sd15");
const PHOTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mountain2.jpg");

/// A folder of its own to run the program in.
struct Studio(TempDir);

impl Studio {
    fn new() -> Self {
        Studio(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}; there are {:?}", self.names()))
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.0.path()).env_remove("PLEINAIR_BUNDLE").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(PROGRAM, arguments))
    }

    /// As [`Studio::run`], and it has to succeed.
    fn done(&self, arguments: &[&str]) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.code, Some(0), "{arguments:?}: {}", run.stderr);
        run
    }

    /// Runs what cannot be done: the exit code is `code`, stderr says all of `words`, and every file is as it was.
    fn refuses(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let before = self.files();
        self.run(arguments).failed(code, words);
        self.unchanged(&before);
    }

    /// Every file below, with its contents.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(self.0.path(), &mut files);
        files
    }

    fn unchanged(&self, before: &BTreeMap<PathBuf, Vec<u8>>) {
        let after = self.files();
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(before), names(&after));
        assert!(*before == after, "the contents of a file changed");
    }

    fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(self.0.path()).unwrap().display().to_string();
        self.files().keys().map(name).collect()
    }

    /// A copy of the tiny model to damage.
    fn copy_model(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        copy_folder(Path::new(TINY), &copy);
        copy
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// How a run ended.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(command: &mut Command) -> Run {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        self.says(words);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
    }

    /// The lines of `--progress json`.
    fn events(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// A run that is watched and interfered with.
struct Watched {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watched {
    /// Starts the program, whose arguments should have it tell JSON lines.
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watched { child, lines }
    }

    /// Waits until a line contains `text`.
    fn wait_for(&mut self, text: &str) {
        let found = self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(text));
        assert!(found.is_some(), "the run ended without {text}: {}", self.stderr());
    }

    fn signal(&self, signal: impl AsRef<OsStr>) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(signal).arg(id).status().unwrap().success());
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for the end; the code is none after a signal that was not caught.
    fn end(mut self) -> Run {
        let stdout = self.lines.by_ref().map(|line| line.unwrap() + "\n").collect();
        let stderr = self.stderr();
        Run { code: self.child.wait().unwrap().code(), stdout, stderr }
    }
}

const PAINT: [&str; 9] = ["paint", "--bundle", TINY, "--steps", "2", "--prompt", "a boat", "--progress", "json"];
const LEARN: [&str; 9] = ["learn", "--bundle", TINY, "--image", PHOTO, "--batch", "1", "--progress", "json"];

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

/// A style of the tiny model, learned in three steps.
fn learned() -> &'static Path {
    static STYLE: OnceLock<(Studio, PathBuf)> = OnceLock::new();
    let (_, path) = STYLE.get_or_init(|| {
        let studio = Studio::new();
        studio.done(&with(&LEARN, &["--steps", "3", "--license", "CC0-1.0", "--out", "mine.safetensors"]));
        let path = studio.path("mine.safetensors");
        (studio, path)
    });
    path
}
