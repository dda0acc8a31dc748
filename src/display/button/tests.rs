use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};

use super::*;

const TIMING: Timing = Timing { long: Duration::from_millis(300), debounce: Duration::from_millis(10), grab: true };

fn source(written: &str) -> Source {
    written.parse().unwrap()
}

fn next(presses: &Receiver<Pressed>) -> Pressed {
    presses.recv_timeout(Duration::from_secs(20)).expect("a press within 20 s")
}

#[test]
fn sources_are_read_and_written() {
    for (written, expected) in [
        ("evdev:/dev/input/event3:KEY_SPACE", "evdev:/dev/input/event3:KEY_SPACE"),
        ("evdev:/dev/input/event3", "evdev:/dev/input/event3"),
        ("evdev:/dev/input/by-path/pci-0000:00:14.0-event-kbd:BTN_TRIGGER", ""),
        ("evdev:name=Big Red: Button:KEY_ENTER", ""),
        ("evdev:name=Big Red: Button", ""),
        ("gpio:/dev/gpiochip0:17", "gpio:/dev/gpiochip0:17:low"),
        ("gpio:/dev/gpiochip4:0:high", ""),
        ("fifo:/run/a:b", ""),
    ] {
        let found = source(written);
        assert_eq!(found.to_string(), if expected.is_empty() { written } else { expected });
        assert_eq!(source(&found.to_string()), found);
    }
    let expected = Source::Key { device: Device::Name("A: B".to_owned()), key: Some("KEY_A".to_owned()) };
    assert_eq!(source("evdev:name=A: B:KEY_A"), expected);
    assert_eq!(
        source("gpio:/dev/gpiochip0:3:high"),
        Source::Line { chip: "/dev/gpiochip0".into(), offset: 3, low: false }
    );
}

#[test]
fn what_is_no_button_says_why() {
    for (written, why) in [
        ("", "no kind"),
        ("KEY_SPACE", "no kind"),
        ("usb:1", "no kind `usb`"),
        ("evdev:", "no device"),
        ("evdev:name=", "no device"),
        ("evdev:name=:KEY_A", "no device"),
        ("evdev:/dev/input/event3:SPACE", "SPACE is no key"),
        ("gpio:/dev/gpiochip0", "no line"),
        ("gpio:/dev/gpiochip0:x", "`x` is no line"),
        ("gpio:/dev/gpiochip0:17:up", "`up` is no line"),
        ("gpio::4", "no chip"),
        ("fifo:", "no path"),
    ] {
        let refusal = written.parse::<Source>().unwrap_err().to_string();
        assert!(refusal.contains(why) && refusal.contains("gpio:/dev/gpiochip0:17"), "{written}: {refusal}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_key_the_kernel_does_not_know_is_refused_before_anything_starts() {
    let (to, _presses) = sync_channel(1);
    let sources = [source("evdev:/dev/input/event0:KEY_SPACEBAR")];
    let refusal = Buttons::watch(&sources, TIMING, &to).map(drop).unwrap_err().to_string();
    assert!(refusal.contains("KEY_SPACEBAR"), "{refusal}");
    assert!(source("evdev:/dev/input/event0:KEY_SPACE").check().is_ok());
}

#[test]
fn lines_of_a_pipe_that_comes_later_are_presses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("button");
    let (to, presses) = sync_channel(8);
    let never = source("fifo:/nowhere/at/all");
    let _buttons = Buttons::watch(&[never, Source::Pipe(path.clone())], TIMING, &to).unwrap();
    assert!(presses.recv_timeout(Duration::from_millis(100)).is_err());
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    fs::write(&path, "press\nlo").unwrap();
    assert_eq!(next(&presses), Pressed { button: 1, press: Press::Short });
    fs::write(&path, "ng\nnonsense\npress\n").unwrap();
    assert_eq!(next(&presses).press, Press::Long);
    assert_eq!(next(&presses).press, Press::Short);
}

#[test]
fn of_a_file_only_what_is_added_counts() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "long\nlong\n").unwrap();
    let mut pipe = pipe::Pipe::open(file.path()).unwrap();
    let mut append = OpenOptions::new().append(true).open(file.path()).unwrap();
    append.write_all(b"press\n").unwrap();
    assert_eq!(pipe.wait(Duration::ZERO).unwrap(), [Event::Whole(Press::Short)]);
    assert_eq!(pipe.wait(Duration::ZERO).unwrap(), []);
    assert!(pipe::Pipe::open(Path::new("/dev/null")).is_err());
}

#[test]
fn threads_end_when_nobody_wants_their_presses() {
    let began = Instant::now();
    let (to, _presses) = sync_channel(1);
    drop(Buttons::watch(&[source("fifo:/nowhere"), source("fifo:/nowhere/else")], TIMING, &to).unwrap());
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// A button made of what it reports at each wait; then it is lost.
struct Played(Vec<Vec<Event>>);

impl Button for Played {
    fn wait(&mut self, _: Duration) -> io::Result<Vec<Event>> {
        if self.0.is_empty() { Err(io::ErrorKind::NotConnected.into()) } else { Ok(self.0.remove(0)) }
    }
}

#[test]
fn an_open_button_is_followed_until_it_is_lost_or_nobody_listens() {
    let played = || Played(vec![vec![Event::Down], vec![Event::Up], vec![Event::Whole(Press::Long)]]);
    let timing = Timing { debounce: Duration::ZERO, ..TIMING };
    let (mut found, stop) = (Vec::new(), AtomicBool::new(false));
    let lost = follow(&mut played(), timing, &stop, &mut |press| {
        found.push(press);
        true
    });
    assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(found, [Press::Short, Press::Long]);
    assert!(follow(&mut played(), timing, &stop, &mut |_| false).is_ok());
}

/// A keyboard of the kernel's own making, where the system lets us make one.
#[cfg(target_os = "linux")]
#[test]
fn a_virtual_keyboard_presses_the_button() {
    use evdev::uinput::VirtualDevice;
    use evdev::{AttributeSet, EventType, InputEvent, KeyCode};
    let keys = AttributeSet::from_iter([KeyCode::KEY_SPACE, KeyCode::KEY_A]);
    let name = format!("pleinair test {}", std::process::id());
    let made = VirtualDevice::builder().and_then(|new| new.name(&name).with_keys(&keys)).and_then(|new| new.build());
    let mut keyboard = match made {
        Ok(keyboard) => keyboard,
        Err(error) => return println!("NOT RUN: no virtual keyboard can be made here (/dev/uinput: {error})"),
    };
    let (to, presses) = sync_channel(8);
    let _buttons = Buttons::watch(&[source(&format!("evdev:name={name}:KEY_SPACE"))], TIMING, &to).unwrap();
    let mut key = |key: KeyCode, value| keyboard.emit(&[InputEvent::new(EventType::KEY.0, key.0, value)]).unwrap();
    // the thread may find the device a little later
    thread::sleep(Duration::from_secs(2));
    key(KeyCode::KEY_A, 1);
    key(KeyCode::KEY_A, 0);
    key(KeyCode::KEY_SPACE, 1);
    key(KeyCode::KEY_SPACE, 0);
    assert_eq!(next(&presses), Pressed { button: 0, press: Press::Short });
    key(KeyCode::KEY_SPACE, 1);
    assert_eq!(next(&presses).press, Press::Long);
}
