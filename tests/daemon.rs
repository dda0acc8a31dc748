//! The daemon without its pages: the queue, what is kept, and what an interruption may not lose.

use pleinair::bundle::Bundle;
use pleinair::camera::Frame;
use pleinair::config::Config;
use pleinair::daemon::job::{Event, Id, Kind, LearningWish, Origin, PaintingWish, State, StyleChange, StyleSource};
use pleinair::daemon::store::{Page, PaintingFile};
use pleinair::daemon::{Daemon, Refused, Threads};
use pleinair::painter::{Habits, Painter, Request};
use pleinair::style::Style;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon with a model that paints 64x64 in no time.
struct Booth {
    folder: TempDir,
    daemon: Daemon,
    threads: Option<Threads>,
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15")
}

fn config(folder: &Path) -> Config {
    let mut config = Config { data: folder.join("data"), ..Config::default() };
    config.queue.paintings = 3;
    config.queue.lessons = 2;
    config.learning.preview_every = 0;
    config
}

impl Booth {
    fn open() -> Booth {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        Booth::with(folder, config)
    }

    fn with(folder: TempDir, config: Config) -> Booth {
        let painter = Painter::new(Bundle::open(&model()).unwrap()).unwrap();
        let (daemon, threads) = Daemon::start(config, painter, Habits::default()).unwrap();
        Booth { folder, daemon, threads: Some(threads) }
    }

    /// Ends the daemon as SIGTERM does.
    fn close(mut self) -> TempDir {
        self.daemon.stop();
        assert!(self.threads.take().unwrap().wait(Duration::from_secs(20)), "the threads did not end");
        self.folder
    }

    fn wait(&self, id: Id, wanted: impl Fn(State) -> bool) -> State {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.daemon.job(id).unwrap().unwrap().state;
            if wanted(state) {
                return state;
            }
            assert!(Instant::now() < end, "still {state:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn finished(&self, id: Id) {
        let state = self.wait(id, State::is_over);
        assert_eq!(state, State::Finished, "{:?}", self.daemon.job(id).unwrap());
    }
}

fn photo() -> Frame {
    Frame::new(80, 64, (0..80 * 64 * 3).map(|i| (i * 7 % 256) as u8).collect()).unwrap()
}

/// Few steps, so that many fit in a test.
fn wish(steps: usize) -> PaintingWish {
    let request = Request {
        styles: vec!["gogh".into()],
        prompt: Some("a house".into()),
        steps: Some(steps),
        seed: Some(1),
        ..Request::default()
    };
    PaintingWish { request, kept: true, ..PaintingWish::default() }
}

fn lesson(steps: usize) -> LearningWish {
    LearningWish {
        name: Some("mine".into()),
        contexts: vec!["A painting of a hill, in the style of {}".into()],
        stages: Some(2),
        steps: Some(steps),
        batch: Some(1),
        seed: Some(3),
        ..LearningWish::default()
    }
}

#[test]
fn a_painting_is_announced_step_by_step_and_kept_whole() {
    let booth = Booth::open();
    let mut events = booth.daemon.events().listen();
    let ticket = booth.daemon.order_painting(wish(5), Some(photo())).unwrap();
    assert_eq!(ticket.position, 0);
    booth.finished(ticket.id);
    // the row says so first; the announcement and tidying follow
    let left = booth.folder.path().join("data/jobs").join(ticket.id.to_string());
    let end = Instant::now() + PATIENCE;
    while left.exists() {
        assert!(Instant::now() < end, "the job's folder is left");
        std::thread::sleep(Duration::from_millis(2));
    }

    let mut told = vec![];
    while let Ok(numbered) = events.try_recv() {
        told.push(numbered.event);
    }
    let names: Vec<_> = told.iter().map(Event::name).collect();
    // 0.8 of five steps are four; a look after the third; learned pictures of the model's styles may come later
    assert_eq!(names[..7], ["queued", "step", "step", "step", "preview", "step", "finished"], "{told:?}");
    assert_eq!(told[5], Event::Step { id: ticket.id, i: 4, n: 4, stage: None });

    let painting = booth.daemon.painting(ticket.id).unwrap().unwrap();
    assert!(painting.has_content && painting.kept);
    assert_eq!(painting.styles, ["gogh"]);
    assert_eq!(painting.recipe["seed"], 1);
    for file in [PaintingFile::Picture, PaintingFile::Thumbnail, PaintingFile::Content] {
        let path = booth.daemon.painting_file(ticket.id, file).unwrap().unwrap();
        let frame = Frame::open(&path).unwrap();
        assert_eq!((frame.width(), frame.height()), (painting.width, painting.height));
    }
    let png = std::fs::read(booth.daemon.painting_file(ticket.id, PaintingFile::Picture).unwrap().unwrap()).unwrap();
    use sha2::Digest;
    let sum: String = sha2::Sha256::digest(&png).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sum, painting.sha256);

    assert!(booth.daemon.delete_painting(ticket.id).unwrap());
    assert!(!booth.daemon.delete_painting(ticket.id).unwrap());
    assert!(booth.daemon.painting(ticket.id).unwrap().is_none());
    assert_eq!(std::fs::read_dir(booth.folder.path().join("data/paintings")).unwrap().count(), 0);
}

#[test]
fn the_queue_has_a_bound_and_jobs_can_be_taken_back() {
    let booth = Booth::open();
    let tickets: Vec<_> = (0..3).map(|_| booth.daemon.order_painting(wish(400), None).unwrap()).collect();
    match booth.daemon.order_painting(wish(1), None) {
        Err(Refused::Full { retry_after_seconds }) => assert!(retry_after_seconds >= 1),
        other => panic!("{other:?}"),
    }
    booth.wait(tickets[0].id, |state| state == State::Running);
    assert_eq!(booth.daemon.job(tickets[2].id).unwrap().unwrap().position, Some(2));
    for ticket in &tickets {
        assert!(booth.daemon.cancel(ticket.id).unwrap());
        assert!(!booth.daemon.cancel(ticket.id).unwrap());
        assert_eq!(booth.daemon.job(ticket.id).unwrap().unwrap().state, State::Cancelled);
    }
    // and the painter is free again
    let next = booth.daemon.order_painting(wish(2), None).unwrap();
    booth.finished(next.id);
    for ticket in &tickets {
        assert_eq!(booth.daemon.job(ticket.id).unwrap().unwrap().state, State::Cancelled);
    }
    assert!(!booth.daemon.cancel(next.id).unwrap(), "what is finished cannot be taken back");
    assert_eq!(booth.daemon.paintings(&Page { limit: 10, ..Page::default() }).unwrap().len(), 1);
}

#[test]
fn impossible_wishes_are_refused_before_they_wait() {
    let booth = Booth::open();
    let refused = |request: Request| {
        let wish = PaintingWish { request, ..PaintingWish::default() };
        assert!(matches!(booth.daemon.order_painting(wish, None), Err(Refused::Fault(_))));
    };
    refused(Request::default());
    refused(Request { steps: Some(0), ..wish(1).request });
    refused(Request { prompt: Some("a {".into()), ..wish(1).request });
    refused(Request { guidance: Some(f64::NAN), ..wish(1).request });
    refused(Request { styles: vec![" ".into()], ..wish(1).request });
    for wish in [
        LearningWish { contexts: vec!["{}".into(), "{}".into()], ..lesson(1) },
        LearningWish { steps: Some(0), ..lesson(1) },
        LearningWish { name: Some("{}".into()), ..lesson(1) },
        LearningWish { init: Some("no such word".into()), ..lesson(1) },
    ] {
        assert!(booth.daemon.order_lesson(wish, Origin::Api, vec![photo()]).is_err());
    }
    assert!(booth.daemon.order_lesson(lesson(1), Origin::Api, vec![]).is_err());
    assert!(booth.daemon.jobs(10).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(booth.folder.path().join("data/jobs")).unwrap().count(), 0);
}

#[test]
fn a_lesson_gives_way_to_paintings_and_its_style_can_be_named_mixed_and_painted_with() {
    let booth = Booth::open();
    let ticket = booth.daemon.order_lesson(lesson(60), Origin::Studio, vec![photo()]).unwrap();
    let end = Instant::now() + PATIENCE;
    while booth.daemon.job(ticket.id).unwrap().unwrap().step == 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(2));
    }
    let painting = booth.daemon.order_painting(wish(2), None).unwrap();
    booth.finished(painting.id);
    assert_eq!(
        booth.daemon.job(ticket.id).unwrap().unwrap().state,
        State::Running,
        "the painting waited for the lesson"
    );
    booth.finished(ticket.id);

    let id = ticket.id.to_string();
    let entry = booth.daemon.style(&id).unwrap().unwrap();
    assert!(!entry.kept && entry.has_picture);
    assert_eq!((entry.source, entry.stages), (StyleSource::Learned, 2));
    assert!(entry.loss_after.unwrap().is_finite());
    assert_eq!(booth.daemon.losses(ticket.id).unwrap().unwrap().len(), 60);

    let change = StyleChange { name: Some("Hills".into()), kept: Some(true), ..StyleChange::default() };
    assert_eq!(booth.daemon.change_style(&id, &change).unwrap().unwrap().name, "Hills");
    let vectors = booth.daemon.style_vectors(&booth.daemon.style("hills").unwrap().unwrap()).unwrap();
    assert_eq!(vectors.token, "Hills");

    let mixed = booth.daemon.mix("mixture", &["1=Hills".into(), "0=off".into()]).unwrap();
    let mixture = booth.daemon.add_style(&mixed, StyleSource::Mix).unwrap();
    assert!(booth.daemon.mix("other", &["1..0=/etc/passwd".into()]).unwrap_err().to_string().contains("no style"));
    let taken = StyleChange { name: Some("HILLS".into()), ..StyleChange::default() };
    assert!(booth.daemon.change_style(&mixture.id, &taken).is_err());

    let mut with_mix = wish(2);
    with_mix.request.styles = vec!["Hills".into()];
    with_mix.mix = vec!["1..0=mixture".into()];
    let ticket = booth.daemon.order_painting(with_mix, None).unwrap();
    booth.finished(ticket.id);
    assert_eq!(booth.daemon.painting(ticket.id).unwrap().unwrap().styles, ["Hills", "mix"]);
    assert!(booth.daemon.delete_style(&mixture.id).unwrap());
    assert!(booth.daemon.style("mixture").unwrap().is_none());

    let foreign = Style { base: "00".repeat(32), ..mixed };
    assert!(booth.daemon.add_style(&foreign, StyleSource::File).is_err());
}

/// The style of an uninterrupted lesson, and of one that was ended and begun again: the same numbers.
#[test]
fn an_end_loses_nothing() {
    let whole = Booth::open();
    let ticket = whole.daemon.order_lesson(lesson(40), Origin::Api, vec![photo()]).unwrap();
    whole.finished(ticket.id);
    let expected = whole.daemon.style_vectors(&whole.daemon.style("mine").unwrap().unwrap()).unwrap();
    drop(whole.close());

    let booth = Booth::open();
    let ticket = booth.daemon.order_lesson(lesson(40), Origin::Api, vec![photo()]).unwrap();
    let end = Instant::now() + PATIENCE;
    while booth.daemon.job(ticket.id).unwrap().unwrap().step < 10 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(2));
    }
    let waiting: Vec<_> = (0..2).map(|_| booth.daemon.order_painting(wish(300), None).unwrap()).collect();
    booth.wait(waiting[0].id, |state| state == State::Running);
    let folder = booth.close();

    let config = config(folder.path());
    let booth = Booth::with(folder, config);
    for ticket in &waiting {
        let job = booth.daemon.job(ticket.id).unwrap().unwrap();
        assert!(!job.state.is_over(), "{job:?}");
        assert!(job.attempts <= 1, "an orderly end does not count as a failed attempt");
    }
    booth.finished(waiting[1].id);
    booth.finished(ticket.id);
    let found = booth.daemon.style_vectors(&booth.daemon.style("mine").unwrap().unwrap()).unwrap();
    assert_eq!(found.vectors, expected.vectors);
    let steps: Vec<_> = booth.daemon.losses(ticket.id).unwrap().unwrap().iter().map(|point| point.step).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
}

#[test]
fn what_crashes_the_program_again_and_again_is_given_up() {
    let booth = Booth::open();
    let folder = booth.folder.path().join("data");
    let folder = (booth.close(), folder);
    let store = pleinair::daemon::store::Store::open(&folder.1).unwrap();
    let id = Id::now();
    store.enqueue(id, Kind::Painting, Origin::Api, &wish(1), 9).unwrap().unwrap();
    for attempt in 1..=3 {
        assert_eq!(store.claim(Kind::Painting).unwrap().unwrap().id, id);
        store.recover(3).unwrap(); // as after a power cut
        let job = store.job(id).unwrap().unwrap();
        assert_eq!(job.attempts, attempt);
        assert_eq!(job.state, if attempt < 3 { State::Queued } else { State::Failed });
    }
    assert!(store.job(id).unwrap().unwrap().error.unwrap().contains("3 times"));
}

/// As versions before control pictures were kept left it.
#[test]
fn an_older_database_is_brought_up_to_date() {
    let booth = Booth::open();
    let ticket = booth.daemon.order_painting(wish(2), Some(photo())).unwrap();
    booth.finished(ticket.id);
    let folder = booth.close();
    let database = rusqlite::Connection::open(folder.path().join("data/pleinair.db")).unwrap();
    database.execute_batch("ALTER TABLE paintings DROP COLUMN controls; PRAGMA user_version = 2").unwrap();
    drop(database);
    let config = config(folder.path());
    let booth = Booth::with(folder, config);
    let painting = booth.daemon.painting(ticket.id).unwrap().unwrap();
    assert!(painting.has_content && painting.controls.is_empty());
    let kept = PaintingWish { save_control: true, ..wish(2) };
    let ticket = booth.daemon.order_painting(kept, Some(photo())).unwrap();
    booth.finished(ticket.id);
    let control = booth.daemon.painting(ticket.id).unwrap().unwrap().controls[0];
    let path = booth.daemon.painting_file(ticket.id, PaintingFile::Control(control)).unwrap().unwrap();
    let painting = booth.daemon.painting(ticket.id).unwrap().unwrap();
    assert_eq!(Frame::open(path).unwrap().width(), painting.width);
    // all its files count where room is made
    let files = std::fs::read_dir(booth.folder.path().join("data/paintings")).unwrap().map(|entry| entry.unwrap());
    let own = files.filter(|entry| entry.file_name().to_string_lossy().starts_with(&ticket.id.to_string()));
    assert_eq!(painting.bytes, own.map(|entry| entry.metadata().unwrap().len()).sum::<u64>());
}

#[test]
fn two_daemons_do_not_share_a_folder_and_left_over_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let data = config.data.clone();
    let booth = Booth::with(folder, config.clone());
    let painter = Painter::new(Bundle::open(&model()).unwrap()).unwrap();
    let refused = Daemon::start(config.clone(), painter, Habits::default()).unwrap_err().to_string();
    assert!(refused.contains("in use by another"), "{refused}");
    let folder = booth.close();

    let id = Id::now();
    let left = [
        data.join(format!("paintings/{id}.png")),
        data.join("paintings/.pleinair-abc.partial"),
        data.join(format!("styles/{id}.safetensors")),
        data.join(format!("jobs/{id}/content.png")),
    ];
    for file in &left {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, b"half").unwrap();
    }
    let booth = Booth::with(folder, config);
    assert!(left.iter().all(|file| !file.exists()));
    drop(booth.close());
}

#[test]
fn a_damaged_or_newer_database_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pleinair.db");
    std::fs::write(&path, b"this is no database, but somebody may want it back".repeat(100)).unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = pleinair::daemon::store::Store::open(folder.path()).unwrap_err().to_string();
    assert!(refused.contains("pleinair.db"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn the_rules_of_retention_hold() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.queue.paintings = 10;
    let booth = Booth::with(folder, config.clone());
    let ids: Vec<_> = (0..4).map(|_| booth.daemon.order_painting(wish(1), None).unwrap().id).collect();
    ids.iter().for_each(|&id| booth.finished(id));
    let bytes = booth.daemon.painting(ids[3]).unwrap().unwrap().bytes;
    let folder = booth.close();
    let store = pleinair::daemon::store::Store::open(&config.data).unwrap();
    let (past, future) = (0, i64::MAX);
    assert!(store.superfluous(past, None, None, None).unwrap().is_empty());
    assert_eq!(store.superfluous(past, None, Some(3), None).unwrap(), [ids[0]]);
    assert_eq!(store.superfluous(past, Some(future), None, None).unwrap().len(), 4);
    assert_eq!(store.superfluous(future, None, None, None).unwrap().len(), 0, "kept paintings do not pass");
    let mut by_bytes = store.superfluous(past, None, None, Some(bytes * 5 / 2)).unwrap();
    by_bytes.sort();
    assert_eq!(by_bytes, ids[..2]);
    assert_eq!(store.superfluous(past, None, None, Some(1)).unwrap().len(), 3, "the newest stays");
    drop(store);
    config.retention.paintings = Some(1);
    let booth = Booth::with(folder, config);
    let end = Instant::now() + PATIENCE;
    while booth.daemon.paintings(&Page { limit: 10, ..Page::default() }).unwrap().len() > 1 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(booth.daemon.painting(ids[3]).unwrap().is_some());
}

#[test]
fn a_lost_camera_is_announced_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let stills = folder.path().join("stills");
    let mut config = config(folder.path());
    config.camera.source = format!("folder:{}", stills.display()).parse().unwrap();
    config.camera.frames.frames_per_second = 30.0;
    config.camera.frames.mirror = true;
    let booth = Booth::with(folder, config);
    let mut events = booth.daemon.events().listen();
    let mut camera = |wanted: bool| {
        let end = Instant::now() + PATIENCE;
        loop {
            match events.try_recv() {
                Ok(numbered) => {
                    if let Event::Camera { up, message } = numbered.event {
                        assert_eq!(up, message.is_none());
                        if up == wanted {
                            break;
                        }
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            assert!(Instant::now() < end, "the camera did not become {wanted}");
        }
    };
    assert!(matches!(booth.daemon.take(), Err(Refused::Camera(_))));
    std::fs::create_dir(&stills).unwrap();
    let frame = photo();
    let canvas = pleinair::canvas::Canvas::from(frame.clone());
    canvas.save(stills.join("a.png"), &Default::default()).unwrap();
    camera(true);
    assert_eq!(booth.daemon.take().unwrap(), frame.flip_horizontal());
    let shot = booth.daemon.viewfinder().latest().unwrap();
    assert!(booth.daemon.viewfinder().next(shot.number, PATIENCE).unwrap().number > shot.number);

    // who begins to listen only now hears how it is
    let announced = |up: bool| match booth.daemon.viewfinder().announced() {
        Some(Event::Camera { up: told, message }) => assert!(told == up && message.is_none() == up),
        other => panic!("{other:?}"),
    };
    announced(true);
    std::fs::remove_dir_all(&stills).unwrap();
    camera(false);
    announced(false);
    std::fs::create_dir(&stills).unwrap();
    canvas.save(stills.join("b.png"), &Default::default()).unwrap();
    camera(true);
    drop(booth.close());
}

#[test]
fn a_disk_that_refuses_is_tried_again_and_then_the_painting_has_failed() {
    let booth = Booth::open();
    let folder = booth.folder.path().join("data/paintings");
    std::fs::remove_dir(&folder).unwrap();
    let lost = booth.daemon.order_painting(wish(2), None).unwrap();
    assert_eq!(booth.wait(lost.id, State::is_over), State::Failed);
    let job = booth.daemon.job(lost.id).unwrap().unwrap();
    assert_eq!(job.attempts, 3);
    let error = job.error.unwrap();
    assert!(error.contains("the disk refused") && !error.contains("data"), "a path of this machine: {error}");

    let late = booth.daemon.order_painting(wish(2), None).unwrap();
    booth.wait(late.id, |state| state == State::Running);
    std::fs::create_dir(&folder).unwrap();
    booth.finished(late.id);
}

#[test]
fn another_camera_is_chosen_and_stays_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let stills = |name: &str, side: usize| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        let frame = Frame::new(side, side, vec![9; side * side * 3]).unwrap();
        pleinair::canvas::Canvas::from(frame).save(place.join("a.png"), &Default::default()).unwrap();
        format!("folder:{}", place.display())
    };
    let (here, there) = (stills("here", 16), stills("there", 24));
    let mut config = config(folder.path());
    config.camera.source = here.parse().unwrap();
    config.camera.others = vec![there.parse().unwrap()];
    let sees = |booth: &Booth, side: usize| {
        let end = Instant::now() + PATIENCE;
        while booth.daemon.take().map(|frame| frame.width()).ok() != Some(side) {
            assert!(Instant::now() < end, "no picture of {side} pixels comes");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let chosen = |booth: &Booth| booth.daemon.cameras().into_iter().find(|camera| camera.chosen).unwrap().id;
    let booth = Booth::with(folder, config.clone());
    sees(&booth, 16);
    assert!(matches!(booth.daemon.choose_camera("folder:/etc"), Err(Refused::Missing("camera"))));
    let mut events = booth.daemon.events().listen();
    booth.daemon.choose_camera(&there).unwrap();
    // from here on nothing is shown of what the other camera sees
    assert_ne!(booth.daemon.take().map(|frame| frame.width()).ok(), Some(16));
    sees(&booth, 24);
    assert!(std::iter::from_fn(|| events.try_recv().ok()).any(|numbered| numbered.event == Event::Settings {}));
    assert_eq!(chosen(&booth), there);

    let folder = booth.close();
    let booth = Booth::with(folder, config.clone());
    assert_eq!(chosen(&booth), there);
    sees(&booth, 24);
    booth.daemon.choose_camera("browser").unwrap();
    assert!(!booth.daemon.has_camera() && booth.daemon.take().is_err());

    // a configuration that names another camera has the last word
    let folder = booth.close();
    (config.camera.source, config.camera.others) = (there.parse().unwrap(), vec![]);
    let booth = Booth::with(folder, config);
    assert_eq!(chosen(&booth), there);
    booth.close();
}
