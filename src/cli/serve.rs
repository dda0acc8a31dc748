//! `pleinair serve`: the daemon, until somebody asks for its end.

use super::{model, place};
use pleinair::config::{Config, Log};
use pleinair::daemon::{Daemon, Threads, booth};
use pleinair::painter::Painter;
use pleinair::web::{Access, Journal, Role, Site, serve};
use pleinair::{Error, Result};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use sd_notify::NotifyState;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Threads that serve requests; the processor's time is for painting.
const SERVING: usize = 2;
/// The most threads that wait for the disk for them.
const WAITING: usize = 8;
/// Niceness of the threads that serve requests: a quarter of the painter's share where both want the processor.
#[cfg(target_os = "linux")]
const GIVING_WAY: i32 = 6;
/// From the first signal to the end, at most.
const LAST_STEP: Duration = Duration::from_millis(4500);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration [default: every setting has one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on instead of the configuration's; port 0 for any that is free
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    model: model::Choice,
    /// Folder of the database, paintings and styles instead of the configuration's
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Serves until somebody asks for an end.
///
/// # Errors
/// If the configuration, the model or the data cannot be used, or nobody may listen on the address.
pub(super) fn run(arguments: &Arguments, place: &place::Choice) -> Result<()> {
    let config = configuration(arguments)?;
    let journal = Journal::default();
    log_to(&config.log, journal.clone());
    let (stop, stopped) = watch::channel(None);
    obey_signals(stop)?;

    // an address in use is found out before the model is loaded
    let runtime = runtime()?;
    let fault = |fault| Error::io(Path::new(&format!("listening on {}", config.listen)))(fault);
    let listener = runtime.block_on(TcpListener::bind(config.listen)).map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    let access = Access::open(&config, address)?;

    let folder = arguments.model.or(&config.bundle).folder()?;
    let place = place.open()?;
    if let Some(why) = &place.note {
        tracing::warn!("{why}; the networks run on the processor");
    }
    let habits = place.habits();
    pleinair_cpu::keep_freed_memory_for_a_while();
    let painter: Painter = model::open(&folder, &place.target)?;
    let (daemon, mut threads) = Daemon::start(config, painter, habits)?;
    let shared = access.clone();
    if let Some(display) = booth::start(daemon.clone(), move |id| shared.share_url(id))? {
        threads.add(display);
    }
    announce(address, &access);
    runtime.spawn(keep_watchdog_quiet(daemon.clone()));
    let site = Site::new(daemon.clone(), access, journal);
    runtime.block_on(serve(site, listener, asked_to_end(stopped.clone(), daemon)));
    end(threads, *stopped.borrow());
    runtime.shutdown_background();
    Ok(())
}

/// Painting comes first: on Linux a thread has a niceness of its own.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(fault) = rustix::process::nice(GIVING_WAY) {
        tracing::debug!(%fault, "requests are served as urgently as paintings are painted");
    }
}

fn configuration(arguments: &Arguments) -> Result<Config> {
    let mut config = arguments.config.as_deref().map(Config::open).transpose()?.unwrap_or_default();
    config.listen = arguments.listen.unwrap_or(config.listen);
    config.data = arguments.data.clone().unwrap_or(config.data);
    Ok(config)
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(SERVING).max_blocking_threads(WAITING).thread_name("web").enable_all();
    builder.on_thread_start(give_way);
    builder.build().map_err(Error::io(Path::new("the threads that serve requests")))
}

/// To standard error as the configuration says, and the last lines to the admin page.
fn log_to(log: &Log, journal: Journal) {
    let level: LevelFilter = log.level.parse().unwrap_or(LevelFilter::INFO); // checked with the configuration
    let own = Targets::new().with_default(LevelFilter::WARN).with_target("pleinair", level);
    let lines = fmt::layer().with_ansi(false).with_target(false);
    let out = match log.json {
        true => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
        false => lines.with_writer(std::io::stderr).boxed(),
    };
    let kept = fmt::layer().with_ansi(false).with_target(false).with_writer(journal);
    // fails only where another is set already
    let _ = tracing_subscriber::registry().with(own).with(out).with(kept).try_init();
}

/// The first signal asks for an end, the second is obeyed at once.
fn obey_signals(stop: watch::Sender<Option<Instant>>) -> Result<()> {
    let handler = move || {
        let first = stop.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert_with(Instant::now);
            first
        });
        if !first {
            std::process::exit(1);
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|fault| Error::io(Path::new("the signal handler"))(std::io::Error::other(fault)))
}

/// What people and scripts read first.
fn announce(address: SocketAddr, access: &Access) {
    let mut said = format!("listening on http://{address}\n");
    if let Some(url) = access.public_url() {
        said += &format!("other devices reach it at {url}\n");
    }
    if let Some(url) = access.pairing_url(Role::Admin) {
        said += &format!("open this once, to pair a browser with the role admin: {url}\n");
        if let Ok(code) = QrCode::new(&url) {
            said += &code.render::<Dense1x2>().quiet_zone(true).build();
            said.push('\n');
        }
    }
    let _ = std::io::stderr().write_all(said.as_bytes()); // a closed standard error is no reason to end
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Until the first signal; then the painter is told, and the service manager.
async fn asked_to_end(mut stopped: watch::Receiver<Option<Instant>>, daemon: Daemon) {
    let _ = stopped.wait_for(Option::is_some).await;
    tracing::info!("ending after this step");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    daemon.stop();
}

/// The service manager starts the program anew when the painter hangs or the database is lost.
async fn keep_watchdog_quiet(daemon: Daemon) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        let asked = daemon.clone();
        if let Ok(health) = tokio::task::spawn_blocking(move || asked.health()).await
            && health.painter
            && health.store
        {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

/// Waits for painter and camera; what does not end in time is continued at the next start as after a power cut.
fn end(threads: Threads, asked: Option<Instant>) {
    let spent = asked.map_or(Duration::ZERO, |asked| asked.elapsed());
    if !threads.wait(LAST_STEP.saturating_sub(spent)) {
        tracing::warn!("the current step takes too long; it is done again at the next start");
    }
    tracing::info!("ended");
}
