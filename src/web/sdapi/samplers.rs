//! Solvers by the names that clients of the A1111-compatible interface know.

use crate::sampler::Sampler;

/// The names that are listed.
pub(super) const NAMES: [(&str, Sampler); 5] = [
    ("DPM++ 2M", Sampler::DpmSolverPp2M),
    ("UniPC", Sampler::UniPc),
    ("DDIM", Sampler::Ddim),
    ("Euler", Sampler::Euler),
    ("LCM", Sampler::Lcm),
];

/// Names whose solver is not here, and the one that is nearest: clients send these without being asked (`Euler a` is the
/// preset of webuiapi). Noise schedules in a name (`Karras`) are left off: this program spaces steps as the model's own
/// scheduler does.
const NEAREST: [(&str, Sampler); 7] = [
    ("Euler a", Sampler::Euler),
    ("DPM++ 2M SDE", Sampler::DpmSolverPp2M),
    ("DPM++ SDE", Sampler::DpmSolverPp2M),
    ("DPM++ 2S a", Sampler::DpmSolverPp2M),
    ("DPM++ 3M SDE", Sampler::DpmSolverPp2M),
    ("DPM2", Sampler::DpmSolverPp2M),
    ("Heun", Sampler::UniPc),
];
const SCHEDULES: [&str; 4] = [" Karras", " Exponential", " Heun", " CFG++"];

/// The name that is listed.
pub(super) fn name(sampler: Sampler) -> &'static str {
    NAMES.iter().find(|(_, own)| *own == sampler).map_or(sampler.name(), |(name, _)| name)
}

/// The solver of a name, and whether it is the very one.
pub(super) fn named(name: &str) -> Option<(Sampler, bool)> {
    let bare = SCHEDULES.iter().fold(name, |name, schedule| name.strip_suffix(schedule).unwrap_or(name));
    let same = |known: &str| known.eq_ignore_ascii_case(bare.trim());
    let own = NAMES.iter().find(|(known, sampler)| same(known) || same(sampler.name()));
    let nearest = NEAREST.iter().find(|(known, _)| same(known));
    own.map(|(_, sampler)| (*sampler, bare == name)).or(nearest.map(|(_, sampler)| (*sampler, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_solver_has_a_name_both_ways() {
        for sampler in Sampler::ALL {
            assert_eq!(named(name(sampler)), Some((sampler, true)));
            assert_eq!(named(sampler.name()), Some((sampler, true)));
        }
        assert_eq!(named("DPM++ 2M Karras"), Some((Sampler::DpmSolverPp2M, false)));
        assert_eq!(named("Euler a"), Some((Sampler::Euler, false)));
        assert_eq!(named("PLMS"), None);
    }
}
