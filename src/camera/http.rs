//! `http://`: IP cameras and phones.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::{Agent, Body};

use super::source::Address;
use super::stream::{End, Newest, Stream, pass_jpegs};
use super::{Setup, Source};
use crate::error::Result;

/// # Errors
/// [`crate::Error::Camera`] when the system gives no thread; whether the camera answers shows with the first frame.
pub(super) fn open(source: &Source, address: &Address, setup: &Setup, stop: Arc<AtomicBool>) -> Result<Stream> {
    let (address, patience, interval) = (address.clone(), setup.patience(), setup.interval());
    let read = move |newest: &Newest| read(&address, patience, interval, newest).err().unwrap_or_default();
    Stream::start(source.to_string(), setup.patience(), stop, (), read)
}

/// Reads until nobody wants frames any more.
///
/// # Errors
/// How the stream ended, as the rest of a sentence.
fn read(address: &Address, patience: Duration, interval: Duration, newest: &Newest) -> Result<(), String> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        // cameras are in one's own network
        .proxy(None)
        .timeout_resolve(Some(patience))
        .timeout_connect(Some(patience))
        .timeout_recv_response(Some(patience))
        .timeout_per_read(Some(patience))
        .timeout_per_write(Some(patience))
        .build()
        .into();
    loop {
        let asked = Instant::now();
        let (body, is_still) = get(&agent, address)?;
        match pass_jpegs(body.into_reader(), newest) {
            (_, End::Unwanted) => return Ok(()),
            // A still: the next one is fetched when it is due.
            (1.., End::Closed) if is_still => {}
            (0, End::Closed) => return Err("answers without a picture; is this the address of its video?".into()),
            (_, End::Closed) => return Err("has ended its stream".into()),
            (_, End::NoPictures) => return Err("sends no MJPEG; give the address of its MJPEG video".into()),
            (_, End::Failed(error)) => return Err(failed(ureq::Error::from(error))),
        }
        if !newest.wait(interval.saturating_sub(asked.elapsed())) {
            return Ok(());
        }
    }
}

/// The body, and whether it claims to be one picture.
fn get(agent: &Agent, address: &Address) -> Result<(Body, bool), String> {
    let mut request = agent.get(address.url());
    if let Some(authorization) = address.authorization() {
        request = request.header(AUTHORIZATION, authorization);
    }
    let response = request.call().map_err(failed)?;
    let status = response.status();
    match status.as_u16() {
        401 | 403 if address.authorization().is_some() => {
            return Err(format!(
                "refuses the user and password ({status}); it takes Basic authentication only if it says so"
            ));
        }
        401 | 403 => return Err(format!("wants a user and password ({status}); write http://user:password@...")),
        404 => return Err("has nothing at this address (404); its manual names the one of its MJPEG video".into()),
        _ if !status.is_success() => return Err(format!("answers with {status}")),
        _ => {}
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_still = matches!(kind.as_str(), "image/jpeg" | "image/jpg" | "image/pjpeg");
    if !is_still && ["text/", "image/", "application/json"].iter().any(|other| kind.starts_with(other)) {
        return Err(format!("answers with {kind} rather than MJPEG; give the address of its MJPEG video"));
    }
    Ok((response.into_body(), is_still))
}

/// The complaint without the address.
fn failed(error: ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "does not answer in time; is it on and connected?".into(),
        ureq::Error::HostNotFound => "is not known by its name in this network".into(),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            "does not answer in time; is it on and connected?".into()
        }
        ureq::Error::Io(error) => format!("cannot be reached: {error}"),
        ureq::Error::Protocol(error) => format!("does not speak proper HTTP: {error}"),
        ureq::Error::Tls(_) | ureq::Error::RequireHttpsOnly(_) => "sends us to https://, which is not spoken".into(),
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => "sends us from one address to the next".into(),
        _ => "cannot be reached".into(),
    }
}
