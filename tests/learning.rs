//! Learning against PyTorch: one step's loss, gradients and AdamW update. `tests/reference/learning_step.py` made the
//! fixtures.

mod reference;

use pleinair::camera::Frame;
use pleinair::prompt::Template;
use pleinair::train::{
    AdamW, Batch, Files, Lesson, Options, Prompts, Study, gradient, learn, min_snr_weights, weighted_gradient,
};
use reference::{MODELS, Reference, painter};

fn lesson(context: &str) -> Lesson {
    let frame = Frame::new(8, 8, vec![128; 192]).unwrap();
    Lesson {
        token: "style".into(),
        studies: vec![Study { frame, context: Template::parse(context).unwrap() }],
        stages: 6,
        steps: 1,
        batch: 4,
        lr: 0.002.into(),
        init: "painting".into(),
        seed: 0,
        license: String::new(),
        options: Options::default(),
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

fn options(reference: &Reference) -> (pleinair::painter::Painter, Prompts, Vec<Vec<f32>>) {
    let painter = painter("tiny-sd15");
    let lesson = lesson(reference.recipe["template"].as_str().unwrap());
    let lesson = Lesson { options: Options { vectors_per_stage: 2, ..Options::default() }, ..lesson };
    let prompts = Prompts::new(&painter, &lesson).unwrap();
    let vectors = reference.tensor("vectors").flatten_from(1).unwrap().to_vec2().unwrap();
    (painter, prompts, vectors)
}

/// `tests/reference/learning_options.py` made the fixture.
#[test]
fn several_vectors_a_stage_and_min_snr_equal_pytorch() {
    let reference = Reference::open("tiny-sd15-options");
    let samples = batch(&Reference::open("tiny-sd15-learning"));
    let (painter, prompts, vectors) = options(&reference);
    let weights = min_snr_weights(&painter, &samples.timesteps, 5.0).unwrap();
    assert!(weights.iter().any(|&w| w < 0.9) && weights.contains(&1.0), "{weights:?}");
    for (name, weights) in [("grads", None), ("grads.min_snr", Some(&weights[..]))] {
        let (losses, grads) = weighted_gradient(&painter, &prompts, &samples, &vectors, weights).unwrap();
        let want = reference.tensor("losses").to_vec1::<f32>().unwrap();
        for (loss, want) in losses.iter().zip(&want) {
            // whatever the weights; the means of a few hundred squares of what two networks round
            assert!((loss - want).abs() <= 16.0 * f32::EPSILON * want, "{name}: loss {loss} against {want}");
        }
        let want: Vec<Vec<f32>> = reference.tensor(name).flatten_from(1).unwrap().to_vec2().unwrap();
        let tolerance = (8.0 * reference.rounding(name)).max(1e-5 * largest(&want));
        let off = difference(&grads, &want);
        println!("{name}: off by {off:.2e} of {:.2e} (tolerance {tolerance:.2e})", largest(&want));
        assert!(off <= tolerance, "{name} differs by {off:.2e}, more than {tolerance:.2e}");
    }
    let both = [reference.tensor("grads"), reference.tensor("grads.min_snr")];
    let apart = reference::max_difference(&both[0], &both[1]);
    assert!(apart > 0.01 * largest(&rows_of(&both[0])), "the weights must show");
}

fn rows_of(tensor: &candle_core::Tensor) -> Vec<Vec<f32>> {
    tensor.flatten_from(1).unwrap().to_vec2().unwrap()
}

#[test]
fn min_snr_weights_equal_diffusers_in_both_forms() {
    let reference = Reference::open("tiny-sd15-options");
    let t: Vec<f64> = reference.tensor("all_t").to_vec1::<i64>().unwrap().into_iter().map(|t| t as f64).collect();
    let folder = tempfile::tempdir().unwrap();
    for form in ["epsilon", "v_prediction"] {
        // the same model, said to predict otherwise
        let model = folder.path().join(form);
        for part in ["", "unet", "controlnet", "text_encoder", "vae", "tokenizer", "scheduler"] {
            std::fs::create_dir_all(model.join(part)).unwrap();
            for file in reference::model_folder("tiny-sd15").join(part).read_dir().unwrap().map(|f| f.unwrap().path()) {
                if file.is_file() {
                    std::fs::copy(&file, model.join(part).join(file.file_name().unwrap())).unwrap();
                }
            }
        }
        let config = model.join("scheduler/scheduler_config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        json["prediction_type"] = form.into();
        std::fs::write(&config, json.to_string()).unwrap();
        let painter = pleinair::painter::Painter::open(&model).unwrap();
        let got = min_snr_weights(&painter, &t, 5.0).unwrap();
        let want = reference.tensor(&format!("weights.{form}")).to_vec1::<f32>().unwrap();
        for ((got, want), t) in got.iter().zip(&want).zip(&t) {
            // diffusers computes the ratio in f32 from a cumulated product of f32
            assert!((got - f64::from(*want)).abs() <= 1e-5 * f64::from(*want), "{form} at {t}: {got} against {want}");
        }
        assert!(want.iter().any(|&w| w < 0.5) && want.len() > 20);
    }
}

/// The gradient of a mean is the mean of the gradients: parts that are taken together are one large batch.
#[test]
fn accumulated_parts_are_one_large_batch() {
    let reference = Reference::open("tiny-sd15-options");
    let samples = batch(&Reference::open("tiny-sd15-learning"));
    let (painter, prompts, vectors) = options(&reference);
    let (_, whole) = gradient(&painter, &prompts, &samples, &vectors).unwrap();
    let parts = samples.split(2).unwrap();
    assert_eq!(parts.iter().map(|part| part.timesteps.clone()).collect::<Vec<_>>().concat(), samples.timesteps);
    let mut mean = vec![vec![0.0; whole[0].len()]; whole.len()];
    for part in &parts {
        let (_, gradient) = gradient(&painter, &prompts, part, &vectors).unwrap();
        mean.iter_mut().flatten().zip(gradient.iter().flatten()).for_each(|(mean, g)| *mean += g / 2.0);
    }
    let tolerance = 4.0 * reference.rounding("grads").max(f32::EPSILON * largest(&whole));
    let off = difference(&mean, &whole);
    assert!(off <= tolerance, "{off:.2e}, more than {tolerance:.2e}");
    assert_eq!(samples.split(3).unwrap().iter().map(|part| part.timesteps.len()).collect::<Vec<_>>(), [2, 2]);
}

/// A lesson of a few steps on the tiny model.
fn taught(change: impl FnOnce(&mut Lesson)) -> (Vec<Vec<f32>>, Vec<f32>) {
    let painter = painter("tiny-sd15");
    let mut lesson = lesson("A painting of a mountain, in the style of {}");
    lesson.steps = 3;
    change(&mut lesson);
    let folder = tempfile::tempdir().unwrap();
    let files = Files { checkpoint: folder.path().join("a.checkpoint"), log: folder.path().join("a.loss.csv") };
    let learned = learn(&painter, &lesson, &files, false, &mut |_| Ok(())).unwrap();
    let word = painter.text_encoder().word_vector(painter.tokenizer().word(&lesson.init).unwrap()).unwrap();
    (learned.style.vectors, word.to_vec1().unwrap())
}

#[test]
fn a_lesson_in_parts_is_the_lesson_of_the_large_batch() {
    let (whole, word) = taught(|lesson| lesson.batch = 4);
    let (parts, _) = taught(|lesson| (lesson.batch, lesson.options.accumulate) = (2, 2));
    let start = vec![word; 6];
    let (moved, off) = (difference(&whole, &start), difference(&whole, &parts));
    println!("{off:.2e} apart, having moved {moved:.2e}");
    // AdamW turns gradients of rounding noise into whole steps, so not to rounding
    assert!(off <= 0.02 * moved, "{off:.2e} apart, having moved {moved:.2e}");
}

#[test]
fn stages_that_do_not_learn_stay_at_the_word_bit_for_bit() {
    let (vectors, word) = taught(|lesson| lesson.options.learn_stages = Some("1..2,5".parse().unwrap()));
    for (stage, vector) in vectors.iter().enumerate() {
        assert_eq!(*vector != word, [1, 2, 5].contains(&stage), "stage {stage}");
    }
    let (vectors, word) = taught(|lesson| lesson.options.vectors_per_stage = 3);
    assert!(vectors.iter().all(|stage| stage.len() == 3 * word.len()));
    let taught_rows = |stage: &Vec<f32>| stage.chunks(word.len()).filter(|row| **row != word).count();
    assert!(vectors.iter().map(taught_rows).any(|rows| rows == 3), "the rows of a visited stage learn");
}

/// A stage's first step is as long as its rate, whatever its gradient: AdamW divides by the gradient's size.
#[test]
fn each_stage_steps_at_its_rate() {
    let start = vec![vec![1.0f32, -0.5]; 3];
    let gradient = vec![vec![0.3, -2.0]; 3];
    let rates = [Some(0.002), None, Some(0.5)];
    let mut together = start.clone();
    let mut adamw = AdamW::new(3, 2);
    (0..5).for_each(|_| adamw.step_each(&mut together, &gradient, &rates));
    for (stage, rate) in rates.into_iter().enumerate() {
        let mut alone = vec![start[stage].clone()];
        let mut adamw = AdamW::new(1, 2);
        (0..5).for_each(|_| rate.iter().for_each(|&lr| adamw.step(&mut alone, &gradient[..1], lr)));
        assert_eq!(together[stage], alone[0], "stage {stage}");
    }
    assert_eq!(together[1], start[1]);
}

#[test]
fn a_lesson_that_gets_no_better_stops_and_keeps_the_best() {
    let painter = painter("tiny-sd15");
    let mut lesson = lesson("A painting of a mountain, in the style of {}");
    // so fast that after the first steps it only gets worse
    (lesson.steps, lesson.batch, lesson.lr) = (60, 1, 3.0.into());
    (lesson.options.validate_every, lesson.options.early_stop) = (Some(2), Some(2));
    let folder = tempfile::tempdir().unwrap();
    let files = Files { checkpoint: folder.path().join("a.checkpoint"), log: folder.path().join("a.loss.csv") };
    let mut seen: Vec<(usize, f32, Vec<Vec<f32>>)> = vec![];
    let learned = learn(&painter, &lesson, &files, false, &mut |step| {
        seen.extend(step.validation.map(|loss| (step.step, loss, step.style.vectors.clone())));
        Ok(())
    });
    let learned = learned.unwrap();
    let (best_step, best, vectors) = seen.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let stopped = learned.stopped.expect("it stops");
    assert_eq!((stopped, seen.last().unwrap().0), (best_step + 4, stopped), "two evaluations after the best");
    assert_eq!(
        (learned.style.steps, learned.loss_after, &learned.style.vectors),
        (Some(*best_step as u64), *best, vectors)
    );
    let log = std::fs::read_to_string(files.validation()).unwrap();
    let rows: Vec<usize> = log.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(rows, seen.iter().map(|(step, ..)| *step).collect::<Vec<_>>());
    // what is resumed is over
    let again = learn(&painter, &lesson, &files, true, &mut |_| panic!("no step is left")).unwrap();
    assert_eq!(again.style, learned.style);
}
