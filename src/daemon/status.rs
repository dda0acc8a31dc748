//! How the daemon and the machine are.

use super::Daemon;
use super::job::Kind;
use super::metrics::Now;
use crate::Result;
use serde::Serialize;
use std::time::Duration;
use sysinfo::{Components, Disks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use utoipa::ToSchema;

/// A painter that gives no sign of life for so long while it has work hangs.
const HANGS: Duration = Duration::from_secs(600);

/// Whether it runs as it should.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Health {
    /// Whether the painter works or waits; false if it hangs.
    pub painter: bool,
    /// Whether the database answers.
    pub store: bool,
    /// Whether frames come, where a camera is configured.
    pub camera: bool,
}

/// Everything the admin page shows.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Since the start.
    pub uptime_seconds: f64,
    /// How it is.
    pub health: Health,
    /// The model's name.
    pub bundle: String,
    /// Where the networks run.
    pub device: String,
    /// The instruction set of the processor's kernels.
    pub isa: String,
    /// Where frames come from.
    pub camera: String,
    /// What is wrong with the camera, if anything is.
    pub camera_fault: Option<String>,
    /// Paintings that wait or are being painted.
    pub paintings_waiting: usize,
    /// The most that may.
    pub paintings_bound: usize,
    /// Lessons that wait or are being learned.
    pub lessons_waiting: usize,
    /// The most that may.
    pub lessons_bound: usize,
    /// Mean seconds of a painting, once there was one.
    pub painting_seconds: Option<f64>,
    /// Paintings in the gallery.
    pub paintings: u64,
    /// Size of all paintings, in bytes.
    pub painting_bytes: u64,
    /// Free on the disk of the data folder, in bytes, where the system tells.
    pub disk_free_bytes: Option<u64>,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// Of which could be had.
    pub memory_free_bytes: u64,
    /// Load of the last minute.
    pub load: f64,
    /// Sensors, where the system tells.
    pub temperatures: Vec<Temperature>,
}

/// A sensor.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Temperature {
    /// What it measures.
    pub name: String,
    /// In degrees Celsius.
    pub celsius: f32,
}

impl Daemon {
    /// How it is.
    pub fn health(&self) -> Health {
        let desk = self.desk();
        let hangs = !desk.running.is_empty() && desk.alive.is_some_and(|sign| sign.elapsed() > HANGS);
        drop(desk);
        Health {
            painter: !hangs,
            store: self.store().waits(Kind::Painting).is_ok(),
            camera: !self.has_camera() || self.viewfinder().state().is_ok(),
        }
    }

    /// Everything the admin page shows.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn status(&self) -> Result<Status> {
        let now = now(self)?;
        let mut system = System::new();
        system.refresh_memory();
        let components = Components::new_with_refreshed_list();
        let temperature = |component: &sysinfo::Component| {
            let celsius = component.temperature().filter(|celsius| celsius.is_finite())?;
            Some(Temperature { name: component.label().to_owned(), celsius })
        };
        let (config, bundle) = (self.config(), self.bundle());
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.0.started.elapsed().as_secs_f64(),
            health: self.health(),
            bundle: bundle.name(),
            device: bundle.target().name().into(),
            isa: bundle.target().isa().to_string(),
            camera: self.camera().0,
            camera_fault: if self.has_camera() { self.viewfinder().state().err() } else { None },
            paintings_waiting: now.paintings,
            paintings_bound: config.queue.paintings,
            lessons_waiting: now.lessons,
            lessons_bound: config.queue.lessons,
            painting_seconds: self.desk().painting_seconds,
            paintings: self.store().painting_count()?,
            painting_bytes: now.painting_bytes,
            disk_free_bytes: disk_free(&config.data),
            resident_bytes: now.resident_bytes,
            memory_bytes: system.total_memory(),
            memory_free_bytes: system.available_memory(),
            load: System::load_average().one,
            temperatures: components.list().iter().filter_map(temperature).collect(),
        })
    }
}

/// Free on the disk that holds a folder.
fn disk_free(folder: &std::path::Path) -> Option<u64> {
    let folder = folder.canonicalize().ok()?;
    let disks = Disks::new_with_refreshed_list();
    let holding = disks.list().iter().filter(|disk| folder.starts_with(disk.mount_point()));
    holding.max_by_key(|disk| disk.mount_point().as_os_str().len()).map(|disk| disk.available_space())
}

pub(super) fn now(daemon: &Daemon) -> Result<Now> {
    let jobs = daemon.store().jobs(0)?;
    let count = |kind| jobs.iter().filter(|job| job.kind == kind).count();
    Ok(Now {
        paintings: count(Kind::Painting),
        lessons: count(Kind::Learning),
        camera_up: daemon.viewfinder().state().is_ok(),
        listeners: daemon.events().listeners(),
        resident_bytes: resident(),
        painting_bytes: daemon.store().painting_bytes()?,
    })
}

/// Resident memory of this process, in bytes; 0 where the system does not tell.
fn resident() -> u64 {
    let own = Pid::from_u32(std::process::id());
    let mut system = System::new();
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, memory);
    system.process(own).map_or(0, sysinfo::Process::memory)
}
