//! `pleinair.toml`: what the daemon does, where, and for whom. Unknown keys are refused; `targets/service/pleinair.toml`
//! explains every key and holds the defaults.

pub use crate::display::Setup as DisplaySetup;
use crate::painter::Request;
use crate::{Error, Result};
pub use awaited::{CameraSetup, Source};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Until the room camera has them.
mod awaited {
    use serde::{Deserialize, Serialize};
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct CameraSetup {}
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub enum Source {
        #[serde(rename = "browser")]
        Browser,
    }
    impl std::fmt::Display for Source {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("browser")
        }
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// A screen without a browser; none without this section.
    pub display: Option<DisplaySetup>,
    /// Who may do what.
    pub security: Security,
    /// What is written to standard error.
    pub log: Log,
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)] // not `deny_unknown_fields`, which does not go with `flatten`: the setup refuses what it does not know
pub struct Camera {
    /// `browser`, `v4l2:/dev/video0`, `avfoundation:0`, `command:PROGRAM ARGUMENTS`, `http://…` or `folder:PATH`.
    pub source: Source,
    /// How frames are turned and cut.
    #[serde(flatten)]
    pub setup: CameraSetup,
}

/// What a painting is like where nobody says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
            display: None,
            security: Security::default(),
            log: Log::default(),
        }
    }
}

impl Default for Camera {
    fn default() -> Self {
        Camera { source: Source::Browser, setup: CameraSetup::default() }
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
            stages: 6,
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
        let config: Config = toml::from_str(text).map_err(|fault| fault.to_string().trim_end().to_owned())?;
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
