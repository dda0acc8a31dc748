//! `learn`, whole and interrupted: what was learned is never lost.

use super::*;
use pleinair::style::Style;

/// Steps of a lesson that is interrupted: the first checkpoint is at 25, and there is time to interfere after it.
const STEPS: &str = "48";
const OUT: [&str; 4] = ["--steps", STEPS, "--out", "mine.safetensors"];
const CHECKPOINT: &str = "mine.checkpoint.safetensors";

/// The style that a run which nobody interferes with learns.
fn uninterrupted() -> &'static [u8] {
    static STYLE: OnceLock<Vec<u8>> = OnceLock::new();
    STYLE.get_or_init(|| {
        let studio = Studio::new();
        studio.done(&with(&LEARN, &OUT));
        studio.read("mine.safetensors")
    })
}

/// Steps in the loss log.
fn logged(studio: &Studio) -> Vec<usize> {
    let log = String::from_utf8(studio.read("mine.loss.csv")).unwrap();
    assert_eq!(log.lines().next(), Some("step,t_stage,loss,smoothed_loss,seconds"));
    log.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_style_is_learned_and_logged() {
    let studio = Studio::new();
    let more = ["--steps", "3", "--preview-every", "2", "--context", "A painting of a mountain", "--name", "<hills>"];
    let run = studio.done(&with(&LEARN, &with(&more, &["--seed", "9", "--out", "mine.safetensors"])));
    assert_eq!(studio.names(), ["mine-step0002.png", "mine.loss.csv", "mine.loss.png", "mine.safetensors"]);
    assert_eq!(logged(&studio), [1, 2, 3]);
    let style = Style::open(studio.path("mine.safetensors")).unwrap();
    assert_eq!((style.token.as_str(), style.stages(), style.steps, style.seed), ("<hills>", 6, Some(3), Some(9)));
    assert_eq!(style.context, ["A painting of a mountain, in the style of {}"]);

    let events = run.events();
    let kinds: Vec<_> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["learning", "learning", "preview", "learning", "validation", "finished"]);
    assert!(["loss", "smoothed", "seconds"].iter().all(|key| events[0][key].is_f64()), "{events:?}");
    assert_eq!((&events[0]["step"], &events[0]["steps"]), (&1.into(), &3.into()));
    assert!(events[4]["before"].as_f64() > Some(0.0) && events[4]["after"].as_f64() > Some(0.0));

    let plain = studio.done(&with(&LEARN[..7], &["--steps", "1", "--out", "mine.safetensors"]));
    plain.says(&["validation loss", "step 1 of 1", "wrote mine.safetensors"]);
}

#[test]
fn several_pictures_have_a_context_each_or_one_for_all() {
    let studio = Studio::new();
    let base = with(&LEARN, &["--image", PHOTO, "--steps", "1", "--out", "mine.safetensors"]);
    studio.done(&with(&base, &["--context", "A drawing in the style of {}", "hills as in {}"]));
    let style = Style::open(studio.path("mine.safetensors")).unwrap();
    assert_eq!(style.context, ["A drawing in the style of {}", "hills as in {}"]);
    studio.refuses(&with(&base, &["--context", "a", "b", "c"]), 2, &["3 contexts for 2 pictures"]);
}

#[test]
fn a_context_that_is_too_long_is_cut_and_it_is_said() {
    let studio = Studio::new();
    let context = "in the style of {} ".to_owned() + &"boat ".repeat(100);
    let learn = ["learn", "--bundle", TINY, "--image", PHOTO, "--steps", "1", "--batch", "1", "--init", "painting"];
    studio.done(&with(&learn, &["--context", &context, "--out", "mine.safetensors"])).says(&["longer", "it is cut"]);
    let lost = "boat ".repeat(100) + "in the style of {}";
    studio.refuses(&with(&learn, &["--context", &lost, "--out", "b.safetensors"]), 2, &["loses a place for the style"]);
}

#[test]
fn ctrl_c_keeps_what_was_learned_and_resuming_gives_the_same_bytes() {
    let studio = Studio::new();
    let mut run = Watched::start(studio.command(PROGRAM, &with(&LEARN, &OUT)));
    run.wait_for("\"step\":7,");
    run.signal("-INT");
    run.end().failed(130, &["interrupted", CHECKPOINT, "--resume"]);
    assert_eq!(studio.names(), [CHECKPOINT, "mine.loss.csv"]);
    let steps = logged(&studio);
    let last = *steps.last().unwrap();
    assert!(last >= 7 && steps == (1..=last).collect::<Vec<_>>(), "{steps:?}");

    let run = studio.done(&with(&with(&LEARN, &OUT), &["--resume"]));
    // Nothing has proved the last step's vectors good yet, so it is taken again.
    assert_eq!(run.events()[0]["step"], last);
    assert_eq!(studio.names(), ["mine.loss.csv", "mine.loss.png", "mine.safetensors"]);
    assert_eq!(logged(&studio), (1..=48).collect::<Vec<_>>());
    assert_eq!(studio.read("mine.safetensors"), uninterrupted());
}

#[test]
fn a_run_that_was_killed_resumes_from_its_checkpoint_to_the_same_bytes() {
    let studio = Studio::new();
    let mut run = Watched::start(studio.command(PROGRAM, &with(&LEARN, &OUT)));
    // The checkpoint of step 25 is written before step 26 is taken.
    run.wait_for("\"step\":26,");
    run.signal("-KILL");
    assert_eq!(run.end().code, None);
    assert!(studio.exists(CHECKPOINT) && !studio.exists("mine.safetensors"), "{:?}", studio.names());

    let run = studio.done(&with(&with(&LEARN, &OUT), &["--resume"]));
    assert_eq!(run.events()[0]["step"], 26);
    assert_eq!(logged(&studio), (1..=48).collect::<Vec<_>>());
    assert_eq!(studio.read("mine.safetensors"), uninterrupted());
}

/// Everything a lesson can have at once.
const OPTIONS: [&str; 20] = [
    "--lr",
    "0.004,5=0.001",
    "--learn-stages",
    "1..5",
    "--vectors-per-stage",
    "2",
    "--accumulate",
    "2",
    "--min-snr",
    "5",
    "--early-stop",
    "9",
    "--validate-every",
    "10",
    "--validate-prompt",
    "a boat",
    "--validate-image",
    PHOTO,
    "--steps",
    "48",
];

#[test]
fn with_all_options_a_killed_run_resumes_to_the_same_bytes_and_leaves_pictures_and_curves() {
    let base = with(&LEARN, &OPTIONS);
    let whole = Studio::new();
    let run = whole.done(&with(&base, &["--out", "mine.safetensors"]));
    let validated: Vec<_> = run.events().into_iter().filter(|e| e["validation"].is_f64()).collect();
    assert_eq!(validated.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), [10, 20, 30, 40]);
    assert!(validated[3]["stages"][0].is_null() && validated[3]["stages"][3].is_f64(), "{validated:?}");
    let sheets = [10, 20, 30, 40].map(|step| format!("mine.validation/step00{step}.png"));
    let names = ["mine.loss.csv", "mine.loss.png", "mine.safetensors"].map(str::to_owned);
    let names = [&names[..], &sheets[..], &["mine.validation.csv".to_owned()]].concat();
    assert_eq!(whole.names(), names);
    let sheet = image::open(whole.path("mine.validation/step0010.png")).unwrap();
    assert!(sheet.width() > 2 * 64 && sheet.height() > 64, "two pictures and their labels");
    assert_ne!(whole.read("mine.validation/step0010.png"), whole.read("mine.validation/step0040.png"));
    let style = Style::open(whole.path("mine.safetensors")).unwrap();
    assert_eq!((style.vectors_per_stage, style.stages(), style.width()), (2, 6, 32));

    let studio = Studio::new();
    let base = with(&base, &["--out", "mine.safetensors"]);
    let mut run = Watched::start(studio.command(PROGRAM, &base));
    run.wait_for("\"step\":26,");
    run.signal("-KILL");
    run.end();
    let run = studio.done(&with(&base, &["--resume"]));
    assert_eq!(run.events()[0]["step"], 26);
    assert_eq!(studio.read("mine.safetensors"), whole.read("mine.safetensors"));
    let without_seconds = |studio: &Studio, file: &str| -> Vec<String> {
        let text = String::from_utf8(studio.read(file)).unwrap();
        text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect()
    };
    for file in ["mine.loss.csv", "mine.validation.csv"] {
        assert_eq!(without_seconds(&studio, file), without_seconds(&whole, file), "{file}");
    }
    for sheet in sheets {
        assert_eq!(studio.read(&sheet), whole.read(&sheet), "{sheet}");
    }
    // the style of several vectors paints, and can be mixed
    let paint = ["paint", "--bundle", TINY, "--steps", "2", "--style", "mine.safetensors", "--out", "a.png"];
    studio.done(&paint);
    studio.done(&[
        "mix",
        "--stage",
        "5..1=mine.safetensors",
        "--stage",
        "0=off",
        "--bundle",
        TINY,
        "--out",
        "b.safetensors",
    ]);
    let mixed = Style::open(studio.path("b.safetensors")).unwrap();
    assert_eq!((mixed.vectors_per_stage, &mixed.vectors[1..]), (2, &style.vectors[1..]));
    assert_eq!(mixed.vectors[0], style.vectors[0], "stage 0 did not learn");
}

#[test]
fn a_loss_that_explodes_ends_learning_and_the_last_good_checkpoint_stays() {
    let studio = Studio::new();
    // Before there is a checkpoint.
    let run = studio.run(&with(&with(&LEARN, &OUT), &["--lr", "1e30"]));
    run.failed(1, &["loss is not a finite number", "before the first checkpoint", "lower --lr"]);
    assert_eq!(studio.names(), ["mine.loss.csv"]);
    // Even when the last step was the bad one.
    let run = studio.run(&with(&LEARN, &["--steps", "1", "--lr", "3e38", "--out", "mine.safetensors"]));
    run.failed(1, &["validation loss is not a finite number"]);
    assert_eq!(studio.names(), ["mine.loss.csv", "mine.loss.csv.old"]);

    // After one, of which a copy tells whether it stayed as it was.
    let mut run = Watched::start(studio.command(PROGRAM, &with(&LEARN, &OUT)));
    run.wait_for("\"step\":26,");
    run.signal("-KILL");
    run.end();
    let checkpoint = studio.read(CHECKPOINT);
    let run = studio.run(&with(&with(&LEARN, &OUT), &["--resume", "--lr", "1e30"]));
    run.failed(1, &["loss is not a finite number", CHECKPOINT, "--resume and a lower --lr"]);
    assert!(studio.read(CHECKPOINT) == checkpoint, "the checkpoint changed");
    // Nor does a preview that cannot be painted, with vectors that are finite but useless, take its place.
    let previewed = ["--resume", "--lr", "1e30", "--preview-every", "1"];
    assert_eq!(studio.run(&with(&with(&LEARN, &OUT), &previewed)).code, Some(1));
    assert!(studio.read(CHECKPOINT) == checkpoint, "the checkpoint changed");
    // Nor can a lesson end before where it is.
    let shorter = with(&LEARN, &["--steps", "10", "--out", "mine.safetensors", "--resume"]);
    studio.refuses(&shorter, 2, &["is at step 25 already"]);
    studio.done(&with(&with(&LEARN, &OUT), &["--resume"]));
    assert_eq!(studio.read("mine.safetensors"), uninterrupted());
}

#[test]
fn an_unfinished_run_is_kept_when_another_starts_afresh() {
    let studio = Studio::new();
    let mut run = Watched::start(studio.command(PROGRAM, &with(&LEARN, &OUT)));
    run.wait_for("\"step\":1,");
    run.signal("-INT");
    assert_eq!(run.end().code, Some(130));
    let (checkpoint, log) = (studio.read(CHECKPOINT), studio.read("mine.loss.csv"));

    // Not the same lesson: refused, and nothing lost.
    studio.refuses(
        &with(&with(&LEARN, &OUT), &["--resume", "--seed", "1"]),
        1,
        &["another lesson", "leave out --resume"],
    );
    studio.done(&with(&LEARN, &["--steps", "1", "--out", "mine.safetensors"])).says(&[CHECKPOINT, ".old", "--resume"]);
    assert_eq!(studio.read(&format!("{CHECKPOINT}.old")), checkpoint);
    assert_eq!(studio.read("mine.loss.csv.old"), log);
}

#[test]
fn what_cannot_be_resumed_or_taught_is_refused() {
    let studio = Studio::new();
    let base = with(&LEARN, &["--out", "mine.safetensors"]);
    studio.refuses(&with(&base, &["--resume"]), 1, &["no checkpoint to resume"]);
    studio.write(CHECKPOINT, "");
    studio.refuses(&with(&base, &["--resume"]), 1, &[CHECKPOINT, "damaged checkpoint"]);
    for (more, words) in [
        (&["--lr", "0"][..], "learning rate must be a positive number"),
        (&["--lr", "NaN"], "learning rate must be a positive number"),
        (&["--stages", "0"], "number of stages"),
        (&["--lr", "5..3=0.001"], "stage 0 has no learning rate"),
        (&["--lr", "7=0.001,0.1"], "stage 7, of 0 to 5"),
        (&["--lr", "fast"], "write one number, or one for each stage"),
        (&["--learn-stages", "4..9"], "stage 9 is to learn"),
        (&["--vectors-per-stage", "0"], "1 to 75"),
        (&["--accumulate", "0"], "at least 1"),
        (&["--min-snr", "0"], "such as 5"),
        (&["--validate-prompt", "a {house}"], "names a style"),
        (&["--steps", "0"], "at least 1"),
        (&["--init", "watercolourishness"], "where one is needed"),
        (&["--name", "{}"], "no name for a style"),
        (&["--context", "a {"], "without its partner"),
    ] {
        studio.refuses(&with(&base, more), 2, &[words]);
    }
}

#[test]
fn a_caption_is_proposed_as_a_context() {
    let studio = Studio::new();
    let model = studio.copy_model("model");
    let place = model.to_str().unwrap();
    studio.refuses(&["caption", "--bundle", place, PHOTO], 2, &["no captioner", "--context"]);
    copy_folder(&Path::new(TINY).with_file_name("captioners").join("base"), &model.join("captioner"));
    let raw = studio.done(&["caption", "--bundle", place, "--raw", PHOTO]).stdout;
    let context = studio.done(&["caption", "--bundle", place, PHOTO]).stdout;
    assert_eq!(context.trim(), pleinair::side::content::context(&raw));
    assert!(!raw.trim().is_empty() && context.contains("in the style of {}"), "{raw} {context}");
    let text = studio.done(&["doctor", "--bundle", place]).stdout;
    assert!(text.contains("captioner     BLIP") && text.contains("sees 32x32"), "{text}");
    std::fs::write(model.join("captioner/model.safetensors"), "nonsense").unwrap();
    studio.refuses(&["doctor", "--bundle", place], 1, &["captioner/model.safetensors"]);
}

/// By its name alone, as for painting.
#[test]
fn a_style_of_the_model_is_mixed() {
    let studio = Studio::new();
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/models/atelier");
    let file = format!("5..0={bundle}/styles/hiroshige.safetensors");
    let mix =
        |rule: &str, out: &str| studio.done(&["mix", "--bundle", bundle, "--stage", rule, "--name", "m", "--out", out]);
    mix("5..0=hiroshige", "named.safetensors");
    mix(&file, "file.safetensors");
    let vectors = |name: &str| Style::open(studio.path(name)).unwrap().vectors;
    assert_eq!(vectors("named.safetensors"), vectors("file.safetensors"));
    studio.refuses(&["mix", "--bundle", bundle, "--stage", "5..0=nobody", "--out", "x.safetensors"], 1, &["nobody"]);
}
