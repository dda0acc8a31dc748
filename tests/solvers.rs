//! The solvers, the schedule and the random numbers against diffusers and torch (tests/reference/solvers.py).

use candle_core::{Device, Tensor};
use pleinair::sampler::{
    Denoiser, Guidance, GuidanceForm, Plan, Sampler, Schedule, SchedulerConfig, TorchRng, ddim, sample,
};
use pleinair::{Error, Result};
use std::collections::HashMap;

/// Stable Diffusion 1.5's configuration with further entries.
fn schedule(entries: &[(&str, &str)]) -> Schedule {
    let mut text = String::from(
        r#"{"num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
            "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": null, "clip_sample": false"#,
    );
    if !entries.iter().any(|(key, _)| *key == "beta_schedule") {
        text.push_str(r#", "beta_schedule": "scaled_linear""#);
    }
    for (key, value) in entries.iter().filter(|(_, value)| *value != "absent") {
        text.push_str(&format!(r#", "{key}": "{value}""#));
    }
    Schedule::new(SchedulerConfig::from_json(&(text + "}")).unwrap()).unwrap()
}

fn fixtures() -> HashMap<String, Tensor> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/solvers.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// How many values the reference script keeps of a latent: every 13th of 256.
const KEPT: usize = 20;

fn thinned(latent: &Tensor) -> Vec<f32> {
    values(latent).into_iter().step_by(13).collect()
}

/// Largest difference; infinite where a value is NaN or the lengths differ, so that no comparison passes.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) })
}

/// The same formula as in the reference script, as a network.
struct Network<'a>(&'a Schedule);

impl Denoiser for Network<'_> {
    fn denoise(&mut self, x: &Tensor, t: f64) -> Result<Tensor> {
        let rolled = x.roll(1, 3)?;
        let inner = ((x * 0.8)? + (rolled * 0.1)?)?;
        let output = (inner + 0.3 * (t / 200.0).sin())?.tanh()?;
        self.0.denoised_from_prediction(self.0.config().prediction_type, x, &output, t)
    }
}

/// Compares two runs of thinned latents step by step, largest difference returned.
///
/// A step rounds three products of about the latents' size by half an ulp each, as does the reference, and f32 turns
/// what the toy network makes of that into as much again: 3 epsilon of the largest value. The next steps neither
/// amplify the noise (the network's slope is below 1) nor forget it; their own errors differ in sign and add up to less
/// than one epsilon a step.
fn compare_steps(name: &str, ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len(), "{name}");
    let (mut largest, mut worst) = (1.0f32, 0.0f32);
    for (k, (ours, reference)) in ours.chunks(KEPT).zip(reference.chunks(KEPT)).enumerate() {
        largest = reference.iter().fold(largest, |most, value| most.max(value.abs()));
        let tolerance = (k + 3) as f32 * largest * f32::EPSILON;
        let apart = difference(ours, reference);
        assert!(apart <= tolerance, "{name}, step {k}: {apart:e}, allowed {tolerance:e}");
        worst = worst.max(apart);
    }
    worst
}

#[test]
fn the_comparator_can_fail() {
    assert_eq!(difference(&[1.0, 2.0], &[1.0, 2.5]), 0.5);
    assert_eq!(difference(&[1.0, f32::NAN], &[1.0, 2.0]), f32::INFINITY);
    assert_eq!(difference(&[1.0], &[1.0, 2.0]), f32::INFINITY);
    // A fault of 1e-4 in one value of the second step.
    let mut ours = vec![1.0; 2 * KEPT];
    ours[KEPT + 3] += 1e-4;
    let caught = std::panic::catch_unwind(|| compare_steps("spoilt", &ours, &[1.0; 2 * KEPT]));
    assert!(caught.is_err());
}

#[test]
fn alphas_cumprod_are_those_of_torch() {
    let fixtures = fixtures();
    for curve in ["scaled_linear", "linear", "squaredcos_cap_v2"] {
        let schedule = schedule(&[("beta_schedule", curve)]);
        let expected = values(&fixtures[&format!("alphas_cumprod/{curve}")]);
        let worst = difference(schedule.alphas_cumprod(), &expected);
        println!("alphas_cumprod {curve}: {worst:e}");
        // torch.linspace counts up in vectors, whose width depends on the machine: a beta may be off by an ulp.
        assert!(worst <= 4.0 * f32::EPSILON, "{curve}: {worst:e}");
    }
}

#[test]
fn timesteps_are_those_of_diffusers() {
    let mut compared = 0;
    for (name, expected) in fixtures() {
        let Some(rest) = name.strip_prefix("timesteps/") else { continue };
        let parts: Vec<_> = rest.split('/').collect();
        let [sampler, spacing, steps] = parts[..] else { panic!("{name}") };
        let plan = Plan::new(
            &schedule(&[("timestep_spacing", spacing)]),
            sampler.parse().unwrap(),
            steps.parse().unwrap(),
            1.0,
        );
        let timesteps: Vec<f32> = plan.unwrap().timesteps().into_iter().map(|t| t as f32).collect();
        assert_eq!(timesteps, values(&expected), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 4 * 4 * 9 + 4 * 8);
}

#[test]
fn every_step_of_every_solver_is_that_of_diffusers() {
    let fixtures = fixtures();
    let (x0, noise) = (&fixtures["x0"], &fixtures["noise"]);
    let (mut compared, mut worst) = (0, HashMap::<&str, f32>::new());
    for (name, expected) in &fixtures {
        let Some(rest) = name.strip_prefix("trace/") else { continue };
        let parts: Vec<_> = rest.split('/').collect();
        let [sampler, spacing, prediction, steps, strength] = parts[..] else { panic!("{name}") };
        let schedule = schedule(&[("timestep_spacing", spacing), ("prediction_type", prediction)]);
        let steps: usize = steps.parse().unwrap();
        let plan = Plan::new(&schedule, sampler.parse().unwrap(), steps, strength.parse().unwrap()).unwrap();
        let start = if strength == "1.0" { plan.start(noise) } else { plan.add_noise(x0, noise) }.unwrap();
        let mut draws = fixtures["lcm_noise"].chunk(24, 0).unwrap().into_iter();
        let mut trace = Vec::new();
        let last =
            sample(&mut Network(&schedule), &plan, start, &mut |_| Ok(draws.next().expect("24 draws")), &mut |r| {
                assert_eq!(r.index, trace.len() / KEPT);
                trace.extend(thinned(r.latent));
                Ok(())
            });
        assert_eq!(thinned(&last.unwrap()), trace[trace.len() - KEPT..]);
        let apart = compare_steps(name, &trace, &values(expected));
        let most = worst.entry(sampler).or_default();
        *most = most.max(apart);
        compared += 1;
    }
    println!("largest differences: {worst:?}");
    assert_eq!(compared, (4 * 3 + 1) * 2 * 2 * 2);
}

#[test]
fn inversion_is_that_of_diffusers() {
    let fixtures = fixtures();
    let (mut compared, mut worst) = (0, 0f32);
    for (name, expected) in &fixtures {
        let Some(rest) = name.strip_prefix("inverse/") else { continue };
        let parts: Vec<_> = rest.split('/').collect();
        let [spacing, prediction, steps] = parts[..] else { panic!("{name}") };
        let schedule = schedule(&[("timestep_spacing", spacing), ("prediction_type", prediction)]);
        let plan = Plan::new(&schedule, Sampler::Ddim, steps.parse().unwrap(), 1.0).unwrap();
        let (mut trace, mut timesteps) = (Vec::new(), Vec::new());
        ddim::invert(&mut Network(&schedule), &plan, &fixtures["x0"], &mut |r| {
            trace.extend(thinned(r.latent));
            timesteps.push(r.timestep as f32);
            Ok(())
        })
        .unwrap();
        assert_eq!(timesteps, values(&fixtures[&format!("inverse_timesteps/{spacing}/{steps}")]));
        let apart = compare_steps(name, &trace, &values(expected));
        worst = worst.max(apart);
        compared += 1;
    }
    println!("largest difference of an inversion: {worst:e}");
    assert_eq!(compared, 8);
}

#[test]
fn a_picture_survives_inversion_and_sampling() {
    let fixtures = fixtures();
    let x0 = &fixtures["x0"];
    for sampler in [Sampler::Ddim, Sampler::Euler, Sampler::DpmSolverPp2M, Sampler::UniPc] {
        let mut apart = [50, 200].map(|steps| {
            let schedule = schedule(&[("timestep_spacing", "leading")]);
            let plan = Plan::new(&schedule, sampler, steps, 0.8).unwrap();
            let mut network = Network(&schedule);
            let up = ddim::invert(&mut network, &plan, x0, &mut |_| Ok(())).unwrap();
            let down =
                sample(&mut network, &plan, up, &mut |shape| panic!("noise {shape:?}"), &mut |_| Ok(())).unwrap();
            difference(&values(&down), &values(x0))
        });
        println!("{sampler}: round trip {apart:?}");
        // Inversion is of first order: four times the steps, about a quarter of the error.
        apart[0] *= 0.5;
        assert!(apart[1] <= apart[0], "{sampler}: {apart:?}");
    }
}

#[test]
fn training_latents_and_targets_are_those_of_diffusers() {
    let fixtures = fixtures();
    let (x0, noise) = (&fixtures["x0"], &fixtures["noise"]);
    let x0 = Tensor::cat(&[x0, &x0.neg().unwrap()], 0).unwrap();
    let noise = Tensor::cat(&[noise, &noise.flip(&[3]).unwrap()], 0).unwrap();
    let schedule = schedule(&[("prediction_type", "v_prediction")]);
    for (name, latents) in [
        ("add_noise", schedule.add_noise(&x0, &noise, &[3.0, 702.0])),
        ("velocity", schedule.training_target(&x0, &noise, &[3.0, 702.0])),
    ] {
        let apart = difference(&thinned(&latents.unwrap()), &values(&fixtures[name]));
        println!("{name}: {apart:e}");
        // Three roundings of values below 4; sigma at timestep 3 sees an ulp of alpha bar 20 times larger.
        assert!(apart <= 4.0 * 4.0 * f32::EPSILON, "{name}: {apart:e}");
    }
    assert!(schedule.add_noise(&x0, &noise, &[3.0]).is_err());
    assert!(schedule.add_noise(&x0, &noise, &[3.0, 1000.0]).is_err());
}

#[test]
fn random_numbers_are_those_of_torch() {
    let fixtures = fixtures();
    for seed in [0, 42, (1 << 32) + 7, u64::MAX - 2] {
        let mut rng = TorchRng::new(seed);
        let mut drawn: Vec<f32> = Vec::new();
        for size in [1, 17, 3, 16, 15, 140, 2] {
            drawn.extend(values(&rng.randn(size).unwrap()));
        }
        drawn.extend(values(&rng.rand(5).unwrap()));
        drawn.extend(values(&rng.randn(1).unwrap()));
        drawn.extend(values(&rng.randn((1, 4, 16, 16)).unwrap()));
        drawn.extend(values(&rng.randn((2, 4, 5, 7)).unwrap()));
        let uniform = values(&rng.rand(700).unwrap());
        let expected = values(&fixtures[&format!("random/{seed}/floats")]);
        let (normal, expected_uniform) = expected.split_at(expected.len() - 700);
        let apart = difference(&drawn, normal);
        println!("randn, seed {seed}: {apart:e}");
        // The radius stays below 8: two ulps of it, for torch's logarithm and sine are each off by about half of one.
        assert!(apart <= 2.0 * 4.0 * f32::EPSILON, "seed {seed}: {apart:e}");
        assert_eq!(uniform, expected_uniform, "seed {seed}");
        let whole = [rng.randint(0, 1000, 9), rng.randint(-3, 1 << 40, 4), rng.randint(0, 2, 11)];
        let whole = whole.map(Result::unwrap).concat();
        assert_eq!(whole, fixtures[&format!("random/{seed}/ints")].to_vec1::<i64>().unwrap(), "seed {seed}");
    }
}

/// Answers with one value everywhere.
struct Constant(f64);

impl Denoiser for Constant {
    fn denoise(&mut self, x: &Tensor, _: f64) -> Result<Tensor> {
        Ok(x.affine(0.0, self.0)?)
    }
}

#[test]
fn a_run_ends_at_the_first_bad_latent_and_when_told_to() {
    let schedule = schedule(&[]);
    let noise = TorchRng::new(5).randn((1, 4, 8, 8)).unwrap();
    for sampler in Sampler::ALL {
        let plan = Plan::new(&schedule, sampler, 6, 1.0).unwrap();
        let run = |denoiser: &mut Constant, stop: usize| {
            let mut rng = TorchRng::new(1);
            let mut reports = 0;
            let ended = sample(denoiser, &plan, noise.clone(), &mut |shape| rng.randn(shape), &mut |report| {
                reports += 1;
                if report.index == stop { Err(Error::Interrupted) } else { Ok(()) }
            });
            (ended, reports)
        };
        for bad in [f64::NAN, f64::INFINITY] {
            let (ended, reports) = run(&mut Constant(bad), 99);
            assert!(matches!(ended, Err(Error::NotFinite { .. })), "{sampler}: {ended:?}");
            assert_eq!(reports, 0);
        }
        let (ended, reports) = run(&mut Constant(0.5), 2);
        assert!(matches!(ended, Err(Error::Interrupted)), "{sampler}");
        assert_eq!(reports, 3);
        // A network that always answers 0.5 leads there; DDIM alone keeps timestep 0's noise (set_alpha_to_one false).
        let (ended, _) = run(&mut Constant(0.5), 99);
        let off = difference(&values(&ended.unwrap()), &[0.5; 256]);
        assert!(off <= if sampler == Sampler::Ddim { 0.15 } else { 1e-5 }, "{sampler}: {off}");
    }
}

#[test]
fn names_of_samplers() {
    for sampler in Sampler::ALL {
        assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
    }
    let message = "heun".parse::<Sampler>().unwrap_err().to_string();
    assert!(message.contains("heun") && message.contains("dpm++2m, unipc, ddim, euler, lcm"), "{message}");
    assert!(Guidance::new(0.0, 0.0, f64::NAN, GuidanceForm::Paper).is_err());
}
