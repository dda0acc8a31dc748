//! What happens, as it happens: server-sent events.

use super::Site;
use super::access::Role;
use super::guard::Caller;
use crate::daemon::job::Event as News;
use axum::Extension;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A comment so often tells both sides that the other is still there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After so long a browser connects again, in milliseconds.
const RETRY: Duration = Duration::from_secs(2);

/// How the camera is, where the machine has one, then everything that happens from now on, one event after the other; `lagged` to a client that was too slow and missed some.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "events",
    responses((status = 200, content_type = "text/event-stream", body = News))
)]
pub(super) async fn stream(State(site): State<Site>, Extension(Caller(role)): Extension<Caller>) -> Response {
    let mut events = site.daemon().events().listen();
    let closing = site.closing();
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(16);
    tokio::spawn(async move {
        tokio::pin!(closing);
        let hello = Event::default().comment("listening").retry(RETRY);
        if sender.send(Ok(hello)).await.is_err() {
            return;
        }
        // a page that opened while the camera went would never hear of it; told twice does no harm
        if let Some(camera) = site.daemon().viewfinder().announced().filter(|camera| concerns(role, camera)) {
            let data = serde_json::to_string(&camera).expect("events are plain JSON");
            if sender.send(Ok(Event::default().event(camera.name()).data(data))).await.is_err() {
                return;
            }
        }
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
                () = &mut closing => return,
            };
            let event = match event {
                Ok(news) if !concerns(role, &news.event) => continue,
                Ok(news) => told(news.number, &news.event),
                Err(RecvError::Lagged(missed)) => {
                    Event::default().event("lagged").data(format!("{{\"missed\":{missed}}}"))
                }
                Err(RecvError::Closed) => return,
            };
            tokio::select! {
                sent = sender.send(Ok(event)) => if sent.is_err() { return },
                () = &mut closing => return,
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

/// The gallery is told what changes in it, not what visitors are at.
fn concerns(role: Option<Role>, news: &News) -> bool {
    let shown = matches!(news, News::Finished { .. } | News::Deleted { .. } | News::Styles {});
    shown || role >= Some(Role::Kiosk)
}

fn told(number: u64, news: &News) -> Event {
    let data = serde_json::to_string(news).expect("events are plain JSON");
    Event::default().event(news.name()).id(number.to_string()).data(data)
}
