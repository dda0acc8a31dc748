//! Who may do what: roles, the tokens that prove them, and links that show one painting to a visitor's phone.

use crate::config::Config;
use crate::daemon::job::Id;
use crate::{Error, Result};
use axum::http::{HeaderMap, Uri, header};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;

/// The cookie that a paired browser keeps its token in.
pub const COOKIE: &str = "pleinair";
/// Bytes of a token: 128 bits are beyond guessing.
const TOKEN_BYTES: usize = 16;
/// Bytes of a painting's key in its link.
const KEY_BYTES: usize = 16;
/// Shorter tokens in a file that somebody wrote are refused.
const SHORTEST: usize = 16;

/// What a client may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See the gallery.
    Gallery,
    /// What visitors at the kiosk do: order paintings, press the shutter, print.
    Kiosk,
    /// Everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 3] = [Role::Gallery, Role::Kiosk, Role::Admin];

    /// As in the file of tokens.
    pub fn name(self) -> &'static str {
        match self {
            Role::Gallery => "gallery",
            Role::Kiosk => "kiosk",
            Role::Admin => "admin",
        }
    }

    /// The page it begins on.
    pub(super) fn page(self) -> &'static str {
        match self {
            Role::Gallery => "/gallery",
            Role::Kiosk => "/",
            Role::Admin => "/admin",
        }
    }
}

/// What the file of tokens holds.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    admin: String,
    kiosk: String,
    gallery: String,
    /// Key of the links that show one painting.
    share: String,
}

impl Tokens {
    fn new() -> Result<Tokens> {
        Ok(Tokens { admin: token()?, kiosk: token()?, gallery: token()?, share: token()? })
    }

    fn of(&self, role: Role) -> &str {
        match role {
            Role::Gallery => &self.gallery,
            Role::Kiosk => &self.kiosk,
            Role::Admin => &self.admin,
        }
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

fn token() -> Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|fault| Error::Usage(format!("the system has no random numbers: {fault}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Who may do what on a daemon that listens on an address.
#[derive(Debug, Clone)]
pub struct Access {
    listen: SocketAddr,
    required: bool,
    tokens: Tokens,
    hosts: Vec<String>,
    public_url: Option<String>,
}

impl Access {
    /// As the configuration has it, for a daemon that listens on `listen`. The file of tokens is made where it is missing.
    ///
    /// # Errors
    /// If the file cannot be read or written, or its tokens are too short.
    pub fn open(config: &Config, listen: SocketAddr) -> Result<Access> {
        let security = &config.security;
        let path = tokens_file(config);
        let tokens = match path.is_file() {
            true => read_tokens(&path)?,
            false => write_tokens(&path)?,
        };
        let public_url = config.kiosk.public_url.clone().or_else(|| reachable(listen));
        let public_host = public_url.as_ref().and_then(|url| url.parse::<Uri>().ok()?.host().map(str::to_owned));
        let hosts = security.hosts.iter().cloned().chain(public_host).map(|host| host.to_ascii_lowercase()).collect();
        let required = security.always || !listen.ip().is_loopback();
        let public_url = public_url.map(|url| url.trim_end_matches('/').to_owned());
        Ok(Access { listen, required, tokens, hosts, public_url })
    }

    /// Whether clients have to show a token.
    pub fn required(&self) -> bool {
        self.required
    }

    /// Where other devices reach the daemon, if they do.
    pub fn public_url(&self) -> Option<&str> {
        self.public_url.as_deref()
    }

    /// Whether the public address is one of HTTPS.
    pub(super) fn is_secure(&self) -> bool {
        self.public_url().is_some_and(|url| url.starts_with("https://"))
    }

    /// The link that pairs a browser with a role; none where nothing is to be paired.
    pub fn pairing_url(&self, role: Role) -> Option<String> {
        let own = format!("http://{}", self.listen);
        let base = self.public_url().unwrap_or(&own);
        self.required.then(|| format!("{base}/pair?token={}", self.tokens.of(role)))
    }

    /// The link that shows one painting to whoever has it; none where no other device reaches the daemon.
    pub fn share_url(&self, id: Id) -> Option<String> {
        Some(format!("{}/p/{id}?k={}", self.public_url()?, self.share_key(id)))
    }

    /// A keyed hash of the id. All ids are of the same length, so nobody can continue a hash to that of another.
    fn share_key(&self, id: Id) -> String {
        let hash = Sha256::new().chain_update(&self.tokens.share).chain_update(id.to_string()).finalize();
        BASE64_URL_SAFE_NO_PAD.encode(&hash[..KEY_BYTES])
    }

    /// Whether this is the key of the painting's link.
    pub(super) fn is_share_key(&self, id: Id, key: &str) -> bool {
        same(self.share_key(id).as_bytes(), key.as_bytes())
    }

    /// The role a token proves. Every token is compared, each in constant time.
    pub(super) fn role_of(&self, token: &str) -> Option<Role> {
        let mut found = None;
        for role in Role::ALL {
            if same(self.tokens.of(role).as_bytes(), token.as_bytes()) {
                found = Some(role);
            }
        }
        found
    }

    /// The role of a request: by its `Authorization` (`Bearer`, or `Basic` with the token as password, which clients of the
    /// A1111-compatible interface send) or the cookie. Where no token is required, everybody is admin.
    pub(super) fn role(&self, headers: &HeaderMap) -> Option<Role> {
        if !self.required {
            return Some(Role::Admin);
        }
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(authorization);
        shown.or_else(|| cookie(headers)).and_then(|token| self.role_of(&token))
    }

    /// Whether a host that a client asked for can be meant. A name that anybody may point at this machine (DNS rebinding)
    /// is none; an address cannot be pointed elsewhere.
    pub(super) fn answers_to(&self, authority: &str) -> bool {
        let host = host_of(authority).to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || !self.listen.ip().is_loopback() || self.hosts.contains(&host),
            Err(_) => host == "localhost" || self.hosts.contains(&host),
        }
    }
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            host
        }
        _ => authority,
    }
}

/// Whether two secrets are the same, found out in a time that says nothing but their lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

fn authorization(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().to_owned()),
        "basic" => {
            let decoded = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
            Some(decoded.split_once(':')?.1.to_owned())
        }
        _ => None,
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| token.to_owned())
}

fn read_tokens(path: &Path) -> Result<Tokens> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let fault = |fault: toml::de::Error| {
        Error::file(path, format!("{}; delete the file to have new tokens made", fault.message()))
    };
    let tokens: Tokens = toml::from_str(&text).map_err(fault)?;
    let all =
        [("admin", &tokens.admin), ("kiosk", &tokens.kiosk), ("gallery", &tokens.gallery), ("share", &tokens.share)];
    let sound = |token: &str| token.len() >= SHORTEST && token.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some((name, _)) = all.iter().find(|(_, token)| !sound(token)) {
        let what = format!("the token {name} has to be {SHORTEST} or more letters and digits; make it longer");
        return Err(Error::file(path, what));
    }
    if (0..all.len()).any(|i| all[..i].iter().any(|(_, token)| *token == all[i].1)) {
        return Err(Error::file(path, "two tokens are the same; roles would be too: change one"));
    }
    Ok(tokens)
}

fn write_tokens(path: &Path) -> Result<Tokens> {
    let tokens = Tokens::new()?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let text = toml::to_string(&tokens).expect("four texts can be written");
    let mut file = options.open(path).map_err(Error::io(path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io(path))?;
    Ok(tokens)
}

/// The address at which other devices reach a listener: its own, or that of the network the machine is in.
fn reachable(listen: SocketAddr) -> Option<String> {
    let port = listen.port();
    let own = match listen.ip() {
        ip if ip.is_loopback() => return None,
        ip if !ip.is_unspecified() => ip,
        _ => own_address()?,
    };
    Some(format!("http://{}", SocketAddr::new(own, port)))
}

/// The address this machine would send from. Nothing is sent: connecting a datagram socket only asks for the way.
fn own_address() -> Option<IpAddr> {
    // a network reserved for documentation stands for "elsewhere"; the others are what machines without a way there are in
    for elsewhere in ["192.0.2.1", "192.168.255.255", "10.255.255.255", "172.31.255.255", "169.254.255.255"] {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        let own = socket.connect((elsewhere, 9)).and_then(|()| socket.local_addr());
        if let Ok(own) = own
            && !own.ip().is_loopback()
            && !own.ip().is_unspecified()
        {
            return Some(own.ip());
        }
    }
    None
}

/// Where the tokens of a configuration lie.
pub fn tokens_file(config: &Config) -> PathBuf {
    config.security.tokens.clone().unwrap_or_else(|| config.data.join("tokens.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(folder: &Path, listen: &str) -> Access {
        let mut config = Config { data: folder.into(), ..Config::default() };
        config.security.hosts = vec!["Kiosk.example".into()];
        Access::open(&config, listen.parse().unwrap()).unwrap()
    }

    #[test]
    fn tokens_are_made_once_and_only_their_owner_may_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let first = access(folder.path(), "0.0.0.0:1");
        let again = access(folder.path(), "0.0.0.0:1");
        for role in Role::ALL {
            assert_eq!(first.role_of(first.tokens.of(role)), Some(role));
            assert_eq!(again.role_of(first.tokens.of(role)), Some(role), "the file was read again");
            assert_eq!(first.role_of(&first.tokens.of(role)[1..]), None);
        }
        assert_eq!(first.role_of(""), None);
        assert_eq!(first.role_of(&first.tokens.share), None, "the key of links opens nothing");
        assert!(!format!("{first:?}").contains(&first.tokens.admin), "a log would have the token");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(folder.path().join("tokens.toml")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn bad_files_of_tokens_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data: folder.path().into(), ..Config::default() };
        let long = |c: &str| c.repeat(20);
        let file =
            |a: &str, k: &str| format!("admin={a:?}\nkiosk={k:?}\ngallery={:?}\nshare={:?}", long("g"), long("s"));
        for (text, word) in [
            (file(&long("a"), "short"), "kiosk"),
            (file(&long("a"), &long("a")), "same"),
            (file(&long("a"), &long("k")) + "\nroot=\"x\"", "unknown field"),
            (format!("admin={:?}", long("a")), "missing field"),
        ] {
            std::fs::write(folder.path().join("tokens.toml"), text).unwrap();
            let error = Access::open(&config, "0.0.0.0:1".parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("tokens.toml"), "{error}");
            assert!(!error.contains(&long("a")), "a token in a message: {error}");
        }
    }

    #[test]
    fn secrets_are_compared_in_constant_time() {
        assert!(same(b"secret", b"secret"));
        for other in [&b"secreT"[..], b"Secret", b"secre", b"secrets", b""] {
            assert!(!same(b"secret", other), "{other:?}");
        }
    }

    #[test]
    fn names_that_can_be_pointed_here_are_no_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let (loopback, lan) = (access(folder.path(), "127.0.0.1:7860"), access(folder.path(), "0.0.0.0:7860"));
        for host in ["localhost", "LOCALHOST:7860", "127.0.0.1:7860", "[::1]:7860", "[::1]", "kiosk.example:80"] {
            assert!(loopback.answers_to(host) && lan.answers_to(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7860", "127.0.0.1.evil.example", "", ":7860", "[::1"] {
            assert!(!lan.answers_to(host) || host == "[::1", "{host}");
        }
        assert!(lan.answers_to("192.168.1.7:7860") && !loopback.answers_to("192.168.1.7:7860"));
    }

    #[test]
    fn links_show_one_painting_only() {
        let folder = tempfile::tempdir().unwrap();
        let access = access(folder.path(), "192.0.2.7:80");
        let (one, other) = (Id::now(), Id::now());
        let url = access.share_url(one).unwrap();
        let key = url.strip_prefix(&format!("http://192.0.2.7:80/p/{one}?k=")).unwrap();
        assert!(access.is_share_key(one, key));
        assert!(
            !access.is_share_key(other, key) && !access.is_share_key(one, "") && !access.is_share_key(one, &key[1..])
        );
    }

    #[test]
    fn tokens_are_shown_in_three_ways() {
        let headers = |name, value: &str| HeaderMap::from_iter([(name, value.parse().unwrap())]);
        let folder = tempfile::tempdir().unwrap();
        let access = access(folder.path(), "0.0.0.0:1");
        let token = &access.tokens.kiosk;
        let basic = BASE64_STANDARD.encode(format!("anybody:{token}"));
        for shown in [
            headers(header::AUTHORIZATION, &format!("Bearer {token}")),
            headers(header::AUTHORIZATION, &format!("basic {basic}")),
            headers(header::COOKIE, &format!("a=b; pleinair={token}; c=d")),
        ] {
            assert_eq!(access.role(&shown), Some(Role::Kiosk), "{shown:?}");
        }
        for shown in [
            HeaderMap::new(),
            headers(header::AUTHORIZATION, token),
            headers(header::AUTHORIZATION, "Basic !"),
            headers(header::COOKIE, &format!("xpleinair={token}")),
        ] {
            assert_eq!(access.role(&shown), None, "{shown:?}");
        }
    }
}
