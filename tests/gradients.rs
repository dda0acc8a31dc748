//! The learning signal: the loss's gradient with respect to every stage's vector, through both networks, against central
//! differences of the loss itself; and what must not be learned stays as it was.

mod reference;

use candle_core::{Device, Tensor};
use pleinair::camera::Frame;
use pleinair::painter::Painter;
use pleinair::prompt::Template;
use pleinair::sampler::TorchRng;
use pleinair::style::stage_of;
use pleinair::train::{Batch, Files, Lesson, Options, Prompts, Study, gradient, learn, losses};

const STAGES: usize = 6;

fn painter() -> Painter {
    reference::painter("tiny-sd15")
}

fn study(context: &str) -> Study {
    let rgb = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
    Study { frame: Frame::new(64, 64, rgb).unwrap(), context: Template::parse(context).unwrap() }
}

fn lesson() -> Lesson {
    Lesson {
        token: "waves".into(),
        studies: vec![study("A painting of a mountain, in the style of {}"), study("a boat, in the style of {}")],
        stages: STAGES,
        steps: 3,
        batch: 2,
        lr: 0.002.into(),
        init: "painting".into(),
        seed: 5,
        license: "CC0-1.0".into(),
        options: Options::default(),
    }
}

/// Two pictures in turn.
fn batch(timesteps: &[f64], rng: &mut TorchRng) -> Batch {
    let count = timesteps.len();
    Batch {
        latents: rng.randn((count, 4, 8, 8)).unwrap(),
        noise: rng.randn((count, 4, 8, 8)).unwrap(),
        timesteps: timesteps.to_vec(),
        pictures: (0..count).map(|i| i % 2).collect(),
    }
}

/// T different vectors about as long as a word's.
fn vectors(painter: &Painter, rng: &mut TorchRng) -> Vec<Vec<f32>> {
    let word = painter.text_encoder().word_vector(painter.tokenizer().word("painting").unwrap()).unwrap();
    let spread = word.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
    let vector = |_| (&word + (rng.randn(word.shape()).unwrap() * spread).unwrap()).unwrap().to_vec1().unwrap();
    (0..STAGES).map(vector).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

fn length(vector: &[f32]) -> f64 {
    dot(vector, vector).sqrt()
}

/// Every sample's loss in f64, those of other stages left out, over the whole batch's count: what one stage's vector can
/// change of the batch's mean loss.
fn share_of_loss(painter: &Painter, prompts: &Prompts, batch: &Batch, vectors: &[Vec<f32>], stage: usize) -> f64 {
    let count = batch.timesteps.len();
    let rows: Vec<_> = (0..count).filter(|&i| stage_of(batch.timesteps[i], STAGES) == stage).collect();
    let index = Tensor::new(rows.iter().map(|&i| i as u32).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let part = Batch {
        latents: batch.latents.index_select(&index, 0).unwrap(),
        noise: batch.noise.index_select(&index, 0).unwrap(),
        timesteps: rows.iter().map(|&i| batch.timesteps[i]).collect(),
        pictures: rows.iter().map(|&i| batch.pictures[i]).collect(),
    };
    let vectors: Vec<_> = vectors.iter().map(|v| Tensor::new(v.as_slice(), &Device::Cpu).unwrap()).collect();
    let losses = losses(painter, prompts, &part, &vectors).unwrap().to_vec1::<f32>().unwrap();
    losses.iter().map(|&l| l as f64).sum::<f64>() / count as f64
}

/// How far a vector is moved, as a share of its length.
const STEP: f64 = 2e-3;

/// Roundings that part two evaluations of one loss: the mean over a sample's values and the network's output in them.
const ROUNDINGS: f64 = 8.0;

#[test]
fn every_stage_learns_along_the_slope_of_the_loss() {
    let (painter, mut rng) = (painter(), TorchRng::new(3));
    let prompts = Prompts::new(&painter, &lesson()).unwrap();
    // all six stages; the first and the third share their text, the fourth has their stage with the other picture
    let batch = batch(&[345.0, 57.0, 498.0, 334.0, 250.0, 620.0, 700.0, 999.0], &mut rng);
    let vectors = vectors(&painter, &mut rng);
    let (losses, gradient) = gradient(&painter, &prompts, &batch, &vectors).unwrap();
    assert_eq!((losses.len(), gradient.len()), (8, STAGES));

    for (stage, gradient) in gradient.iter().enumerate() {
        let mut directions = vec![gradient.clone()];
        directions.extend((0..2).map(|_| rng.randn(gradient.len()).unwrap().to_vec1().unwrap()));
        for (i, direction) in directions.iter().enumerate() {
            let step = STEP * length(&vectors[stage]);
            let at = |distance: f64| {
                let mut moved = vectors.clone();
                let unit = direction.iter().map(|&d| d as f64 / length(direction));
                moved[stage].iter_mut().zip(unit).for_each(|(v, d)| *v += (distance * d) as f32);
                share_of_loss(&painter, &prompts, &batch, &moved, stage)
            };
            let slope = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            let (near, far) = (slope(step), slope(2.0 * step));
            // a central difference is off by c step^2, so the truth lies a third of their distance beyond the nearer
            let want = near + (near - far) / 3.0;
            let rounding = ROUNDINGS * f32::EPSILON as f64 / 2.0 * at(0.0) / step;
            let tolerance = (near - far).abs() + rounding;
            let got = dot(gradient, direction) / length(direction);
            println!("stage {stage}, direction {i}: {got:.5}, want {want:.5}, tolerance {tolerance:.1e}");
            assert!((got - want).abs() <= tolerance, "stage {stage}, direction {i}: {got}, not {want} ({tolerance:e})");
            assert!(tolerance <= 0.05 * length(gradient), "stage {stage}: a check this loose says nothing");
        }
    }
}

#[test]
fn a_stage_that_was_not_visited_does_not_learn() {
    let (painter, mut rng) = (painter(), TorchRng::new(4));
    let prompts = Prompts::new(&painter, &lesson()).unwrap();
    // the last timestep of stage 0 and the first of stage 2
    let batch = batch(&[166.0, 334.0], &mut rng);
    let (_, gradient) = gradient(&painter, &prompts, &batch, &vectors(&painter, &mut rng)).unwrap();
    for (stage, gradient) in gradient.iter().enumerate() {
        let visited = stage == 0 || stage == 2;
        assert_eq!(gradient.iter().any(|&g| g != 0.0), visited, "stage {stage}");
    }
}

#[test]
fn learning_leaves_the_word_table_as_it_was() {
    let painter = painter();
    let bits = || -> Vec<u32> {
        let words = 0..painter.bundle().text.vocab_size as u32;
        let word = |id| painter.text_encoder().word_vector(id).unwrap().to_vec1::<f32>().unwrap();
        words.flat_map(word).map(f32::to_bits).collect()
    };
    let before = bits();
    let folder = tempfile::tempdir().unwrap();
    let files = Files { checkpoint: folder.path().join("waves.resume"), log: folder.path().join("waves.csv") };
    let mut seen = vec![];
    let learned = learn(&painter, &lesson(), &files, false, &mut |step| {
        seen.push(step.style.vectors.clone());
        Ok(())
    });
    let learned = learned.unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "the style changes");
    assert_eq!(learned.style.vectors, seen[2]);
    assert!(bits() == before, "the word table has changed");
}
