//! What suits a kind of machine: where the networks run, how large and in how many steps pictures are painted, and what
//! memory that may take. One file a kind in `targets/profiles/`; the machine is recognised by what it calls itself.

use crate::target::{Kind, Numbers};
use crate::{Error, Result, Target};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;

/// The profiles that ship with the program, the more particular first.
const SHIPPED: [(&str, &str); 10] = [
    ("jetson-orin-nano", include_str!("../targets/profiles/jetson-orin-nano.toml")),
    ("jetson-orin-nx", include_str!("../targets/profiles/jetson-orin-nx.toml")),
    ("jetson-agx-orin", include_str!("../targets/profiles/jetson-agx-orin.toml")),
    ("jetson-thor", include_str!("../targets/profiles/jetson-thor.toml")),
    ("apple-m1", include_str!("../targets/profiles/apple-m1.toml")),
    ("apple-m2", include_str!("../targets/profiles/apple-m2.toml")),
    ("apple-m3", include_str!("../targets/profiles/apple-m3.toml")),
    ("apple-m4", include_str!("../targets/profiles/apple-m4.toml")),
    ("server-cuda", include_str!("../targets/profiles/server-cuda.toml")),
    ("laptop-x86", include_str!("../targets/profiles/laptop-x86.toml")),
];

/// A kind of machine and what suits it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name, as on the command line.
    #[serde(skip_deserializing)]
    pub name: String,
    /// What machine it is.
    pub about: String,
    /// Where the networks run.
    #[serde(default)]
    pub device: Kind,
    /// The numbers of feature maps on a GPU.
    #[serde(default)]
    pub numbers: Numbers,
    /// The most that weights and feature maps may take on a GPU, in MB (1e6 bytes); parts are loaded and freed in turn
    /// where they do not fit together. Without it, all there is.
    pub memory_mb: Option<u64>,
    /// Threads of the processor's kernels. Without it, one a core.
    pub threads: Option<usize>,
    /// The longer side of pictures whose size nobody gives, in pixels, where the model's own is larger.
    pub size: Option<usize>,
    /// Steps of paintings for which nobody gives them.
    pub steps: Option<usize>,
    /// What it is recognised by; without it, only by its name.
    pub machine: Option<Recognised>,
}

/// What a machine is recognised by: everything that is given must be so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recognised {
    /// A part of what the board or the processor calls itself.
    pub says: Option<String>,
    /// `x86_64` or `aarch64`.
    pub architecture: Option<String>,
    /// A GPU of this kind, that this build can use.
    pub has: Option<Kind>,
}

/// What this machine is, as far as it tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Machine {
    /// The board's or processor's name.
    pub says: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// The GPU that this build can use.
    pub has: Option<Kind>,
}

impl Machine {
    /// This machine, with the GPU that `gpu` is, if any.
    pub fn this(gpu: Option<Kind>) -> Self {
        let board = std::fs::read_to_string("/proc/device-tree/model").ok();
        let processor = || {
            let asked = Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
            String::from_utf8(asked.stdout).ok()
        };
        let table = || {
            let table = std::fs::read_to_string("/proc/cpuinfo").ok()?;
            Some(table.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?.1.to_owned())
        };
        let says = board.or_else(table).or_else(processor).unwrap_or_default();
        let says = says.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
        Machine { says, architecture: std::env::consts::ARCH.to_owned(), has: gpu }
    }
}

impl Recognised {
    fn is(&self, machine: &Machine) -> bool {
        let says = self.says.as_ref().is_none_or(|part| machine.says.contains(part.as_str()));
        let architecture = self.architecture.as_ref().is_none_or(|name| *name == machine.architecture);
        says && architecture && self.has.is_none_or(|kind| machine.has == Some(kind))
    }
}

impl Profile {
    /// Every profile that ships with the program.
    pub fn shipped() -> impl Iterator<Item = Profile> {
        SHIPPED.iter().map(|(name, text)| Self::parse(name, text).expect("a test reads them all"))
    }

    /// The profile of a machine, if one is known.
    pub fn of(machine: &Machine) -> Option<Profile> {
        Self::shipped().find(|profile| profile.machine.as_ref().is_some_and(|known| known.is(machine)))
    }

    /// A shipped profile by its name, or one in a file.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is neither, with the names there are; [`Error::File`] for a file with unknown keys.
    pub fn named(name: &str) -> Result<Profile> {
        if let Some(found) = Self::shipped().find(|profile| profile.name == name) {
            return Ok(found);
        }
        let path = Path::new(name);
        if !path.is_file() {
            let names: Vec<_> = SHIPPED.iter().map(|(name, _)| *name).collect();
            let what = format!("there is no profile {name}; name a file or one of {}", names.join(", "));
            return Err(Error::Usage(what));
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&stem, &text).map_err(|what| Error::file(path, what))
    }

    fn parse(name: &str, text: &str) -> std::result::Result<Profile, String> {
        let profile: Profile = toml::from_str(text).map_err(|e| e.to_string())?;
        for (key, number) in [
            ("threads", profile.threads.map(|n| n as u64)),
            ("memory_mb", profile.memory_mb),
            ("size", profile.size.map(|n| n as u64)),
            ("steps", profile.steps.map(|n| n as u64)),
        ] {
            if number == Some(0) {
                return Err(format!("{key} must be above 0; leave it out for the program's own choice"));
            }
        }
        Ok(Profile { name: name.to_owned(), ..profile })
    }

    /// The target with its numbers and its memory.
    pub fn suit(&self, target: Target) -> Target {
        target.with_numbers(self.numbers).with_memory(self.memory_mb.map(|mb| mb * 1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(says: &str, architecture: &str, has: Option<Kind>) -> Option<String> {
        let machine = Machine { says: says.into(), architecture: architecture.into(), has };
        Profile::of(&machine).map(|profile| profile.name)
    }

    #[test]
    fn machines_are_recognised() {
        let name = |profile: &str| Some(profile.to_owned());
        let cuda = Some(Kind::Cuda);
        let nano = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super";
        assert_eq!(machine(nano, "aarch64", cuda), name("jetson-orin-nano"));
        assert_eq!(
            machine("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "aarch64", cuda),
            name("jetson-orin-nx")
        );
        assert_eq!(machine("NVIDIA Jetson AGX Orin Developer Kit", "aarch64", cuda), name("jetson-agx-orin"));
        assert_eq!(machine("NVIDIA Jetson AGX Thor Developer Kit", "aarch64", cuda), name("jetson-thor"));
        assert_eq!(machine("Apple M3 Pro", "aarch64", Some(Kind::Metal)), name("apple-m3"));
        assert_eq!(machine("AMD EPYC", "x86_64", cuda), name("server-cuda"));
        assert_eq!(machine("AMD EPYC", "x86_64", None), name("laptop-x86"));
        assert_eq!(machine("Raspberry Pi 5", "aarch64", None), None);
    }

    #[test]
    fn every_profile_ships_and_can_be_named() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("targets/profiles");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut stems: Vec<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        stems.sort();
        let mut names: Vec<_> = Profile::shipped().map(|profile| profile.name).collect();
        names.sort();
        assert_eq!(stems, names);
        assert!(names.iter().all(|name| Profile::named(name).unwrap().name == *name));
    }

    #[test]
    fn what_is_wrong_with_a_profile_is_said() {
        let parse = |text: &str| Profile::parse("mine", text).unwrap_err();
        assert!(parse("about = \"mine\"\nspeed = 3").contains("speed"));
        assert!(parse("device = \"cuda\"").contains("about"));
        assert!(parse("about = \"mine\"\ndevice = \"tpu\"").contains("tpu"));
        assert!(parse("about = \"mine\"\nthreads = 0").contains("threads must be above 0"));
        let error = Profile::named("jetson-nano").unwrap_err().to_string();
        assert!(error.contains("jetson-nano") && error.contains("jetson-orin-nano"), "{error}");
    }

    #[test]
    fn a_profile_suits_a_target() {
        let target = Profile::named("jetson-orin-nano").unwrap().suit(Target::default());
        // on the processor numbers are f32 whatever the profile says
        assert_eq!((target.numbers(), target.memory_bytes()), (candle_core::DType::F32, Some(5_000_000_000)));
    }
}
