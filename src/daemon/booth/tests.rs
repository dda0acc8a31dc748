//! The flow with a pretended daemon and a pretended clock.

use super::*;
use std::cell::{Cell, RefCell};

fn frame(level: u8) -> Arc<Frame> {
    Arc::new(Frame::new(64, 64, vec![level; 64 * 64 * 3]).unwrap())
}

/// What the daemon would say; the test sets it.
struct Pretended {
    camera: RefCell<Option<Arc<Frame>>>,
    styles: Vec<String>,
    full: Cell<bool>,
    ordered: RefCell<Vec<Option<String>>>,
    standing: RefCell<Standing>,
    id: Id,
}

impl Studio for &Pretended {
    fn camera(&self) -> Option<Arc<Frame>> {
        self.camera.borrow().clone()
    }

    fn styles(&self) -> Result<Vec<String>> {
        Ok(self.styles.clone())
    }

    fn order(&self, style: Option<&str>, _: Frame) -> Result<Id, Refused> {
        if self.full.get() {
            return Err(Refused::Full { retry_after_seconds: 9 });
        }
        self.ordered.borrow_mut().push(style.map(str::to_owned));
        Ok(self.id)
    }

    fn standing(&self, id: Id) -> Result<Standing> {
        assert_eq!(id, self.id);
        Ok(self.standing.borrow().clone())
    }

    fn preview(&self, _: Id) -> Option<Arc<Frame>> {
        Some(frame(77))
    }

    fn painting(&self, _: Id) -> Result<Arc<Frame>> {
        Ok(frame(99))
    }

    fn address(&self, id: Id) -> Option<String> {
        Some(format!("http://192.168.1.20:7860/p/{id}"))
    }

    fn slide(&self, number: usize) -> Result<Option<Slide>> {
        Ok(Some(Slide { picture: frame(number as u8 + 1), style: None }))
    }
}

fn pretended() -> Pretended {
    Pretended {
        camera: RefCell::new(Some(frame(50))),
        styles: ["oil", "ink", "wood"].map(str::to_owned).to_vec(),
        full: Cell::new(false),
        ordered: RefCell::default(),
        standing: RefCell::new(Standing::Waiting(2)),
        id: Id::now(),
    }
}

fn booth(studio: &Pretended, hold_to_take: bool) -> Booth<&Pretended> {
    let seconds = Duration::from_secs;
    let times = Times { countdown: seconds(3), timeout: seconds(60), slide: seconds(8) };
    Booth::new(studio, times, Habits { hold_to_take, mirror: true })
}

fn at(booth: &mut Booth<&Pretended>, seconds: f64) {
    booth.tick(Duration::from_secs_f64(seconds));
}

/// The scene in a few words.
fn seen(booth: &Booth<&Pretended>) -> String {
    booth.show(&Strings::of("en").unwrap(), |scene| match scene {
        Scene::Idle { picture, .. } => format!("idle {}", picture.is_some()),
        Scene::Live { styles, chosen, hold_to_take, .. } => {
            format!("live {} of {} {hold_to_take}", styles.get(*chosen).map_or("", String::as_str), styles.len())
        }
        Scene::Countdown { seconds_left, .. } => format!("countdown {seconds_left}"),
        Scene::Painting { progress, style, before, .. } => format!("painting {style} {progress} {before:?}"),
        Scene::Result { qr, seconds_left, .. } => format!("result {} {seconds_left}", qr.is_some()),
        Scene::Message { title, .. } => format!("message {title}"),
    })
}

#[test]
fn a_visitor_chooses_a_style_and_gets_a_painting() {
    let studio = pretended();
    let mut booth = booth(&studio, true);
    at(&mut booth, 0.0);
    assert_eq!(seen(&booth), "idle true");
    booth.pressed(Press::Short);
    assert_eq!(seen(&booth), "live oil of 3 true");
    booth.pressed(Press::Short);
    assert_eq!(seen(&booth), "live ink of 3 true");
    at(&mut booth, 10.0);
    booth.pressed(Press::Long);
    assert_eq!(seen(&booth), "countdown 3");
    at(&mut booth, 11.5);
    assert_eq!(seen(&booth), "countdown 2");
    booth.pressed(Press::Short);
    assert!(studio.ordered.borrow().is_empty());
    at(&mut booth, 13.0);
    assert_eq!(*studio.ordered.borrow(), [Some("ink".to_owned())]);
    at(&mut booth, 13.1);
    assert_eq!(seen(&booth), "painting ink 0 Some(2)");
    let id = studio.id;
    booth.happened(&Event::Step { id, i: 1, n: 4, stage: None });
    assert_eq!(seen(&booth), "painting ink 0.25 None");
    booth.happened(&Event::Step { id: Id::now(), i: 3, n: 4, stage: None });
    assert_eq!(seen(&booth), "painting ink 0.25 None");
    booth.happened(&Event::Preview { id, kind: Kind::Painting, version: 1 });
    assert!(matches!(&booth.stage, Stage::Painting { picture, .. } if picture.rgb()[0] == 77));
    *studio.standing.borrow_mut() = Standing::Finished;
    booth.happened(&Event::Finished { id, kind: Kind::Painting });
    at(&mut booth, 20.0);
    assert_eq!(seen(&booth), "result true 60");
    at(&mut booth, 79.9);
    assert_eq!(seen(&booth), "result true 1");
    at(&mut booth, 80.0);
    at(&mut booth, 80.1);
    assert_eq!(seen(&booth), "idle true");
}

#[test]
fn with_one_kind_of_press_every_visitor_gets_the_next_style() {
    let studio = pretended();
    let mut booth = booth(&studio, false);
    for (round, style) in ["oil", "ink", "wood", "oil"].into_iter().enumerate() {
        let start = round as f64 * 1000.0;
        at(&mut booth, start);
        booth.pressed(Press::Short);
        assert_eq!(seen(&booth), format!("live {style} of 1 false"));
        booth.pressed(Press::Short);
        *studio.standing.borrow_mut() = Standing::Finished;
        at(&mut booth, start + 3.0);
        at(&mut booth, start + 3.1);
        at(&mut booth, start + 500.0);
    }
    assert_eq!(studio.ordered.borrow().len(), 4);
}

#[test]
fn whoever_walks_away_leaves_the_start_behind() {
    let studio = pretended();
    let mut booth = booth(&studio, true);
    booth.pressed(Press::Short);
    at(&mut booth, 59.0);
    booth.pressed(Press::Short);
    at(&mut booth, 118.0);
    assert_eq!(seen(&booth), "live ink of 3 true");
    at(&mut booth, 119.0);
    assert_eq!(seen(&booth), "idle false");
}

#[test]
fn slides_follow_each_other() {
    let studio = pretended();
    let mut booth = booth(&studio, true);
    let mut levels = vec![];
    for tenths in 0..250 {
        at(&mut booth, f64::from(tenths) / 10.0);
        if let Stage::Idle { slide: Some(slide), .. } = &booth.stage {
            levels.push(slide.picture.rgb()[0]);
        }
    }
    levels.dedup();
    assert_eq!(levels, [1, 2, 3, 4]);
}

#[test]
fn a_lost_camera_a_full_queue_and_a_failure_are_said() {
    let studio = pretended();
    let mut booth = booth(&studio, true);
    booth.pressed(Press::Short);
    *studio.camera.borrow_mut() = None;
    at(&mut booth, 1.0);
    assert_eq!(seen(&booth), "message No picture from the camera");
    booth.pressed(Press::Short);
    booth.pressed(Press::Short);
    assert_eq!(seen(&booth), "message No picture from the camera");
    *studio.camera.borrow_mut() = Some(frame(50));
    at(&mut booth, 9.0);
    at(&mut booth, 9.1);
    assert_eq!(seen(&booth), "idle true");

    studio.full.set(true);
    booth.pressed(Press::Short);
    booth.pressed(Press::Long);
    at(&mut booth, 13.0);
    assert_eq!(seen(&booth), "message So many visitors");
    studio.full.set(false);
    at(&mut booth, 30.0);
    booth.pressed(Press::Short);
    booth.pressed(Press::Long);
    *studio.standing.borrow_mut() = Standing::Over;
    at(&mut booth, 33.0);
    at(&mut booth, 33.1);
    assert_eq!(seen(&booth), "message That did not work");
}

#[test]
fn missed_events_are_made_up_for() {
    let studio = pretended();
    let mut booth = booth(&studio, true);
    booth.pressed(Press::Short);
    booth.pressed(Press::Long);
    at(&mut booth, 3.0);
    at(&mut booth, 3.1);
    *studio.standing.borrow_mut() = Standing::Finished;
    at(&mut booth, 8.0);
    assert_eq!(seen(&booth), "painting oil 0 Some(2)");
    at(&mut booth, 8.2);
    assert_eq!(seen(&booth), "result true 60");
}

#[test]
fn the_live_view_is_a_mirror_and_the_photograph_is_not() {
    let studio = pretended();
    let pixels: Vec<u8> = [[1u8; 3], [2; 3]].concat();
    *studio.camera.borrow_mut() = Some(Arc::new(Frame::new(2, 1, pixels.clone()).unwrap()));
    let mut booth = booth(&studio, true);
    booth.pressed(Press::Short);
    let seen = |booth: &Booth<&Pretended>| {
        booth.show(&Strings::of("en").unwrap(), |scene| match scene {
            Scene::Live { frame, .. } => frame.rgb().to_vec(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(seen(&booth), [2, 2, 2, 1, 1, 1]);
    booth.habits.mirror = false;
    assert_eq!(seen(&booth), pixels);
    booth.habits.mirror = true;
    booth.pressed(Press::Long);
    at(&mut booth, 3.0);
    assert!(matches!(&booth.stage, Stage::Painting { picture, .. } if picture.rgb() == pixels));
}

/// Every state on a real screen, in both languages.
#[test]
fn every_state_can_be_drawn() {
    for language in ["en", "de"] {
        let studio = pretended();
        let strings = Strings::of(language).unwrap();
        let mut screen = Screen::in_memory(800, 480, strings.clone()).unwrap();
        let mut booth = booth(&studio, true);
        let mut pictures = vec![];
        let mut draw = |booth: &Booth<&Pretended>| {
            booth.show(&strings, |scene| screen.draw(scene)).unwrap();
            pictures.push(screen.picture());
        };
        at(&mut booth, 0.0);
        draw(&booth);
        booth.pressed(Press::Short);
        draw(&booth);
        booth.pressed(Press::Long);
        draw(&booth);
        at(&mut booth, 3.0);
        at(&mut booth, 3.1);
        draw(&booth);
        *studio.standing.borrow_mut() = Standing::Finished;
        booth.happened(&Event::Finished { id: studio.id, kind: Kind::Painting });
        at(&mut booth, 4.0);
        draw(&booth);
        booth.message(Message::Error);
        draw(&booth);
        for (i, picture) in pictures.iter().enumerate() {
            assert!(pictures[i + 1..].iter().all(|other| other != picture), "state {i} looks like another");
        }
        assert_eq!(pictures.len(), 6);
    }
}
