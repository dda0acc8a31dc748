//! Which camera is looked through: the configured one, another that the configuration offers, or one that is plugged in.
//!
//! Clients name a camera only by what they were offered: neither a path nor a command ever comes from them.

use super::job::Event;
use super::store::Store;
use super::{Daemon, Refused};
use crate::Result;
use crate::camera::{self, Source};
use crate::config::Camera;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use utoipa::ToSchema;

/// The setting that keeps the choice.
const SETTING: &str = "camera";

/// A camera that may be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CameraChoice {
    /// By which it is chosen.
    pub id: String,
    /// What it calls itself, where it is plugged in here.
    pub name: Option<String>,
    /// Whether it is looked through now.
    pub chosen: bool,
}

/// What is kept of a choice. A configuration with another camera has the last word.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    id: String,
    configured: String,
}

/// The camera that is looked through.
#[derive(Debug)]
pub(super) struct Looking {
    id: String,
    source: Source,
    /// Ends every wait for this camera, when another is chosen or the daemon ends.
    pub(super) stop: Arc<AtomicBool>,
}

impl Looking {
    /// As it was chosen last, if that camera is still there.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn begin(config: &Camera, store: &Store) -> Result<Looking> {
        let offers = offered(config);
        let kept = store.setting(SETTING)?.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
        let kept = kept.filter(|kept| kept.configured == config.source.to_string());
        let chosen = kept.and_then(|kept| offers.iter().find(|offer| offer.id == kept.id));
        // a camera that was unplugged is not waited for: the configured one is always there to choose
        let Offer { id, source, .. } = chosen.unwrap_or(&offers[0]).clone();
        Ok(Looking { id, source, stop: Arc::default() })
    }
}

#[derive(Debug, Clone)]
struct Offer {
    id: String,
    source: Source,
    name: Option<String>,
}

/// The configured camera first, then the configured others, then what is plugged in, and the pages' own.
fn offered(config: &Camera) -> Vec<Offer> {
    let configured = std::iter::once(&config.source).chain(&config.others).map(|source| (source.clone(), None));
    let plugged = camera::devices().into_iter().map(|device| (device.source, Some(device.name)));
    let mut offers: Vec<Offer> = vec![];
    for (source, name) in configured.chain(plugged).chain([(Source::Browser, None)]) {
        if let Some(known) = offers.iter_mut().find(|offer| offer.source == source) {
            known.name = known.name.take().or(name);
            continue;
        }
        // shown without what is secret, so that two may look the same
        let shown = source.to_string();
        let same = offers.iter().filter(|offer| offer.source.to_string() == shown).count();
        let id = if same == 0 { shown } else { format!("{shown} ({})", same + 1) };
        offers.push(Offer { id, source, name });
    }
    offers
}

impl Daemon {
    /// The cameras that may be chosen.
    pub fn cameras(&self) -> Vec<CameraChoice> {
        let chosen = self.looking().id.clone();
        let shown = |offer: Offer| CameraChoice { chosen: offer.id == chosen, id: offer.id, name: offer.name };
        offered(&self.config().camera).into_iter().map(shown).collect()
    }

    /// Looks through another camera from now on, after a start as well.
    ///
    /// # Errors
    /// [`Refused::Missing`] for one that is not offered; [`Refused::Fault`] when the disk refuses.
    pub fn choose_camera(&self, id: &str) -> Result<(), Refused> {
        let config = &self.config().camera;
        let Offer { id, source, .. } =
            offered(config).into_iter().find(|offer| offer.id == id).ok_or(Refused::Missing("camera"))?;
        let kept = Kept { id: id.clone(), configured: config.source.to_string() };
        self.store().set_setting(SETTING, &serde_json::to_string(&kept).expect("two texts"))?;
        let mut looking = self.looking();
        if looking.id == id {
            return Ok(());
        }
        looking.stop.store(true, Ordering::SeqCst);
        // all under the lock: the new camera begins, and is told of, only after the old one is forgotten and pages know of
        // the change; and an end that is asked for meanwhile reaches the new one
        self.viewfinder().forget();
        self.events().tell(Event::Settings {});
        *looking = Looking { id, source, stop: Arc::new(AtomicBool::new(self.stopping())) };
        Ok(())
    }

    /// Whether frames come from a camera of the machine's own.
    pub fn has_camera(&self) -> bool {
        self.looking().source != Source::Browser
    }

    /// The chosen camera's name, without what is secret, and its kind: `browser`, `v4l2`, `avfoundation`, `command`,
    /// `http` or `folder`.
    pub fn camera(&self) -> (String, String) {
        let shown = self.looking().source.to_string();
        let kind = shown.split(':').next().unwrap_or_default().to_owned();
        (shown, kind)
    }

    /// What is to be looked through, until its flag says otherwise.
    pub(super) fn camera_now(&self) -> (Source, Arc<AtomicBool>) {
        let looking = self.looking();
        (looking.source.clone(), looking.stop.clone())
    }

    pub(super) fn looking(&self) -> MutexGuard<'_, Looking> {
        self.0.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_camera_is_offered_once_and_told_apart() {
        let source = |text: &str| text.parse::<Source>().unwrap();
        let others = ["folder:a", "command:x 1", "command:x 2", "v4l2:/dev/a", "folder:a"].map(source).to_vec();
        let config = Camera { source: source("v4l2:/dev/a"), others, ..Camera::default() };
        let ids: Vec<_> = offered(&config).into_iter().filter(|offer| offer.name.is_none()).map(|o| o.id).collect();
        assert_eq!(ids, ["v4l2:/dev/a", "folder:a", "command:x ...", "command:x ... (2)", "browser"]);
        let alone = offered(&Camera::default());
        assert_eq!((alone[0].id.as_str(), alone.iter().filter(|o| o.id == "browser").count()), ("browser", 1));
    }
}
