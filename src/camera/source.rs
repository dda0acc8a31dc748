//! The camera's name in the configuration.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::http::Uri;

use crate::error::{Error, Result};

const KINDS: &str =
    "v4l2:/dev/video0, avfoundation:0, command:PROGRAM ARGUMENT..., http://HOST/PATH, browser or folder:PATH";

/// Where frames come from, as the configuration names it.
///
/// It is written and shown without what may be secret: of an address neither user, password nor query, of a command only
/// the program.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum Source {
    /// `v4l2:/dev/video0`: a camera of Linux.
    V4l2 {
        /// The device file.
        device: PathBuf,
    },
    /// `avfoundation:0`: a camera of macOS, by its number or its name.
    AvFoundation(String),
    /// `command:ffmpeg ...`: what this shell command writes to its output, JPEGs one after another or YUV4MPEG2.
    Command(String),
    /// `http://...`: MJPEG from an IP camera or a phone, or a JPEG that is fetched again and again.
    Http(Address),
    /// `browser`: frames come from the page.
    Browser,
    /// `folder:...`: the stills in a folder, one after another.
    Folder(PathBuf),
}

/// An `http://` address, and the user and password that were in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    url: String,
    authorization: Option<String>,
}

impl Address {
    fn parse(text: &str) -> Result<Address, &'static str> {
        let example = "an address looks like http://192.168.1.20:8080/video, or http://user:password@... with one";
        let uri: Uri = text.parse().map_err(|_| example)?;
        if !text.starts_with("http://") {
            return Err(example);
        }
        let authority = uri.authority().ok_or(example)?.as_str();
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if host.is_empty() || host.starts_with(':') {
            return Err(example);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let credentials = match user {
            Some(user) => {
                Some(percent_decoded(user).ok_or("user and password have a % that is no code; write it %25")?)
            }
            None => None,
        };
        Ok(Address {
            url: format!("http://{host}{path}"),
            authorization: credentials.map(|user| format!("Basic {}", BASE64_STANDARD.encode(user))),
        })
    }

    /// The address to ask, without user and password. Its query may hold others.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The header `Authorization` (RFC 7617).
    pub(super) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.url.split_once('?') {
            Some((place, _)) => write!(f, "{place}?..."),
            None => write!(f, "{}", self.url),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// RFC 3986, section 2.1. Nothing where a `%` is not followed by two digits.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    Some(bytes)
}

impl FromStr for Source {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] with what is allowed. The text is not repeated: it may hold a password.
    fn from_str(text: &str) -> Result<Source> {
        let text = text.trim();
        let wrong = |what: &str| Error::Usage(format!("the camera cannot be used: {what}"));
        if text == "browser" {
            return Ok(Source::Browser);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(|| wrong(&format!("it has to be one of {KINDS}")))?;
        let rest = rest.trim();
        let given = |what: &str| if rest.is_empty() { Err(wrong(what)) } else { Ok(rest) };
        Ok(match kind {
            "v4l2" => Source::V4l2 { device: given("v4l2: needs a device, for example v4l2:/dev/video0")?.into() },
            "avfoundation" => Source::AvFoundation(
                given("avfoundation: needs a camera's number or name, for example avfoundation:0")?.into(),
            ),
            "command" => Source::Command(
                given("command: needs a program that writes MJPEG or YUV4MPEG2, for example command:ffmpeg ... -f mjpeg -")?
                    .into(),
            ),
            "folder" => Source::Folder(given("folder: needs a folder with pictures, for example folder:stills")?.into()),
            "http" => Source::Http(Address::parse(text).map_err(wrong)?),
            "https" => {
                return Err(wrong(
                    "https:// is not spoken; use http:// within your own network, or command:ffmpeg -i https://... -f mjpeg -",
                ));
            }
            "rtsp" | "rtsps" => {
                return Err(wrong("rtsp:// is not spoken; use command:ffmpeg -i rtsp://... -f mjpeg -q:v 3 -"));
            }
            _ => return Err(wrong(&format!("it has to be one of {KINDS}"))),
        })
    }
}

impl TryFrom<String> for Source {
    type Error = Error;

    fn try_from(text: String) -> Result<Source> {
        text.parse()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::V4l2 { device } => write!(f, "v4l2:{}", device.display()),
            Source::AvFoundation(camera) => write!(f, "avfoundation:{camera}"),
            Source::Command(command) => {
                let mut words = command.split_whitespace();
                // what is set for the program alone stands before it
                let program = words.find(|word| !word.contains('=')).unwrap_or("...");
                let more = if words.next().is_some() { " ..." } else { "" };
                write!(f, "command:{program}{more}")
            }
            Source::Http(address) => write!(f, "{address}"),
            Source::Browser => write!(f, "browser"),
            Source::Folder(path) => write!(f, "folder:{}", path.display()),
        }
    }
}

/// As it is shown: what is secret stays where it was read.
impl serde::Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text with user, password and query taken out of its addresses: programs repeat them in their complaints.
pub(super) fn without_passwords(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = address.find(|c: char| c.is_whitespace() || c == '"' || c == '\'').unwrap_or(address.len());
        let (address, after) = address.split_at(end);
        // the last @: a password may hold others, and a path cut off with it is no loss
        let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
        let (host, query) = host.split_once('?').map_or((host, ""), |(host, _)| (host, "?..."));
        clean.push_str(host);
        clean.push_str(query);
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_read_and_shown() {
        assert_eq!(source("v4l2:/dev/video0"), Source::V4l2 { device: "/dev/video0".into() });
        assert_eq!(source("avfoundation:FaceTime HD"), Source::AvFoundation("FaceTime HD".into()));
        assert_eq!(source("command: a | b:c "), Source::Command("a | b:c".into()));
        assert_eq!(source(" browser "), Source::Browser);
        assert_eq!(source("folder:stills/today"), Source::Folder("stills/today".into()));
        for name in ["v4l2:/dev/video0", "avfoundation:0", "browser", "folder:a b", "http://host:81/a/b", "command:x"] {
            assert_eq!(source(name).to_string(), name);
        }
        assert_eq!(source("http://host").to_string(), "http://host/");
    }

    #[test]
    fn a_wrong_name_is_told_what_is_right() {
        let cases = [
            ("", "one of v4l2:"),
            ("webcam", "one of v4l2:"),
            ("usb:0", "one of v4l2:"),
            ("v4l2:", "v4l2:/dev/video0"),
            ("avfoundation: ", "avfoundation:0"),
            ("command:", "MJPEG or YUV4MPEG2"),
            ("folder:", "folder:stills"),
            ("http://", "http://192"),
            ("http:host", "http://192"),
            ("http://:80/", "http://192"),
            ("http://u:hidden@/", "http://192"),
            ("http://u:hidden%4@host/", "%25"),
            ("http://ho st/hidden", "http://192"),
            ("https://u:hidden@host/", "command:ffmpeg"),
            ("rtsp://u:hidden@host/", "command:ffmpeg"),
        ];
        for (name, remedy) in cases {
            let error = name.parse::<Source>().unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Usage(_)) && text.contains(remedy), "{name}: {text}");
            assert!(!text.contains("hidden"), "{name}: {text}");
        }
    }

    #[test]
    fn secrets_are_used_but_never_shown() {
        let Source::Http(address) = source("http://ann:p%40s%20%C3%A9@host:81/v?pwd=hidden#x") else { panic!() };
        assert_eq!(address.url(), "http://host:81/v?pwd=hidden");
        // RFC 7617, section 2: base64 of user:password
        assert_eq!(address.authorization(), Some("Basic YW5uOnBAcyDDqQ=="));
        assert_eq!(format!("{address} {address:?}"), "http://host:81/v?... http://host:81/v?...");

        let commands = ["ffmpeg -i rtsp://u:hidden@host/ -f mjpeg -", "PW=hidden ffmpeg $PW"];
        for command in commands {
            let source = Source::Command(command.into());
            assert_eq!(format!("{source} {source:?}"), "command:ffmpeg ... command:ffmpeg ...");
        }
    }

    #[test]
    fn addresses_in_complaints_lose_their_passwords() {
        let cases = [
            ("rtsp://u:p@host/x: 401", "rtsp://host/x: 401"),
            ("open 'http://u:p@a@b/c?k=v' and http://d/e?f", "open 'http://b/c?...' and http://d/e?..."),
            ("http://u:p/w@host", "http://host"),
            ("no address, a@b", "no address, a@b"),
            ("://", "://"),
        ];
        for (text, expected) in cases {
            assert_eq!(without_passwords(text), expected);
        }
    }

    #[test]
    fn it_is_read_from_configuration() {
        #[derive(serde::Deserialize, serde::Serialize, Debug)]
        struct Settings {
            source: Source,
        }
        let settings: Settings = toml::from_str("source = 'folder:x'").unwrap();
        assert_eq!(settings.source, Source::Folder("x".into()));
        assert_eq!(toml::to_string(&settings).unwrap(), "source = \"folder:x\"\n");
        let secret: Settings = toml::from_str("source = 'http://u:hidden@host/?p=hidden'").unwrap();
        assert!(!toml::to_string(&secret).unwrap().contains("hidden"));
        assert!(toml::from_str::<Settings>("source = 'x'").unwrap_err().to_string().contains("one of"));
    }
}
