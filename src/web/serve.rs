//! From sockets to the router: limits on connections, and an end that nobody holds up.

use super::Site;
use super::guard::Peer;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 256;
/// A client has so long to say what it wants, and an idle connection so long until it is closed.
const HEADERS_WITHIN: Duration = Duration::from_secs(20);
/// The most headers of a request.
const HEADERS: usize = 64;
/// The longest head of a request, in bytes.
const HEAD_BYTES: usize = 32 << 10;
/// Answers under way when the end is asked for have so long.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// After the system refused a connection, for want of file handles for instance.
const BREATH: Duration = Duration::from_millis(200);

/// Answers requests until `stop`; then what is under way has a moment to end, and open streams end at once.
pub async fn serve(site: Site, listener: TcpListener, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let router = site.router();
    tokio::pin!(stop);
    loop {
        let place = places.clone().acquire_owned();
        let accepted = async { (place.await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let (site, router) = (site.clone(), router.clone());
                tokio::spawn(async move {
                    answer(&site, router, stream, address).await;
                    drop(place);
                });
            }
            Err(fault) => {
                tracing::warn!(%fault, "a connection was refused");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    site.close();
    let all = u32::try_from(CONNECTIONS).expect("a few hundred");
    if tokio::time::timeout(LAST_WORDS, places.acquire_many(all)).await.is_err() {
        tracing::info!("some clients did not let go in time");
    }
}

async fn answer(site: &Site, router: axum::Router, stream: TcpStream, address: SocketAddr) {
    let _ = stream.set_nodelay(true); // events are small and are wanted now
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(address.ip()));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_headers(HEADERS).max_buf_size(HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let closing = site.closing();
    tokio::pin!(closing);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = &mut closing => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(fault) = ended {
        tracing::debug!(%fault, "a connection broke");
    }
}
