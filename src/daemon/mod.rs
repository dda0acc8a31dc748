//! The daemon: takes orders from pages, clients and buttons, and has them painted one after the other.
//!
//! Threads by name: `painter`, the only one that touches the networks; `camera`; and whoever asks. [`Daemon`] is the handle
//! that all share. What must outlive a power cut is in the [`store`].

pub mod booth;
mod cameras;
mod events;
pub mod job;
mod lesson;
mod metrics;
mod painting;
mod status;
mod styles;
pub mod store;
mod viewfinder;
mod worker;

pub use cameras::CameraChoice;
pub use events::{Events, Numbered};
pub use status::{Health, Status};
pub use viewfinder::{Shot, Viewfinder};

use crate::camera::Frame;
use crate::canvas::Canvas;
use crate::config::Config;
use crate::painter::{Habits, Order, Painter, Pictures};
use crate::sampler::Plan;
use crate::side::captioner;
use crate::style::Style;
use crate::{Error, Result};
use job::{Event, Id, Job, Kind, Origin, Painting, PaintingWish, State, Ticket};
use metrics::Metrics;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::{Page, PaintingFile, Store};

/// What a mix for one painting alone is called.
const MIX: &str = "mix";

/// Why an order is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As many wait as may.
    #[error("there is a queue already; try again in {retry_after_seconds} seconds")]
    Full {
        /// When there will be room, roughly.
        retry_after_seconds: u64,
    },
    /// The camera gives no picture.
    #[error("the camera gives no picture: {0}")]
    Camera(String),
    /// There is nothing of this id.
    #[error("there is no such {0}")]
    Missing(&'static str),
    /// The order makes no sense, or the disk refuses.
    #[error(transparent)]
    Fault(#[from] Error),
}

/// The handle of the running daemon; cheap to clone.
#[derive(Debug, Clone)]
pub struct Daemon(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    store: Store,
    painter: Painter,
    habits: Habits,
    shipped: Vec<(String, Style)>,
    events: Events,
    viewfinder: Viewfinder,
    looking: Mutex<cameras::Looking>,
    metrics: Metrics,
    /// Held by whoever uses the captioner.
    captioning: Mutex<()>,
    started: Instant,
    stop: AtomicBool,
    /// What the painter is at.
    desk: Mutex<Desk>,
    /// Wakes the painter when there is work, or an end.
    work: Condvar,
}

/// What the painter is at, in memory.
#[derive(Debug, Default)]
struct Desk {
    /// The jobs begun, the innermost last: a painting may interrupt a lesson.
    running: Vec<Running>,
    /// Jobs that a person took back while they ran.
    cancelled: Vec<Id>,
    previews: HashMap<Id, Preview>,
    /// Mean seconds of a painting, from the last few.
    painting_seconds: Option<f64>,
    /// When the painter last gave a sign of life.
    alive: Option<Instant>,
    /// Styles of which no picture can be made.
    unpictured: Vec<String>,
    /// There is news for the painter, should it be about to wait.
    wake: bool,
}

/// A job that was begun.
#[derive(Debug, Clone)]
struct Running {
    id: Id,
    began: Instant,
    /// Steps before the first of this run, and when that began.
    step_began: Option<(usize, Instant)>,
    step: usize,
    steps: usize,
    stage: Option<usize>,
    loss: Option<f32>,
}

/// A look at an unfinished painting or style, JPEG.
#[derive(Debug, Clone)]
pub struct Preview {
    /// Counts them.
    pub version: u64,
    /// The JPEG's bytes.
    pub jpeg: Arc<Vec<u8>>,
}

/// Threads to be waited for.
#[derive(Debug)]
pub struct Threads(Vec<std::thread::JoinHandle<()>>);

impl Threads {
    /// Waits for one more.
    pub fn add(&mut self, thread: std::thread::JoinHandle<()>) {
        self.0.push(thread);
    }

    /// Waits until all have ended, at most `patience`; whether they have.
    pub fn wait(self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.0.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Daemon {
    /// Opens the store, puts back what a crash interrupted, and starts painter and camera.
    ///
    /// # Errors
    /// As [`Store::open`]; or if a shipped style is damaged.
    pub fn start(config: Config, painter: Painter, habits: Habits) -> Result<(Daemon, Threads)> {
        let store = Store::open(&config.data)?;
        store.recover(config.queue.attempts)?;
        let shipped = styles::shipped(painter.bundle().folder())?;
        store.set_shipped(&shipped)?;
        let looking = cameras::Looking::begin(&config.camera, &store)?.into();
        let daemon = Daemon(Arc::new(Inner {
            config,
            store,
            painter,
            habits,
            shipped,
            events: Events::new(),
            viewfinder: Viewfinder::default(),
            looking,
            metrics: Metrics::new(),
            captioning: Mutex::default(),
            started: Instant::now(),
            stop: AtomicBool::new(false),
            desk: Mutex::default(),
            work: Condvar::new(),
        }));
        let threads = vec![worker::start(daemon.clone())?, viewfinder::start(daemon.clone())?];
        Ok((daemon, Threads(threads)))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// What the model can do, without its networks.
    pub fn bundle(&self) -> &crate::bundle::Bundle {
        self.0.painter.bundle()
    }

    /// Where events are told.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// What the camera sees.
    pub fn viewfinder(&self) -> &Viewfinder {
        &self.0.viewfinder
    }

    /// Asks everything to end: the current step, then what is running goes back to the queue.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.looking().stop.store(true, Ordering::SeqCst);
        self.0.viewfinder.close();
        self.wake();
    }

    /// Whether an end was asked for.
    pub fn stopping(&self) -> bool {
        self.0.stop.load(Ordering::SeqCst)
    }

    /// Orders a painting of a photograph, or of the prompt alone.
    ///
    /// # Errors
    /// [`Refused::Full`]; [`Refused::Fault`] for a wish that cannot be fulfilled, which is found out before it is queued.
    pub fn order_painting(&self, mut wish: PaintingWish, pictures: impl Into<Pictures>) -> Result<Ticket, Refused> {
        let (pictures, defaults) = (pictures.into(), &self.0.config.painting.wish);
        if pictures.content.is_some() {
            painting::fill_in(&mut wish.request, defaults);
        }
        if wish.request.seed.is_none() {
            wish.request.seed = Some(random_seed());
        }
        let Order { content, controls, .. } = self.check_order(&wish, pictures)?;
        if wish.save_control && controls.is_empty() {
            let what =
                "there is no control picture to save: no ControlNet speaks; give a photograph or a control_image";
            return Err(Error::Usage(what.into()).into());
        }
        let id = Id::now();
        let given =
            controls.into_iter().filter_map(|choice| Some((painting::control_name(choice.control), choice.image?)));
        for (name, frame) in content.map(|frame| (painting::CONTENT.to_owned(), frame)).into_iter().chain(given) {
            let folder = self.store().files().job(id);
            std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            Canvas::from(frame).save(folder.join(name), &Default::default())?;
        }
        self.enqueue(id, Kind::Painting, wish.origin, &wish, self.0.config.queue.paintings)
    }

    fn enqueue(
        &self,
        id: Id,
        kind: Kind,
        origin: Origin,
        wish: &impl serde::Serialize,
        bound: usize,
    ) -> Result<Ticket, Refused> {
        let taken = self.store().enqueue(id, kind, origin, wish, bound);
        if !matches!(taken, Ok(Some(_))) {
            self.store().files().forget_job(id);
        }
        let ticket = taken?.ok_or_else(|| Refused::Full { retry_after_seconds: self.retry_after(kind) })?;
        self.0.events.tell(Event::Queued { id, kind, position: ticket.position });
        self.wake();
        Ok(ticket)
    }

    /// Takes a job back, whether it waits or runs; whether there was one.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn cancel(&self, id: Id) -> Result<bool> {
        // Held, so that the painter either sees it cancelled in the queue or hears of it here.
        let mut desk = self.desk();
        let Some((kind, running)) = self.store().cancel(id)? else { return Ok(false) };
        if running {
            desk.cancelled.push(id);
        }
        drop(desk);
        if !running {
            self.store().files().forget_job(id); // otherwise the painter does, when it lets go
        }
        self.0.metrics.cancelled(kind);
        self.0.events.tell(Event::Cancelled { id, kind });
        Ok(true)
    }

    /// A job.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn job(&self, id: Id) -> Result<Option<Job>> {
        Ok(self.store().job(id)?.map(|job| self.with_progress(job)))
    }

    /// Jobs that wait or run, and the last few that are over.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn jobs(&self, over: usize) -> Result<Vec<Job>> {
        Ok(self.store().jobs(over)?.into_iter().map(|job| self.with_progress(job)).collect())
    }

    /// The last look at an unfinished painting or style.
    pub fn preview(&self, id: Id) -> Option<Preview> {
        self.desk().previews.get(&id).cloned()
    }

    /// A finished painting.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn painting(&self, id: Id) -> Result<Option<Painting>> {
        self.store().painting(id)
    }

    /// Paintings of the gallery, the newest first.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn paintings(&self, page: &Page) -> Result<Vec<Painting>> {
        self.store().paintings(page)
    }

    /// A file of a finished painting, which is whole.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn painting_file(&self, id: Id, file: PaintingFile) -> Result<Option<PathBuf>> {
        let Some(painting) = self.store().painting(id)? else { return Ok(None) };
        let exists = match file {
            PaintingFile::Picture | PaintingFile::Thumbnail => true,
            PaintingFile::Content => painting.has_content,
            PaintingFile::Control(control) => painting.controls.contains(&control),
        };
        Ok(exists.then(|| self.store().files().painting(id, file)))
    }

    /// Deletes a painting; whether there was one.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn delete_painting(&self, id: Id) -> Result<bool> {
        let gone = self.store().delete_painting(id)?;
        if gone {
            self.0.events.tell(Event::Deleted { id: id.to_string() });
        }
        Ok(gone)
    }

    /// Sends a painting to the printer.
    ///
    /// # Errors
    /// [`Refused::Missing`] without such a painting or a configured printer; [`Refused::Fault`] when it was printed often
    /// enough or the program cannot be started.
    pub fn print(&self, id: Id) -> Result<(), Refused> {
        let kiosk = &self.0.config.kiosk;
        let Some((program, arguments)) = kiosk.print.split_first() else { return Err(Refused::Missing("printer")) };
        let file = self.painting_file(id, PaintingFile::Picture)?.ok_or(Refused::Missing("painting"))?;
        if !self.store().count_print(id, kiosk.most_prints)? {
            let what = format!("this painting was printed {} times; that is enough", kiosk.most_prints);
            return Err(Error::Usage(what).into());
        }
        let file = file.display().to_string();
        let arguments = arguments.iter().map(|argument| argument.replace("{}", &file));
        let mut printing = std::process::Command::new(program);
        printing.args(arguments).stdin(std::process::Stdio::null());
        let mut child = printing.spawn().map_err(Error::io(Path::new(program)))?;
        let waiting = move || match child.wait() {
            Ok(status) if status.success() => {}
            other => tracing::warn!(?other, "the printing program failed"),
        };
        std::thread::Builder::new().name("print".into()).spawn(waiting).map_err(Error::io(Path::new("print")))?;
        Ok(())
    }

    /// The shutter was pressed, here or from afar: pages that listen begin their countdown.
    pub fn press_shutter(&self) {
        self.0.events.tell(Event::Shutter {});
    }

    /// The camera's picture of now.
    ///
    /// # Errors
    /// [`Refused::Camera`] when there is none.
    pub fn take(&self) -> Result<Frame, Refused> {
        self.0.viewfinder.latest().map(|shot| Frame::clone(&shot.frame)).map_err(Refused::Camera)
    }

    /// The counters in Prometheus' text format.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn metrics(&self) -> Result<String> {
        self.0.metrics.set_now(&status::now(self)?);
        Ok(self.0.metrics.text())
    }

    /// Finds out whether a wish can be fulfilled, down to the timesteps its solver would visit.
    fn check_order(&self, wish: &PaintingWish, pictures: Pictures) -> Result<Order> {
        let (order, _) = self.order_of(wish, pictures)?;
        Plan::new(self.0.painter.schedule(), order.sampler, order.steps, order.strength()?)?;
        Ok(order)
    }

    /// The order a wish comes to, and what the person should hear about it.
    fn order_of(&self, wish: &PaintingWish, pictures: Pictures) -> Result<(Order, Vec<String>)> {
        let mut request = wish.request.clone();
        if !wish.mix.is_empty() {
            request.styles.push(MIX.into());
        }
        request.template()?; // before styles are looked for
        request.order(&self.0.painter, self.choices(wish)?, pictures, self.0.habits)
    }

    /// Whether the model can say what a picture shows.
    pub fn has_captioner(&self) -> bool {
        captioner::is_in(self.bundle().folder())
    }

    /// What a picture shows; nothing while it looks at another one. The captioner is in memory only meanwhile.
    ///
    /// # Errors
    /// As [`captioner::Captioner::open`].
    pub fn caption(&self, frame: &Frame) -> Result<Option<String>> {
        let Ok(_alone) = self.0.captioning.try_lock() else { return Ok(None) };
        let mut captioner = captioner::Captioner::open(&self.bundle().folder().join(captioner::FOLDER))?;
        captioner.caption(frame).map(Some)
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.desk().wake = true;
        self.0.work.notify_all();
    }

    fn retry_after(&self, kind: Kind) -> u64 {
        let seconds = match kind {
            Kind::Painting => self.desk().painting_seconds.unwrap_or(30.0),
            Kind::Learning => 600.0,
        };
        seconds.ceil().max(1.0) as u64
    }

    fn with_progress(&self, mut job: Job) -> Job {
        let desk = self.desk();
        job.preview = desk.previews.get(&job.id).map_or(0, |preview| preview.version);
        if let Some(running) = desk.running.iter().find(|running| running.id == job.id) {
            (job.step, job.steps, job.stage, job.loss) = (running.step, running.steps, running.stage, running.loss);
            if let Some((before, began)) = running.step_began {
                let each = began.elapsed().as_secs_f64() / (running.step - before).max(1) as f64;
                job.seconds_left = Some(each * running.steps.saturating_sub(running.step) as f64);
            }
        } else if job.state == State::Queued && job.kind == Kind::Painting {
            let before = job.position.unwrap_or(0) as f64;
            job.seconds_left = desk.painting_seconds.map(|seconds| seconds * (before + 1.0));
        }
        job
    }
}

/// A seed for a wish without one; what is random about an id will do.
pub fn random_seed() -> u64 {
    uuid::Uuid::now_v7().as_u64_pair().1 & u64::from(u32::MAX)
}
