//! What clients are told when something cannot be done, and how files are sent.

use crate::Error;
use crate::daemon::Refused;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use utoipa::ToSchema;

/// Why a request is not fulfilled.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The answer's status.
    pub status: StatusCode,
    /// One sentence.
    pub error: String,
    retry_after_seconds: Option<u64>,
}

/// Why a request is not fulfilled, as JSON.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Fault {
    /// One sentence.
    error: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Problem {
        Problem { status, error: error.into(), retry_after_seconds: None }
    }

    pub(super) fn bad(error: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn missing(what: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, format!("there is no such {what}"))
    }

    pub(super) fn forbidden(error: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, error)
    }

    /// A wish that is understood and cannot be fulfilled.
    pub(super) fn wish(error: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error)
    }

    pub(super) fn later(status: StatusCode, error: impl Into<String>, seconds: u64) -> Problem {
        Problem { retry_after_seconds: Some(seconds), ..Problem::new(status, error) }
    }

    /// What a person cannot help; the log has more.
    fn own(fault: &dyn std::fmt::Display) -> Problem {
        tracing::error!(%fault, "a request failed");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the daemon could not do this; its log says why")
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        match error {
            Error::Usage(what) => Problem::wish(what),
            // paths of this machine are nobody else's business
            other => Problem::own(&other),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let error = refused.to_string();
        match refused {
            Refused::Full { retry_after_seconds } => {
                Problem::later(StatusCode::SERVICE_UNAVAILABLE, error, retry_after_seconds)
            }
            Refused::Camera(_) => Problem::later(StatusCode::SERVICE_UNAVAILABLE, error, 5),
            Refused::Missing(what) => Problem::missing(what),
            Refused::Fault(fault) => fault.into(),
        }
    }
}

impl From<tokio::task::JoinError> for Problem {
    fn from(fault: tokio::task::JoinError) -> Problem {
        Problem::own(&fault)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(Fault { error: self.error })).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A JSON body, refused with a [`Problem`].
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, Problem> {
        let read = axum::Json::<T>::from_request(request, state).await;
        read.map(|axum::Json(value)| Json(value)).map_err(|why| Problem::new(why.status(), why.body_text()))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The query, refused with a [`Problem`].
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Problem> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Query(value)).map_err(|why| Problem::bad(why.body_text()))
    }
}

/// A file or picture to be sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// Its media type.
    pub(super) kind: &'static str,
    /// Its strong entity tag, without quotes.
    pub(super) tag: String,
    /// How long it may be kept by who got it.
    pub(super) keep: Keep,
    /// What it is called when it is saved.
    pub(super) name: Option<String>,
    /// To be saved, not shown.
    pub(super) attached: bool,
}

/// How long an answer may be kept by who got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It never changes; it may be deleted, though.
    Day,
    /// To be asked for every time, which is cheap with its tag.
    Ask,
}

impl Keep {
    fn header(self) -> &'static str {
        match self {
            Keep::Day => "private, max-age=86400",
            Keep::Ask => "private, no-cache",
        }
    }
}

impl Sent {
    /// Of bytes whose tag is their checksum.
    pub(super) fn of(kind: &'static str, bytes: &[u8]) -> Sent {
        let tag = crate::bundle::manifest::hexadecimal(Sha256::new_with_prefix(bytes));
        Sent { kind, tag, keep: Keep::Ask, name: None, attached: false }
    }

    /// Under a name.
    pub(super) fn named(self, name: String, attached: bool) -> Sent {
        Sent { name: Some(name), attached, ..self }
    }

    fn is_known(&self, asked: &HeaderMap) -> bool {
        let known = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).unwrap_or_default();
        let strong = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        known.split(',').any(|tag| strong(tag) == self.tag || tag.trim() == "*")
    }

    /// The answer, without a body where the client has it already.
    pub(super) fn answer(self, asked: &HeaderMap, body: impl Into<Body>) -> Response {
        let status = if self.is_known(asked) { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let body = if status == StatusCode::OK { body.into() } else { Body::empty() };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(self.keep.header()));
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", self.tag)) {
            headers.insert(header::ETAG, tag);
        }
        if let Some(name) = &self.name {
            let how = if self.attached { "attachment" } else { "inline" };
            if let Ok(value) = HeaderValue::from_str(&format!("{how}; filename=\"{}\"", plain(name))) {
                headers.insert(header::CONTENT_DISPOSITION, value);
            }
        }
        response
    }
}

/// A file's name as every system takes it.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// A file of the store; one that was deleted this moment is simply missing.
pub(super) fn read(path: Option<PathBuf>, what: &'static str) -> Result<Vec<u8>, Problem> {
    let path = path.ok_or_else(|| Problem::missing(what))?;
    std::fs::read(&path).map_err(|fault| match fault.kind() {
        std::io::ErrorKind::NotFound => Problem::missing(what),
        _ => Problem::own(&Error::io(&path)(fault)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_tag_is_answered_without_a_body() {
        let sent = || Sent::of("image/png", b"abc");
        let asked = |tags: &str| HeaderMap::from_iter([(header::IF_NONE_MATCH, tags.parse().unwrap())]);
        let tag = sent().tag;
        for known in [format!("\"{tag}\""), format!("\"other\", \"{tag}\""), format!("W/\"{tag}\""), "*".into()] {
            assert_eq!(sent().answer(&asked(&known), "abc").status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(sent().answer(&asked("\"other\""), "abc").status(), StatusCode::OK);
        assert_eq!(sent().answer(&HeaderMap::new(), "abc").headers()[header::ETAG], format!("\"{tag}\""));
    }

    #[test]
    fn names_of_files_are_plain() {
        assert_eq!(plain("a b\"\r\n/ü.png"), "a_b_____.png");
    }
}
