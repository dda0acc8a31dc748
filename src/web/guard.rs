//! What every request passes before it is answered: does it mean this daemon, does it come from its own pages, who asks,
//! and not too often or for too long.

use super::Site;
use super::access::Role;
use super::answer::Problem;
use super::pages;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

/// Addresses that have not asked for long are forgotten every so many requests.
const TIDY_EVERY: u32 = 1000;
/// Nothing comes from elsewhere and nothing is shown elsewhere. Inline styles are refused too.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller(pub(super) Option<Role>);

/// The address a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Counts what each address asks for.
#[derive(Debug)]
pub(super) struct Limiter {
    rates: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    asked: AtomicU32,
}

impl Limiter {
    pub(super) fn new(requests_per_minute: u32) -> Limiter {
        let quota = Quota::per_minute(NonZeroU32::new(requests_per_minute).unwrap_or(NonZeroU32::MIN));
        Limiter {
            rates: DefaultKeyedRateLimiter::keyed(quota),
            clock: DefaultClock::default(),
            asked: AtomicU32::new(0),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), Problem> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % TIDY_EVERY == TIDY_EVERY - 1 {
            self.rates.retain_recent();
        }
        self.rates.check_key(&address).map_err(|not_until| {
            let seconds = not_until.wait_time_from(self.clock.now()).as_secs() + 1;
            let error = format!("too many requests from this address; try again in {seconds} seconds");
            Problem::later(StatusCode::TOO_MANY_REQUESTS, error, seconds)
        })
    }
}

/// The outermost: headers that make browsers careful are on every answer.
pub(super) async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("permissions-policy"), "camera=(self), microphone=(), geolocation=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Host, origin, role and rate.
pub(super) async fn admit(State(site): State<Site>, mut request: Request, next: Next) -> Response {
    match examine(&site, &request) {
        Ok(role) => {
            request.extensions_mut().insert(Caller(role));
            request.extensions_mut().insert(site.clone());
            tracing::debug!(method = %request.method(), path = request.uri().path(), ?role, "asked");
            next.run(request).await
        }
        Err(problem) => {
            tracing::info!(path = request.uri().path(), status = problem.status.as_u16(), problem.error, "refused");
            problem.into_response()
        }
    }
}

fn examine(site: &Site, request: &Request) -> Result<Option<Role>, Problem> {
    let (headers, access) = (request.headers(), site.access());
    let host = host(request).ok_or_else(|| Problem::bad("the request does not say which host it means"))?;
    if !access.answers_to(host) {
        let error = "the daemon does not answer to this host name; add it to security.hosts or use the address";
        return Err(Problem::forbidden(error));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let path = request.uri().path();
    let api = ["/api/", "/sdapi/", "/metrics"].iter().any(|start| path.starts_with(start));
    if (changes || api) && !is_own(headers, host) {
        return Err(Problem::forbidden("the request comes from another site's page"));
    }
    let role = access.role(headers);
    if changes {
        let Peer(address) = request.extensions().get().copied().unwrap_or(Peer(Ipv4Addr::LOCALHOST.into()));
        site.limiter().check(address)?;
    }
    Ok(role)
}

/// The one host that a request names; absolute targets name it before the header does.
fn host(request: &Request) -> Option<&str> {
    let mut given = request.headers().get_all(header::HOST).iter();
    let (first, second) = (given.next().and_then(|host| host.to_str().ok()), given.next());
    match (request.uri().authority(), first) {
        _ if second.is_some() => None,
        (Some(target), Some(header)) if target.as_str() != header => None,
        (Some(target), _) => Some(target.as_str()),
        (None, header) => header,
    }
}

/// Whether a request comes from one of the daemon's own pages or from no page at all.
fn is_own(headers: &HeaderMap, host: &str) -> bool {
    let site = headers.get("sec-fetch-site").map(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    let origin = headers.get(header::ORIGIN).map(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        own.is_some_and(|own| own.eq_ignore_ascii_case(host))
    });
    site.unwrap_or(true) && origin.unwrap_or(true)
}

/// Lets in whoever has at least this role.
pub(super) async fn require(State(least): State<Role>, request: Request, next: Next) -> Response {
    let role = request.extensions().get::<Caller>().and_then(|caller| caller.0);
    match role {
        Some(role) if role >= least => next.run(request).await,
        _ => {
            let site = request.extensions().get::<Site>().expect("nobody comes here who was not admitted");
            refuse(site, role.is_some(), request.uri().path())
        }
    }
}

fn refuse(site: &Site, known: bool, path: &str) -> Response {
    let page = matches!(path, "/" | "/studio" | "/gallery" | "/admin");
    let status = if known { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
    let mut response = match (page, known) {
        (true, _) => pages::stranger(site, status),
        (false, true) => Problem::forbidden("the token does not allow this").into_response(),
        (false, false) => {
            let error = "a token is needed; pair this device with the code that the admin page or the terminal shows";
            Problem::new(status, error).into_response()
        }
    };
    if !known {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Answered only when the paintings are there.
const PATIENT: [&str; 2] = ["/sdapi/v1/txt2img", "/sdapi/v1/img2img"];

/// Ends what takes too long, a body that trickles in for instance.
pub(super) async fn hurry(State(site): State<Site>, request: Request, next: Next) -> Response {
    if PATIENT.contains(&request.uri().path()) {
        return next.run(request).await; // they hurry their bodies themselves
    }
    let patience = site.daemon().config().request_time();
    match tokio::time::timeout(patience, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let error = format!("the request took longer than {} seconds", patience.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, error).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair =
            |(name, value): &(&'static str, &str)| (header::HeaderName::from_static(name), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn other_sites_are_told_from_own_pages() {
        let own = [
            headers(&[]),
            headers(&[("origin", "http://kiosk:1")]),
            headers(&[("origin", "https://KIOSK:1")]),
            headers(&[("sec-fetch-site", "same-origin")]),
            headers(&[("sec-fetch-site", "none")]),
        ];
        let other = [
            headers(&[("origin", "null")]),
            headers(&[("origin", "http://evil")]),
            headers(&[("origin", "http://kiosk:2")]),
            headers(&[("origin", "http://kiosk:1.evil")]),
            headers(&[("origin", "file://kiosk:1")]),
            headers(&[("sec-fetch-site", "cross-site")]),
            headers(&[("sec-fetch-site", "same-site")]),
            headers(&[("sec-fetch-site", "cross-site"), ("origin", "http://kiosk:1")]),
        ];
        assert!(own.iter().all(|headers| is_own(headers, "kiosk:1")));
        for headers in other {
            assert!(!is_own(&headers, "kiosk:1"), "{headers:?}");
        }
    }

    #[test]
    fn each_address_has_its_own_rate() {
        let limiter = Limiter::new(3);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for _ in 0..3 {
            limiter.check(one).unwrap();
        }
        let refused = limiter.check(one).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        limiter.check(other).unwrap();
    }

    #[test]
    fn a_request_names_one_host() {
        let request = |target: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(target);
            for host in hosts {
                request = request.header("host", *host);
            }
            request.body(axum::body::Body::empty()).unwrap()
        };
        assert_eq!(host(&request("/", &["a"])), Some("a"));
        assert_eq!(host(&request("http://a/", &["a"])), Some("a"));
        assert_eq!(host(&request("/", &[])), None);
        assert_eq!(host(&request("/", &["a", "b"])), None);
        assert_eq!(host(&request("http://a/", &["b"])), None);
    }
}
