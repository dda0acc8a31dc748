//! Where a command's networks run: what the person asked for, else what suits this machine.

use super::model::isa;
use super::progress::Progress;
use clap::ValueEnum;
use pleinair::painter::Habits;
use pleinair::profile::{Machine, Profile};
use pleinair::target::Kind;
use pleinair::{Error, Result, Target};

/// The options that name a place.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Where the networks run
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Options of every command")]
    device: Device,
    /// Settings for a kind of machine: one that ships with the program (doctor names this machine's) or a file [default:
    /// found by what the machine calls itself]
    #[arg(long, global = true, value_name = "NAME|FILE", help_heading = "Options of every command")]
    profile: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, ValueEnum)]
enum Device {
    /// The GPU where this build and this machine have one, else the processor
    #[default]
    Auto,
    Cpu,
    Cuda,
    Metal,
}

/// A place for networks, and what suits it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) profile: Option<Profile>,
    pub(super) machine: Machine,
    /// Why there is no GPU where this build could use one.
    pub(super) note: Option<String>,
}

impl Place {
    /// What suits a painting for which nobody says it.
    pub(super) fn habits(&self) -> Habits {
        let profile = self.profile.as_ref();
        Habits { largest_side: profile.and_then(|p| p.size), steps: profile.and_then(|p| p.steps) }
    }
}

impl Choice {
    /// The place, found anew; opening a GPU takes a moment.
    ///
    /// # Errors
    /// [`Error::Usage`] for a GPU that was asked for and cannot be used, or a profile that does not exist.
    pub(super) fn open(&self) -> Result<Place> {
        let asked = match self.device {
            Device::Auto => None,
            Device::Cpu => Some(Kind::Cpu),
            Device::Cuda => Some(Kind::Cuda),
            Device::Metal => Some(Kind::Metal),
        };
        let named = self.profile.as_deref().map(Profile::named).transpose()?;
        let wanted = asked.or(named.as_ref().map(|profile| profile.device)).unwrap_or_default();
        let isa = isa()?;
        let (target, note) = match Target::open(wanted, isa) {
            Err(Error::Usage(why)) if asked.is_some() => {
                return Err(Error::Usage(format!("{why}; use --device cpu or leave it out")));
            }
            Err(Error::Usage(why)) => (Target::cpu(isa), Some(why)), // only the profile wanted it
            other => other?,
        };
        let machine = Machine::this(target.gpu());
        let profile = named.or_else(|| Profile::of(&machine));
        let target = match &profile {
            Some(profile) => profile.suit(target),
            None => target,
        };
        if let Some(threads) = profile.as_ref().and_then(|profile| profile.threads) {
            pleinair_cpu::use_threads(threads).map_err(Error::Usage)?;
        }
        Ok(Place { target, profile, machine, note })
    }

    /// As [`Choice::open`]; what a person should know of it is told.
    ///
    /// # Errors
    /// As [`Choice::open`].
    pub(super) fn announce(&self, progress: &Progress) -> Result<Place> {
        let place = self.open()?;
        if let Some(why) = &place.note {
            progress.note(&format!("{why}; the networks run on the processor"));
        }
        Ok(place)
    }
}
