//! Learning against PyTorch: one step's loss, gradients and AdamW update. `tests/reference/learning_step.py` made the
//! fixtures.

mod reference;

use pleinair::camera::Frame;
use pleinair::prompt::Template;
use pleinair::train::{AdamW, Batch, Lesson, Prompts, Study, gradient};
use reference::{MODELS, Reference, painter};

fn lesson(context: &str) -> Lesson {
    let frame = Frame::new(8, 8, vec![128; 192]).unwrap();
    Lesson {
        token: "style".into(),
        studies: vec![Study { frame, context: Template::parse(context).unwrap() }],
        stages: 6,
        steps: 1,
        batch: 4,
        lr: 0.002,
        init: "painting".into(),
        seed: 0,
        license: String::new(),
    }
}

fn batch(reference: &Reference) -> Batch {
    let t = reference.tensor("t").to_vec1::<i64>().unwrap();
    Batch {
        latents: reference.tensor("z"),
        noise: reference.tensor("noise"),
        pictures: vec![0; t.len()],
        timesteps: t.into_iter().map(|t| t as f64).collect(),
    }
}

fn rows(reference: &Reference, name: &str) -> Vec<Vec<f32>> {
    reference.tensor(name).to_vec2().unwrap()
}

fn largest(rows: &[Vec<f32>]) -> f32 {
    rows.iter().flatten().fold(0.0, |max, v| max.max(v.abs()))
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let widths = |m: &[Vec<f32>]| m.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(widths(a), widths(b));
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, |max, d| {
        assert!(d.is_finite());
        f32::max(max, d)
    })
}

#[test]
fn loss_and_gradients_equal_pytorch() {
    for model in MODELS {
        let reference = Reference::open(&format!("{model}-learning"));
        let painter = painter(model);
        let context = reference.recipe["template"].as_str().unwrap();
        let prompts = Prompts::new(&painter, &lesson(context)).unwrap();
        let (losses, grads) = gradient(&painter, &prompts, &batch(&reference), &rows(&reference, "vectors")).unwrap();

        let loss = losses.iter().sum::<f32>() / losses.len() as f32;
        let want = reference.tensor("loss").to_vec0::<f32>().unwrap();
        assert!((loss - want).abs() <= 8.0 * f32::EPSILON * want, "{model}: loss {loss} against {want}");

        let want = rows(&reference, "grads");
        let tolerance = (8.0 * reference.rounding("grads")).max(1e-5 * largest(&want));
        let off = difference(&grads, &want);
        println!("{model}: gradients differ by {off:.2e} of {:.2e} (tolerance {tolerance:.2e})", largest(&want));
        assert!(off <= tolerance, "{model}: gradients differ by {off:.2e}, more than {tolerance:.2e}");
        for stage in [1, 3, 4] {
            assert!(grads[stage].iter().all(|&g| g == 0.0), "stage {stage} is not in the batch");
        }
        for stage in [0, 2, 5] {
            assert!(grads[stage].iter().any(|&g| g != 0.0), "stage {stage} is in the batch");
        }
    }
}

#[test]
fn three_optimiser_steps_equal_pytorch() {
    for model in MODELS {
        let reference = Reference::open(&format!("{model}-learning"));
        let painter = painter(model);
        let context = reference.recipe["template"].as_str().unwrap();
        let prompts = Prompts::new(&painter, &lesson(context)).unwrap();
        let mut vectors = rows(&reference, "vectors");
        let mut adamw = AdamW::new(6, vectors[0].len());

        // from PyTorch's own gradient the update is equal to rounding
        adamw.clone().step(&mut vectors, &rows(&reference, "grads"), 0.002);
        let off = difference(&vectors, &rows(&reference, "vectors.after"));
        assert!(off <= 2.0 * f32::EPSILON, "{model}: AdamW differs by {off:.2e}");

        // three whole steps: AdamW divides by the gradient's size, so where a gradient is rounding noise (below 1e-6 of
        // the largest) the direction is noise too, in PyTorch as here; the losses tell whether the steps were the same
        let mut vectors = rows(&reference, "vectors");
        let losses = reference.tensor("loss3").to_vec1::<f32>().unwrap();
        for want in losses {
            let (losses, grads) = gradient(&painter, &prompts, &batch(&reference), &vectors).unwrap();
            let loss = losses.iter().sum::<f32>() / losses.len() as f32;
            assert!((loss - want).abs() <= 2e-6 * want, "{model}: loss {loss} against {want}");
            adamw.step(&mut vectors, &grads, 0.002);
        }
        let (start, want) = (rows(&reference, "vectors"), rows(&reference, "vectors.after3"));
        let moved = difference(&start, &want);
        let off = difference(&vectors, &want);
        println!("{model}: after three steps {off:.2e} apart, having moved {moved:.2e}");
        assert!(off <= 0.02 * moved, "{model}: after three steps {off:.2e} apart, having moved {moved:.2e}");
    }
}
