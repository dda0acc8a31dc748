//! The screen without a browser: what a visitor with a button goes through, from the slideshow to the painting.
//!
//! idle -> live view -> countdown -> painting -> result -> idle. The flow itself knows neither threads nor clocks: it is told
//! of presses, events and the time, asks a [`Studio`] for pictures, and says what is to be seen.

use super::job::{Event, Id, Kind, Origin, PaintingWish, State};
use super::store::{Page, PaintingFile};
use super::{Daemon, Refused};
use crate::camera::Frame;
use crate::display::button::{Buttons, Press, Source, Timing};
use crate::display::{Scene, Screen};
use crate::painter::Request;
use crate::strings::Strings;
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::TryRecvError;

/// Pace of the loop, and so of the live view: at most 25 pictures a second.
const PACE: Duration = Duration::from_millis(40);
/// A message stays so long.
const MESSAGE: Duration = Duration::from_secs(8);
/// A job is asked after this often, should its events have been missed.
const ASK: Duration = Duration::from_secs(5);
/// The slideshow goes through so many of the newest paintings.
const SLIDES: usize = 50;
/// After a fault of the screen.
const BREATH: Duration = Duration::from_secs(2);

/// How an ordered painting stands.
#[derive(Debug, Clone, PartialEq)]
enum Standing {
    /// So many come first.
    Waiting(usize),
    /// Part of 1 that is done.
    Painting(f32),
    Finished,
    /// It failed or was taken back.
    Over,
}

/// A picture of the slideshow and the style it was painted in.
#[derive(Debug, Clone)]
struct Slide {
    picture: Arc<Frame>,
    style: Option<String>,
}

/// What the flow asks of the daemon.
trait Studio {
    /// What the camera sees, as it stands.
    fn camera(&self) -> Option<Arc<Frame>>;
    /// The styles a visitor may choose, by name.
    fn styles(&self) -> Result<Vec<String>>;
    /// Orders a painting of `frame`.
    fn order(&self, style: Option<&str>, frame: Frame) -> Result<Id, Refused>;
    fn standing(&self, id: Id) -> Result<Standing>;
    /// The last preview of an unfinished painting.
    fn preview(&self, id: Id) -> Option<Arc<Frame>>;
    fn painting(&self, id: Id) -> Result<Arc<Frame>>;
    /// The address a visitor takes the painting home with.
    fn address(&self, id: Id) -> Option<String>;
    /// A picture of the gallery; counts on with `number`.
    fn slide(&self, number: usize) -> Result<Option<Slide>>;
}

/// The times of the flow.
#[derive(Debug, Clone, Copy)]
struct Times {
    countdown: Duration,
    /// Without a press, back to the start.
    timeout: Duration,
    slide: Duration,
}

/// What the configuration chooses.
#[derive(Debug, Clone, Copy)]
struct Habits {
    /// A short press goes to the next style, a long one takes the picture.
    hold_to_take: bool,
    /// The live view is mirrored.
    mirror: bool,
}

/// Where in the flow it is. Times are since the start.
#[derive(Debug, Clone)]
enum Stage {
    Idle { slide: Option<Slide>, until: Duration },
    Live { until: Duration },
    Countdown { until: Duration },
    Painting { id: Id, picture: Arc<Frame>, standing: Standing, ask: Duration },
    Result { picture: Arc<Frame>, address: Option<String>, until: Duration },
    Message { about: Message, until: Duration },
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Camera,
    Full,
    Error,
}

impl Message {
    fn keys(self) -> (&'static str, &'static str) {
        match self {
            Message::Camera => ("display.camera.title", "display.camera.text"),
            Message::Full => ("display.full.title", "display.full.text"),
            Message::Error => ("display.error.title", "display.error.text"),
        }
    }
}

/// The flow.
struct Booth<S> {
    studio: S,
    times: Times,
    habits: Habits,
    styles: Vec<String>,
    chosen: usize,
    slides: usize,
    stage: Stage,
    now: Duration,
}

impl<S: Studio> Booth<S> {
    fn new(studio: S, times: Times, habits: Habits) -> Self {
        let stage = Stage::Idle { slide: None, until: Duration::ZERO };
        Booth { studio, times, habits, styles: vec![], chosen: 0, slides: 0, stage, now: Duration::ZERO }
    }

    fn message(&mut self, about: Message) {
        self.stage = Stage::Message { about, until: self.now + MESSAGE };
    }

    fn idle(&mut self) {
        self.stage = Stage::Idle { slide: None, until: self.now };
    }

    /// What went wrong is in the log; a visitor gets a sentence.
    fn fault(&mut self, fault: &dyn std::fmt::Display) {
        tracing::error!(%fault, "the screen's flow begins anew");
        self.message(Message::Error);
    }

    /// A button was pressed.
    fn pressed(&mut self, press: Press) {
        match self.stage {
            Stage::Idle { .. } | Stage::Result { .. } => self.begin(),
            Stage::Live { .. } if press == Press::Short && self.choosing() => {
                self.chosen = (self.chosen + 1) % self.styles.len();
                self.stage = Stage::Live { until: self.now + self.times.timeout };
            }
            Stage::Live { .. } => self.stage = Stage::Countdown { until: self.now + self.times.countdown },
            Stage::Message { .. } => self.idle(),
            Stage::Countdown { .. } | Stage::Painting { .. } => {}
        }
    }

    /// Whether a short press goes to the next style.
    fn choosing(&self) -> bool {
        self.habits.hold_to_take && self.styles.len() > 1
    }

    /// To the live view. Where no press chooses a style, every visitor gets the next one.
    fn begin(&mut self) {
        let before = self.styles.get(self.chosen).cloned();
        match self.studio.styles() {
            Ok(styles) => self.styles = styles,
            Err(fault) => return self.fault(&fault),
        }
        let place = before.and_then(|name| self.styles.iter().position(|style| *style == name));
        self.chosen = match place {
            Some(place) if self.habits.hold_to_take => place,
            Some(place) => (place + 1) % self.styles.len(),
            None => 0,
        };
        match self.studio.camera() {
            Some(_) => self.stage = Stage::Live { until: self.now + self.times.timeout },
            None => self.message(Message::Camera),
        }
    }

    /// Something happened in the daemon.
    fn happened(&mut self, event: &Event) {
        let Stage::Painting { id: own, picture, standing, ask } = &mut self.stage else { return };
        match event {
            Event::Step { id, i, n, .. } if id == own => *standing = Standing::Painting(*i as f32 / (*n).max(1) as f32),
            Event::Preview { id, .. } if id == own => {
                if let Some(preview) = self.studio.preview(*id) {
                    *picture = preview;
                }
            }
            // one's own end, or that of one before it
            Event::Finished { kind, .. } | Event::Failed { kind, .. } | Event::Cancelled { kind, .. }
                if *kind == Kind::Painting =>
            {
                *ask = self.now;
            }
            _ => {}
        }
    }

    /// It is `now`.
    fn tick(&mut self, now: Duration) {
        self.now = now;
        match &self.stage {
            Stage::Idle { until, .. } if now >= *until => self.next_slide(),
            Stage::Live { until } if now >= *until => self.idle(),
            Stage::Live { .. } | Stage::Countdown { .. } if self.studio.camera().is_none() => {
                self.message(Message::Camera);
            }
            Stage::Countdown { until } if now >= *until => self.take(),
            Stage::Painting { ask, .. } if now >= *ask => self.ask(),
            Stage::Result { until, .. } | Stage::Message { until, .. } if now >= *until => self.idle(),
            _ => {}
        }
    }

    fn next_slide(&mut self) {
        let slide = self.studio.slide(self.slides).unwrap_or_else(|fault| {
            tracing::warn!(%fault, "a picture of the slideshow is left out");
            None
        });
        self.slides = self.slides.wrapping_add(1);
        self.stage = Stage::Idle { slide, until: self.now + self.times.slide };
    }

    /// Takes the picture and orders the painting.
    fn take(&mut self) {
        let Some(frame) = self.studio.camera() else { return self.message(Message::Camera) };
        let style = self.styles.get(self.chosen).map(String::as_str);
        match self.studio.order(style, (*frame).clone()) {
            Ok(id) => {
                let standing = Standing::Waiting(0);
                self.stage = Stage::Painting { id, picture: frame, standing, ask: self.now };
            }
            Err(Refused::Full { .. }) => self.message(Message::Full),
            Err(Refused::Camera(_)) => self.message(Message::Camera),
            Err(fault) => self.fault(&fault),
        }
    }

    /// Asks after the ordered painting.
    fn ask(&mut self) {
        let Stage::Painting { id, standing, ask, .. } = &mut self.stage else { return };
        let id = *id;
        *ask = self.now + ASK;
        match self.studio.standing(id) {
            Ok(Standing::Finished) => match self.studio.painting(id) {
                Ok(picture) => {
                    let (address, until) = (self.studio.address(id), self.now + self.times.timeout);
                    self.stage = Stage::Result { picture, address, until };
                }
                Err(fault) => self.fault(&fault),
            },
            Ok(Standing::Over) => self.message(Message::Error),
            Ok(found) => *standing = found,
            Err(fault) => self.fault(&fault),
        }
    }

    /// Whether what is to be seen changes by itself.
    fn moves(&self) -> bool {
        matches!(self.stage, Stage::Live { .. } | Stage::Countdown { .. })
    }

    fn style(&self) -> &str {
        self.styles.get(self.chosen).map_or("", String::as_str)
    }

    /// Shows what is to be seen to `draw`.
    fn show<T>(&self, strings: &Strings, draw: impl FnOnce(&Scene<'_>) -> T) -> T {
        let seconds = |until: Duration| until.saturating_sub(self.now).as_secs_f64().ceil() as u32;
        let seen = || {
            let frame = self.studio.camera()?;
            Some(if self.habits.mirror { Arc::new(frame.flip_horizontal()) } else { frame })
        };
        match &self.stage {
            Stage::Idle { slide: Some(Slide { picture, style }), .. } => {
                draw(&Scene::Idle { picture: Some((&**picture).into()), style: style.as_deref() })
            }
            Stage::Idle { slide: None, .. } => draw(&Scene::Idle { picture: None, style: None }),
            Stage::Live { .. } | Stage::Countdown { .. } => {
                let Some(frame) = seen() else { return self.show_message(Message::Camera, strings, draw) };
                let frame = (&*frame).into();
                match self.stage {
                    Stage::Countdown { until } => draw(&Scene::Countdown { frame, seconds_left: seconds(until) }),
                    _ if self.habits.hold_to_take => {
                        let (styles, chosen, hold_to_take) = (&self.styles[..], self.chosen, self.choosing());
                        draw(&Scene::Live { frame, styles, chosen, hold_to_take })
                    }
                    _ => {
                        let styles = self.styles.get(self.chosen..=self.chosen).unwrap_or_default();
                        draw(&Scene::Live { frame, styles, chosen: 0, hold_to_take: false })
                    }
                }
            }
            Stage::Painting { picture, standing, .. } => {
                let (progress, before) = match standing {
                    Standing::Waiting(before) => (0.0, Some(*before)),
                    Standing::Painting(progress) => (*progress, None),
                    Standing::Finished | Standing::Over => (1.0, None),
                };
                let picture = Some((&**picture).into());
                draw(&Scene::Painting { picture, progress, style: self.style(), before })
            }
            Stage::Result { picture, address, until } => {
                let (qr, seconds_left) = (address.as_deref(), seconds(*until));
                draw(&Scene::Result { picture: (&**picture).into(), qr, seconds_left })
            }
            Stage::Message { about, .. } => self.show_message(*about, strings, draw),
        }
    }

    fn show_message<T>(&self, about: Message, strings: &Strings, draw: impl FnOnce(&Scene<'_>) -> T) -> T {
        let (title, text) = about.keys();
        draw(&Scene::Message { title: strings.get(title), text: strings.get(text) })
    }
}

/// The daemon as the flow sees it.
struct Atelier<A> {
    daemon: Daemon,
    address: A,
}

impl<A: Fn(Id) -> Option<String>> Studio for Atelier<A> {
    fn camera(&self) -> Option<Arc<Frame>> {
        self.daemon.viewfinder().latest().ok().map(|shot| shot.frame)
    }

    fn styles(&self) -> Result<Vec<String>> {
        let styles = self.daemon.styles()?.into_iter();
        Ok(styles.filter(|style| style.shown && style.kept).map(|style| style.name).collect())
    }

    fn order(&self, style: Option<&str>, frame: Frame) -> Result<Id, Refused> {
        let request = Request { styles: style.map(str::to_owned).into_iter().collect(), ..Request::default() };
        let wish = PaintingWish { request, origin: Origin::Display, kept: true, ..PaintingWish::default() };
        self.daemon.order_painting(wish, Some(frame)).map(|ticket| ticket.id)
    }

    fn standing(&self, id: Id) -> Result<Standing> {
        Ok(match self.daemon.job(id)? {
            Some(job) => match job.state {
                State::Queued => Standing::Waiting(job.position.unwrap_or(0)),
                State::Running => Standing::Painting(job.step as f32 / job.steps.max(1) as f32),
                State::Finished => Standing::Finished,
                State::Failed | State::Cancelled => Standing::Over,
            },
            None => Standing::Over,
        })
    }

    fn preview(&self, id: Id) -> Option<Arc<Frame>> {
        let preview = self.daemon.preview(id)?;
        let picture = image::load_from_memory(&preview.jpeg).ok()?.to_rgb8();
        let (width, height) = picture.dimensions();
        Frame::new(width as usize, height as usize, picture.into_raw()).ok().map(Arc::new)
    }

    fn painting(&self, id: Id) -> Result<Arc<Frame>> {
        let file = self.daemon.painting_file(id, PaintingFile::Picture)?;
        let file = file.ok_or_else(|| Error::Usage(format!("the painting {id} was deleted at once")))?;
        Frame::open(file).map(Arc::new)
    }

    fn address(&self, id: Id) -> Option<String> {
        (self.address)(id)
    }

    fn slide(&self, number: usize) -> Result<Option<Slide>> {
        let paintings = self.daemon.paintings(&Page { limit: SLIDES, ..Page::default() })?;
        let Some(painting) = paintings.get(number % paintings.len().max(1)) else { return Ok(None) };
        let Some(file) = self.daemon.painting_file(painting.id, PaintingFile::Picture)? else { return Ok(None) };
        let style = (!painting.styles.is_empty()).then(|| painting.styles.join(", "));
        Ok(Some(Slide { picture: Arc::new(Frame::open(file)?), style }))
    }
}

/// Starts the screen and its buttons where the configuration has a screen; `address` makes what the QR code of a painting
/// opens, or nothing when no visitor's device could reach it.
///
/// # Errors
/// [`Error::Usage`] for a setup that cannot be, [`Error::Io`] and [`Error::File`] for a screen that cannot be opened.
pub fn start(
    daemon: Daemon,
    address: impl Fn(Id) -> Option<String> + Send + 'static,
) -> Result<Option<JoinHandle<()>>> {
    let setup = daemon.config().display.clone();
    let Some(screen) = Screen::open(&setup, Strings::of(&daemon.config().language)?)? else { return Ok(None) };
    let sources = setup.buttons.iter().map(|button| button.parse()).collect::<Result<Vec<Source>>>()?;
    let kiosk = &daemon.config().kiosk;
    let times = Times {
        countdown: Duration::from_secs(kiosk.countdown_seconds.into()),
        timeout: Duration::from_secs(kiosk.timeout_seconds.into()),
        slide: Duration::from_secs(kiosk.slide_seconds.into()),
    };
    // a camera that mirrors is not mirrored back
    let mirror = setup.mirror && !daemon.config().camera.frames.mirror;
    let habits = Habits { hold_to_take: setup.hold_to_take, mirror };
    let booth = Booth::new(Atelier { daemon: daemon.clone(), address }, times, habits);
    let timing = setup.timing();
    let thread = std::thread::Builder::new().name("display".into());
    let run = move || {
        if let Err(fault) = run(&daemon, booth, screen, &sources, timing) {
            tracing::error!(%fault, "the screen ends");
        }
    };
    thread.spawn(run).map(Some).map_err(Error::io(Path::new("the screen's thread")))
}

fn run<S: Studio>(
    daemon: &Daemon,
    mut booth: Booth<S>,
    mut screen: Screen,
    sources: &[Source],
    timing: Timing,
) -> Result<()> {
    let mut events = daemon.events().listen();
    let (to, presses) = sync_channel(4);
    let _buttons = Buttons::watch(sources, timing, &to)?; // `to` stays, so that the channel lasts without buttons
    let (began, mut drawn, mut breath) = (Instant::now(), None, Duration::ZERO);
    while !daemon.stopping() {
        let mut news = match presses.recv_timeout(PACE) {
            Ok(pressed) => {
                booth.pressed(pressed.press);
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        };
        loop {
            match events.try_recv() {
                Ok(numbered) => booth.happened(&numbered.event),
                Err(TryRecvError::Lagged(_)) => {} // the job is asked after anyway
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
            news = true;
        }
        let now = began.elapsed();
        booth.tick(now);
        news |= booth.moves() || drawn != Some(now.as_secs());
        if !news || now < breath {
            continue;
        }
        let strings = screen.strings().clone();
        if let Err(fault) = booth.show(&strings, |scene| screen.draw(scene)) {
            tracing::error!(%fault, "the screen cannot be drawn on; trying again");
            breath = now + BREATH;
        }
        drawn = Some(now.as_secs());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
