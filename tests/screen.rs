//! The kiosk without a browser, whole: a button, the folder camera, a real model, and a screen of numbered pictures.

use pleinair::bundle::Bundle;
use pleinair::camera::Frame;
use pleinair::config::Config;
use pleinair::daemon::job::{Event, Kind, Origin};
use pleinair::daemon::store::Page;
use pleinair::daemon::{Daemon, booth};
use pleinair::painter::{Habits, Painter};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `found` finds something.
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the QR code on the screen says, where there is one.
fn code_on(screen: &Path) -> Option<String> {
    let picture = Frame::open(screen.join("latest.png")).ok()?;
    let (width, rgb) = (picture.width(), picture.rgb());
    let grey = |x: usize, y: usize| rgb[(y * width + x) * 3 + 1];
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, picture.height(), grey);
    image.detect_grids().iter().find_map(|grid| grid.decode().ok()).map(|(_, text)| text)
}

#[test]
fn a_press_on_the_button_makes_a_painting_with_a_code_to_take_it_home() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let [button, screen, stills] = ["button", "screen", "stills"].map(|name| folder.path().join(name));
    fs::write(&button, "").unwrap();
    fs::create_dir(&stills).unwrap();
    fs::copy(root.join("tests/fixtures/mountain2.jpg"), stills.join("visitor.jpg")).unwrap();

    let mut config = Config { data: folder.path().join("data"), ..Config::default() };
    config.camera.source = format!("folder:{}", stills.display()).parse().unwrap();
    config.painting.wish.prompt = Some("a house".into());
    config.painting.wish.steps = Some(2);
    config.kiosk.countdown_seconds = 1;
    config.display.surface = Some(format!("pictures:{}", screen.display()));
    (config.display.width, config.display.height) = (Some(480), Some(320));
    config.display.pictures_per_second = 20.0;
    config.display.buttons = vec![format!("fifo:{}", button.display())];

    let painter = Painter::new(Bundle::open(&root.join("tests/fixtures/tiny-sd15")).unwrap()).unwrap();
    let (daemon, mut threads) = Daemon::start(config, painter, Habits::default()).unwrap();
    let mut events = daemon.events().listen();
    let address = |id| Some(format!("http://192.168.1.20:7860/p/{id}"));
    threads.add(booth::start(daemon.clone(), address).unwrap().expect("the configuration has a screen"));

    let press = || OpenOptions::new().append(true).open(&button).unwrap().write_all(b"press\n").unwrap();
    until("the camera", || daemon.viewfinder().latest().ok());
    until("the first picture of the screen", || screen.join("latest.png").is_file().then_some(()));
    let pictures = || fs::read_dir(&screen).unwrap().count();
    press();
    let before = pictures();
    until("the live view", || (pictures() > before).then_some(()));
    press();
    let id = until("the painting", || match events.try_recv().ok()?.event {
        Event::Finished { id, kind: Kind::Painting } => Some(id),
        Event::Failed { error, .. } => panic!("{error}"),
        _ => None,
    });
    assert_eq!(until("the code", || code_on(&screen)), format!("http://192.168.1.20:7860/p/{id}"));
    let paintings = daemon.paintings(&Page { limit: 9, ..Page::default() }).unwrap();
    assert_eq!(
        paintings.iter().map(|painting| (painting.id, painting.origin)).collect::<Vec<_>>(),
        [(id, Origin::Display)]
    );

    daemon.stop();
    assert!(threads.wait(Duration::from_secs(20)), "the threads did not end");
}

#[test]
fn without_a_surface_there_is_no_screen_and_a_wrong_button_is_said_at_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (surface, buttons, expected) in [
        (None, vec![], None),
        (Some("pictures:screen"), vec!["evdev:/dev/input/event0:SPACE".to_owned()], Some("SPACE")),
        (Some("telescope"), vec![], Some("telescope")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data: folder.path().join("data"), ..Config::default() };
        let path = |surface: &str| surface.replace("screen", &folder.path().join("screen").display().to_string());
        config.display.surface = surface.map(path);
        config.display.buttons = buttons;
        let painter = Painter::new(Bundle::open(&root.join("tests/fixtures/tiny-sd15")).unwrap()).unwrap();
        let (daemon, threads) = Daemon::start(config, painter, Habits::default()).unwrap();
        let started = booth::start(daemon.clone(), |_| None);
        match expected {
            None => assert!(started.unwrap().is_none()),
            Some(word) => {
                let refusal = started.map(drop).unwrap_err().to_string();
                assert!(refusal.contains(word), "{refusal}");
            }
        }
        daemon.stop();
        assert!(threads.wait(Duration::from_secs(20)));
    }
}
