//! What storing numbers more coarsely does to them (after google/gemma.cpp `compression/distortion.h`).

use serde::Serialize;

/// The difference between numbers and what became of them. Sums are in f64.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distortion {
    signal: f64,
    noise: f64,
    lowest: f64,
    highest: f64,
    /// How many numbers.
    pub count: u64,
    /// Numbers that changed their sign.
    pub sign_flips: u64,
    /// Numbers that became zero and were not.
    pub zeroed: u64,
}

impl Distortion {
    /// Of two runs of the same length.
    ///
    /// # Panics
    /// If they are not.
    pub fn of(before: &[f32], after: &[f32]) -> Self {
        assert_eq!(before.len(), after.len(), "numbers to compare");
        let mut all = Distortion { lowest: f64::INFINITY, highest: f64::NEG_INFINITY, ..Self::default() };
        for (&a, &b) in before.iter().zip(after) {
            let (x, y) = (a as f64, b as f64);
            all.signal += x * x;
            all.noise += (x - y) * (x - y);
            all.lowest = all.lowest.min(x);
            all.highest = all.highest.max(x);
            all.count += 1;
            all.sign_flips += u64::from(x * y < 0.0);
            all.zeroed += u64::from(b == 0.0 && a != 0.0);
        }
        all
    }

    /// Of both together.
    pub fn and(self, other: Self) -> Self {
        if self.count == 0 {
            return other;
        }
        Distortion {
            signal: self.signal + other.signal,
            noise: self.noise + other.noise,
            lowest: self.lowest.min(other.lowest),
            highest: self.highest.max(other.highest),
            count: self.count + other.count,
            sign_flips: self.sign_flips + other.sign_flips,
            zeroed: self.zeroed + other.zeroed,
        }
    }

    /// Mean squared difference.
    pub fn mse(&self) -> f64 {
        self.noise / self.count as f64
    }

    /// Signal-to-noise ratio in dB; infinite where nothing changed.
    pub fn snr(&self) -> f64 {
        decibels(self.signal, self.noise)
    }

    /// Peak signal-to-noise ratio in dB, the peak being the range of the numbers before.
    pub fn psnr(&self) -> f64 {
        decibels((self.highest - self.lowest).powi(2), self.mse())
    }
}

/// `10 log10(signal / noise)`; no noise is unchanged, noise that is not a number is worse than any.
fn decibels(signal: f64, noise: f64) -> f64 {
    match noise {
        0.0 => f64::INFINITY,
        noise if noise.is_nan() => f64::NEG_INFINITY,
        noise => 10.0 * (signal / noise).log10(),
    }
}

/// A figure in dB as JSON has it, which knows no infinity: nothing stands for "unchanged", and what is worse than any
/// figure (or no number) is the lowest there is.
pub fn told(decibels: f64) -> Option<f64> {
    (decibels != f64::INFINITY).then_some(decibels.max(f64::MIN))
}

/// [`told`] for serde.
///
/// # Errors
/// Those of the serializer.
pub fn json_decibels<S: serde::Serializer>(decibels: &f64, to: S) -> Result<S::Ok, S::Error> {
    told(*decibels).serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let d = Distortion::of(&[3.0, -4.0, 1.0, 0.0], &[3.0, -4.0, 0.0, 0.0]);
        assert_eq!((d.count, d.sign_flips, d.zeroed), (4, 0, 1));
        assert!((d.snr() - 10.0 * 26f64.log10()).abs() <= 1e-12);
        assert!((d.psnr() - 10.0 * (49.0f64 / 0.25).log10()).abs() <= 1e-12);
        let flipped = Distortion::of(&[1.0, -1.0], &[-1.0, -1.0]);
        assert_eq!((flipped.sign_flips, flipped.zeroed), (1, 0));
        let both = d.and(flipped);
        assert_eq!((both.count, both.sign_flips, both.zeroed), (6, 1, 1));
        assert!((both.mse() - 5.0 / 6.0).abs() <= 1e-12);
    }

    #[test]
    fn what_did_not_change_is_infinitely_good_and_nan_is_not() {
        assert_eq!(Distortion::of(&[1.0, 2.0], &[1.0, 2.0]).snr(), f64::INFINITY);
        assert_eq!(Distortion::of(&[0.0], &[0.0]).psnr(), f64::INFINITY);
        let broken = Distortion::of(&[1.0, 2.0], &[f32::NAN, 2.0]);
        assert_eq!((broken.snr(), broken.psnr()), (f64::NEG_INFINITY, f64::NEG_INFINITY));
        let figures = [f64::INFINITY, 40.5, f64::NEG_INFINITY, f64::NAN].map(told);
        assert_eq!(figures, [None, Some(40.5), Some(f64::MIN), Some(f64::MIN)], "only what is unchanged is nothing");
    }
}
