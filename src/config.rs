//! `pleinair.toml`: what the daemon does, where, and for whom. Unknown keys are refused; `targets/service/pleinair.toml`
//! explains every key and holds the defaults.

use crate::camera::{Setup as CameraSetup, Source};
use crate::display::Setup as DisplaySetup;
use crate::painter::Request;
use crate::strings::Strings;
use crate::{Error, Result};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of the pages and the API. Anything but loopback requires tokens (see [`Security`]).
    pub listen: SocketAddr,
    /// Folder of the database, the paintings and the styles. Relative paths start where the daemon was started.
    pub data: PathBuf,
    /// Model folder; without it the one that ships with the program.
    pub bundle: Option<PathBuf>,
    /// Language of pages and screen: `en` or `de`.
    pub language: String,
    /// Where frames come from.
    pub camera: Camera,
    /// What a painting is like where nobody says it.
    pub painting: Painting,
    /// How a style is learned where nobody says it.
    pub learning: Learning,
    /// How much may wait.
    pub queue: Queue,
    /// What is deleted by itself.
    pub retention: Retention,
    /// The page for visitors.
    pub kiosk: Kiosk,
    /// A screen without a browser, and its buttons.
    pub display: DisplaySetup,
    /// Who may do what.
    pub security: Security,
    /// What is written to standard error.
    pub log: Log,
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Camera {
    /// `browser`, `v4l2:/dev/video0`, `avfoundation:0`, `command:PROGRAM ARGUMENTS`, `http://…` or `folder:PATH`.
    pub source: Source,
    /// More cameras, written alike: the admin page offers them besides `source` and what is plugged in.
    pub others: Vec<Source>,
    /// How frames are turned and cut.
    pub frames: CameraSetup,
}

/// What a painting is like where nobody says it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Painting {
    /// Wishes for paintings of photographs where the person who asks has none; the keys of the API's painting.
    pub wish: Request,
    /// Steps between two previews of an unfinished painting; 0 for none.
    pub preview_every: usize,
    /// Quality of the JPEGs beside a painting, 1 to 100.
    pub thumbnail_side: usize,
}

/// How a style is learned where nobody says it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Learning {
    /// Optimiser steps.
    pub steps: usize,
    /// Stages T.
    pub stages: usize,
    /// Noised latents a step.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// The word every stage starts from.
    pub init: String,
    /// Steps between two pictures of the unfinished style; 0 for none.
    pub preview_every: usize,
    /// The most pictures one lesson may have.
    pub most_pictures: usize,
}

/// How much may wait.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Paintings that wait or are being painted.
    pub paintings: usize,
    /// Lessons that wait or are being learned.
    pub lessons: usize,
    /// How often a job that took the program down with it is tried.
    pub attempts: u32,
}

/// What is deleted by itself, the oldest first; whatever is not given is no limit.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The most paintings kept.
    pub paintings: Option<u64>,
    /// Days a painting is kept.
    pub days: Option<u64>,
    /// The most bytes of paintings, in MB (1e6 bytes).
    pub megabytes: Option<u64>,
}

/// The page for visitors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kiosk {
    /// Headline.
    pub title: String,
    /// Seconds from the press to the picture.
    pub countdown_seconds: u32,
    /// Seconds without a touch until the start page comes back.
    pub timeout_seconds: u32,
    /// Seconds without a touch until the slideshow starts.
    pub idle_seconds: u32,
    /// Seconds a picture of the slideshow is shown.
    pub slide_seconds: u32,
    /// Where other devices reach this machine, for QR codes, such as `http://192.168.1.20:7860`; found out where it is left
    /// out and `listen` is not loopback.
    pub public_url: Option<String>,
    /// Program and arguments that print a painting; `{}` is its file. No printing without it.
    pub print: Vec<String>,
    /// The most prints of one painting.
    pub most_prints: u32,
}

/// Who may do what. On loopback nobody needs a token unless `admin_token` is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// File of the tokens; made with new ones where it is missing. Default: `tokens.toml` in the data folder.
    pub tokens: Option<PathBuf>,
    /// Require tokens on loopback too.
    pub always: bool,
    /// Host names besides addresses and `localhost` that this daemon answers to.
    pub hosts: Vec<String>,
    /// Largest body of a request, in MB (1e6 bytes).
    pub body_megabytes: u64,
    /// Largest picture that is decoded, in megapixels.
    pub megapixels: u64,
    /// Requests a minute from one address that change something or cost much.
    pub requests_per_minute: u32,
    /// Seconds a request may take.
    pub request_seconds: u64,
}

/// What is written to standard error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// Lines of JSON instead of text.
    pub json: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: (Ipv4Addr::LOCALHOST, 7860).into(),
            data: "pleinair-data".into(),
            bundle: None,
            language: "en".into(),
            camera: Camera::default(),
            painting: Painting::default(),
            learning: Learning::default(),
            queue: Queue::default(),
            retention: Retention::default(),
            kiosk: Kiosk::default(),
            display: DisplaySetup::default(),
            security: Security::default(),
            log: Log::default(),
        }
    }
}

impl Default for Camera {
    fn default() -> Self {
        Camera { source: Source::Browser, others: vec![], frames: CameraSetup::default() }
    }
}

impl Default for Painting {
    fn default() -> Self {
        Painting { wish: Request::default(), preview_every: 3, thumbnail_side: 480 }
    }
}

impl Default for Learning {
    fn default() -> Self {
        Learning {
            steps: 500,
            stages: crate::stages::STAGES,
            batch: 8,
            lr: 0.002,
            init: "painting".into(),
            preview_every: 50,
            most_pictures: 8,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Queue { paintings: 8, lessons: 4, attempts: 3 }
    }
}

impl Default for Kiosk {
    fn default() -> Self {
        Kiosk {
            title: "pleinair".into(),
            countdown_seconds: 3,
            timeout_seconds: 60,
            idle_seconds: 300,
            slide_seconds: 8,
            public_url: None,
            print: vec![],
            most_prints: 3,
        }
    }
}

impl Default for Security {
    fn default() -> Self {
        Security {
            tokens: None,
            always: false,
            hosts: vec![],
            body_megabytes: 32,
            megapixels: 40,
            requests_per_minute: 120,
            request_seconds: 30,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".into(), json: false }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::File`] for TOML that is none, unknown keys (with their line) and values
    /// that cannot be.
    pub fn open(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Config::parse(&text).map_err(|what| Error::file(path, what))
    }

    /// Reads a configuration file's text.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub fn parse(text: &str) -> Result<Config, String> {
        // not the line itself, as the parser would show it: it may hold a camera's password
        let fault = |fault: toml::de::Error| {
            let line =
                fault.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
            format!("{}{}", line.map_or(String::new(), |line| format!("line {line}: ")), fault.message())
        };
        let config: Config = toml::from_str(text).map_err(fault)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let least = [
            ("queue.paintings", self.queue.paintings as u64),
            ("queue.lessons", self.queue.lessons as u64),
            ("queue.attempts", self.queue.attempts.into()),
            ("learning.steps", self.learning.steps as u64),
            ("learning.stages", self.learning.stages as u64),
            ("learning.batch", self.learning.batch as u64),
            ("learning.most_pictures", self.learning.most_pictures as u64),
            ("painting.thumbnail_side", self.painting.thumbnail_side as u64),
            ("kiosk.slide_seconds", self.kiosk.slide_seconds.into()),
            ("kiosk.timeout_seconds", self.kiosk.timeout_seconds.into()),
            ("security.body_megabytes", self.security.body_megabytes),
            ("security.megapixels", self.security.megapixels),
            ("security.requests_per_minute", self.security.requests_per_minute.into()),
            ("security.request_seconds", self.security.request_seconds),
        ];
        if let Some((key, _)) = least.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{key} is 0; it has to be at least 1"));
        }
        Strings::of(&self.language).map_err(|fault| format!("language: {fault}"))?;
        self.camera.frames.validate().map_err(|fault| format!("camera.frames: {fault}"))?;
        if !(self.learning.lr > 0.0 && self.learning.lr.is_finite()) {
            return Err(format!("learning.lr is {}; it has to be a positive number", self.learning.lr));
        }
        if self.log.level.parse::<tracing::Level>().is_err() {
            let level = &self.log.level;
            return Err(format!("log.level is {level:?}; use error, warn, info, debug or trace"));
        }
        if let Some(url) = &self.kiosk.public_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            return Err(format!("kiosk.public_url is {url:?}; it has to start with http:// or https://"));
        }
        Ok(())
    }

    /// How long a request may take.
    pub fn request_time(&self) -> Duration {
        Duration::from_secs(self.security.request_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../targets/service/pleinair.toml");

    #[test]
    fn the_example_holds_the_defaults() {
        assert_eq!(Config::parse(EXAMPLE).unwrap(), Config::default());
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    /// What stands in the example's section, values and what is commented out.
    fn section(name: &str) -> String {
        let mut own = String::new();
        let mut inside = name.is_empty();
        for line in EXAMPLE.lines() {
            match line.trim_start_matches("# ").strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(found) => inside = found == name,
                None if inside => own += &format!("{line}\n"),
                None => {}
            }
        }
        own
    }

    /// The keys that a section may have, as the parser lists them when it meets one that it does not know.
    fn keys(name: &str) -> Vec<String> {
        let text = if name.is_empty() { "nonsense = 1".into() } else { format!("[{name}]\nnonsense = 1") };
        let fault = Config::parse(&text).unwrap_err();
        assert!(fault.contains("unknown field `nonsense`"), "{fault}");
        let listed = fault.split("expected").nth(1).unwrap();
        listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_example_explains_every_key() {
        let mut checked = 0;
        let mut sections = vec![String::new()];
        while let Some(name) = sections.pop() {
            let own = section(&name);
            for key in keys(&name) {
                let below = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                if EXAMPLE.contains(&format!("\n[{below}]")) || EXAMPLE.contains(&format!("\n# [{below}]")) {
                    sections.push(below);
                    continue;
                }
                let set = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} ="));
                assert!(own.lines().any(set), "{below} is not in the example");
                checked += 1;
            }
        }
        assert!(checked > 50, "{checked}");
    }

    #[test]
    fn faults_name_the_key() {
        for (text, word) in [
            ("liste = 1", "liste"),
            ("[queue]\npaintings = 0", "queue.paintings"),
            ("[camera]\nsource = \"telescope:1\"", "camera"),
            ("[camera.frames]\nrotate = 45", "line 2: a camera cannot be turned"),
            ("[camera.frames]\nframes_per_second = 0.0", "frames_per_second"),
            ("[learning]\nlr = nan", "learning.lr"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[kiosk]\npublic_url = \"ftp://a\"", "public_url"),
            ("[painting.wish]\nsize = \"0x0\"", "above 0"),
            ("listen = 7860", "line 1: "),
            ("[queue", "line 1: "),
        ] {
            let fault = Config::parse(text).unwrap_err();
            assert!(fault.contains(word), "{text}: {fault}");
        }
        let secret = "[camera]\nsource = \"ftp://me:secret@camera/\"";
        let fault = Config::parse(secret).unwrap_err();
        assert!(fault.starts_with("line 2: ") && !fault.contains("secret"), "{fault}");
    }
}
