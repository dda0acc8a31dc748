//! Where everything of a [`Scene`] goes on a screen of a given size, as a list of [`Item`]s that only has to be painted.
//!
//! A wide screen has its picture on the left and a panel on the right, a high one the picture above. All lengths follow
//! the shorter side, so that text is as legible on 800x480 as on 1920x1080.

use embedded_graphics::prelude::{Point, Size};
use embedded_graphics::primitives::Rectangle;
use qrcode::{EcLevel, QrCode};

use super::scale::fit;
use super::text::{Block, Fonts, Room, Weight};
use super::{Picture, Scene};
use crate::error::{Error, Result};
use crate::strings::Strings;

/// White modules around a QR code (ISO/IEC 18004).
const QUIET_ZONE: usize = 4;
/// Light of the live view under the countdown's number, of 255.
const DIMMED: u8 = 110;

/// What a colour is for; the theme says which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// What is read first.
    Text,
    /// What is read second.
    Muted,
    /// The one colour.
    Accent,
    /// On top of [`Ink::Accent`].
    OnAccent,
    /// Somewhat lighter than the background.
    Panel,
}

/// One thing to paint, in pixels of the screen.
pub(super) enum Item<'a> {
    /// A picture stretched over `area`, with `light` of 255.
    Picture { area: Rectangle, picture: Picture<'a>, light: u8 },
    /// A filled rectangle with round corners.
    Round { area: Rectangle, radius: u32, ink: Ink },
    /// A ring inside the square `area`, `progress` of 1 of it in the accent.
    Ring { area: Rectangle, stroke: u32, progress: f32 },
    /// A QR code with its quiet zone over the whole of `area`, every module `module` pixels wide.
    Code { area: Rectangle, module: u32, code: QrCode },
    /// Text centred in `area`.
    Text { area: Rectangle, block: Block, ink: Ink },
}

/// The lengths of one screen, in pixels.
#[derive(Clone, Copy)]
struct Measures {
    width: u32,
    height: u32,
    margin: u32,
    /// Size of running text.
    body: f32,
}

impl Measures {
    fn of(size: Size) -> Measures {
        let short = size.width.min(size.height) as f32;
        Measures { width: size.width, height: size.height, margin: (short / 20.0) as u32, body: short / 18.0 }
    }

    fn wide(&self) -> bool {
        self.width > self.height
    }

    fn whole(&self) -> Rectangle {
        Rectangle::new(Point::zero(), Size::new(self.width, self.height))
    }

    /// The smallest text that is still read from two metres.
    fn smallest(&self) -> f32 {
        self.body * 0.62
    }

    /// The stage for a picture of the size `picture`, and the panel beside or below it, both without their margins.
    fn stage_and_panel(&self, picture: Size) -> (Rectangle, Rectangle) {
        let (m, picture) = (self.margin, Size::new(picture.width.max(1), picture.height.max(1)));
        let proportions = picture.width as f32 / picture.height as f32;
        if self.wide() {
            let (inner, room) = (self.height - 2 * m, self.width - 3 * m);
            let wanted = (inner as f32 * proportions) as u32;
            let stage = wanted.clamp(room * 45 / 100, room * 66 / 100);
            let panel = Point::new((2 * m + stage) as i32, m as i32);
            (rectangle(m, m, stage, inner), Rectangle::new(panel, Size::new(room - stage, inner)))
        } else {
            let (inner, room) = (self.width - 2 * m, self.height - 3 * m);
            let wanted = (inner as f32 / proportions) as u32;
            let stage = wanted.clamp(room * 35 / 100, room * 60 / 100);
            (rectangle(m, m, inner, stage), rectangle(m, 2 * m + stage, inner, room - stage))
        }
    }

    /// The live view's stage, over the whole width, and the bar below it, without its margins.
    fn stage_and_bar(&self) -> (Rectangle, Rectangle) {
        let bar = (self.body * 4.6) as u32;
        let bar = if self.wide() { bar } else { bar * 3 / 2 };
        let stage = self.height - bar;
        let inner = rectangle(self.margin, stage + self.margin / 2, self.width - 2 * self.margin, bar - self.margin);
        (rectangle(0, 0, self.width, stage), inner)
    }
}

fn rectangle(x: u32, y: u32, width: u32, height: u32) -> Rectangle {
    Rectangle::new(Point::new(x as i32, y as i32), Size::new(width, height))
}

/// One piece of a stack, from the top.
enum Piece {
    /// Text at this many sizes of running text.
    Text { text: String, size: f32, weight: Weight, ink: Ink },
    /// Text on a pill of the accent.
    Call { text: String },
    /// A ring with text inside that takes what room is left, up to `most` sizes of running text.
    Ring { progress: f32, text: String, most: f32 },
    /// A QR code that takes what room is left.
    Code { code: QrCode },
    /// Empty, in sizes of running text.
    Gap(f32),
}

/// Turns scenes into items with these fonts and texts.
pub(super) struct Composer<'s> {
    pub(super) fonts: &'s Fonts,
    pub(super) strings: &'s Strings,
}

impl Composer<'_> {
    /// Where everything of `scene` goes on a screen of `size` pixels.
    ///
    /// # Errors
    /// [`Error::Usage`] when an address is too long for a QR code.
    pub(super) fn compose<'a>(&self, scene: &Scene<'a>, size: Size) -> Result<Vec<Item<'a>>> {
        let m = Measures::of(size);
        Ok(match *scene {
            Scene::Idle { picture, style } => self.idle(m, picture, style),
            Scene::Live { frame, styles, chosen, hold_to_take } => {
                self.live(m, frame, styles, chosen.min(styles.len().saturating_sub(1)), hold_to_take)
            }
            Scene::Countdown { frame, seconds_left } => self.countdown(m, frame, seconds_left),
            Scene::Painting { picture, progress, style, before } => self.painting(m, picture, progress, style, before),
            Scene::Result { picture, qr, seconds_left } => self.result(m, picture, qr, seconds_left)?,
            Scene::Message { title, text } => self.message(m, title, text),
        })
    }

    fn idle<'a>(&self, m: Measures, picture: Option<Picture<'a>>, style: Option<&str>) -> Vec<Item<'a>> {
        let mut pieces = vec![self.title(self.strings.get("display.title")), Piece::Gap(0.5)];
        if let (Some(style), Some(_)) = (style, picture) {
            pieces.extend([self.style(style), Piece::Gap(0.7)]);
        }
        pieces.extend([Piece::Gap(0.6), Piece::Call { text: self.strings.get("display.press").to_owned() }]);
        let Some(picture) = picture else { return self.stack(m, message_area(m), pieces) };
        let (stage, panel) = m.stage_and_panel(picture.size());
        let mut items = vec![framed(picture, stage)];
        items.extend(self.stack(m, panel, pieces));
        items
    }

    fn live<'a>(
        &self,
        m: Measures,
        frame: Picture<'a>,
        styles: &[String],
        chosen: usize,
        hold_to_take: bool,
    ) -> Vec<Item<'a>> {
        let (stage, bar) = m.stage_and_bar();
        let mut items = vec![framed(frame, stage)];
        let hint = self.strings.get(if hold_to_take { "display.hint.choose" } else { "display.hint.take" });
        let chips = (m.body * 1.9) as u32;
        if styles.is_empty() {
            items.extend(self.line(m, bar, hint, 1.0, Ink::Text));
            return items;
        }
        let rows = bar.size.height - chips;
        let row = Rectangle::new(bar.top_left, Size::new(bar.size.width, chips));
        items.extend(self.chips(m, row, styles, chosen));
        let below = bar.top_left + Point::new(0, chips as i32);
        let dots = if styles.len() > 1 { m.margin } else { 0 };
        items.extend(dots_of(m, Rectangle::new(below, Size::new(bar.size.width, dots)), styles.len(), chosen));
        let hint_area = below + Point::new(0, dots as i32);
        let area = Rectangle::new(hint_area, Size::new(bar.size.width, rows - dots));
        items.extend(self.line(m, area, hint, 0.85, Ink::Muted));
        items
    }

    /// The chosen style's chip in the middle of `row`, the next ones to its right and the last ones to its left, in a
    /// circle, as far as there is room.
    fn chips<'a>(&self, m: Measures, row: Rectangle, styles: &[String], chosen: usize) -> Vec<Item<'a>> {
        let (gap, inset) = ((m.body * 0.5) as i32, (m.body * 0.8) as u32);
        let most = row.size.width.min((m.body * 16.0) as u32);
        let chip = |index: usize| {
            let weight = if index == chosen { Weight::SemiBold } else { Weight::Regular };
            let height = (m.body * 1.3) as u32; // one line
            let room = Room { width: most - 2 * inset, height, size: m.body * 0.9, smallest: m.smallest() };
            self.fonts.lay_out(weight, &one_line(&styles[index]), room)
        };
        let wide = |block: &Block| block.width as i32 + 2 * inset as i32;
        let place = |left: i32, block: Block, is_chosen: bool| {
            let size = Size::new(wide(&block) as u32, row.size.height);
            let area = Rectangle::new(Point::new(left, row.top_left.y), size);
            let (ground, ink) = if is_chosen { (Ink::Accent, Ink::OnAccent) } else { (Ink::Panel, Ink::Text) };
            [Item::Round { area, radius: row.size.height / 2, ink: ground }, Item::Text { area, block, ink }]
        };
        let block = chip(chosen);
        let middle = row.center().x;
        let (mut left, mut right) = (middle - wide(&block) / 2, middle + wide(&block) / 2);
        let mut items = Vec::from(place(left, block, true));
        let end = row.top_left.x + row.size.width as i32;
        for step in 1..styles.len() {
            let to_right = step % 2 == 1;
            let away = step.div_ceil(2);
            let index = (chosen + if to_right { away } else { styles.len() - away }) % styles.len();
            let block = chip(index);
            let taken = gap + wide(&block);
            if (to_right && right + taken > end) || (!to_right && left - taken < row.top_left.x) {
                break;
            }
            let at = if to_right { right + gap } else { left - taken };
            (left, right) = if to_right { (left, right + taken) } else { (left - taken, right) };
            items.extend(place(at, block, false));
        }
        items
    }

    fn countdown<'a>(&self, m: Measures, frame: Picture<'a>, seconds_left: u32) -> Vec<Item<'a>> {
        let (stage, bar) = m.stage_and_bar();
        let area = fit(frame.size(), stage);
        let light = if seconds_left > 0 { DIMMED } else { 255 };
        let mut items = vec![Item::Picture { area, picture: frame, light }];
        if seconds_left > 0 {
            let (width, height) = (area.size.width, area.size.height);
            let room = Room { width, height, size: height as f32 * 0.7, smallest: m.body };
            let block = self.fonts.lay_out(Weight::SemiBold, &seconds_left.to_string(), room);
            items.push(Item::Text { area, block, ink: Ink::Text });
        }
        items.extend(self.line(m, bar, self.strings.get("display.look"), 1.6, Ink::Text));
        items
    }

    fn painting<'a>(
        &self,
        m: Measures,
        picture: Option<Picture<'a>>,
        progress: f32,
        style: &str,
        before: Option<usize>,
    ) -> Vec<Item<'a>> {
        let (stage, panel) = m.stage_and_panel(picture.map_or(Size::new(1, 1), |picture| picture.size()));
        let mut items = match picture {
            Some(picture) => vec![framed(picture, stage)],
            None => vec![Item::Round { area: fit(Size::new(1, 1), stage), radius: m.margin / 3, ink: Ink::Panel }],
        };
        let waiting = match before {
            Some(0) => Some(self.strings.get("display.next").to_owned()),
            Some(n) => Some(self.strings.fill("display.queue", &[("n", &n.to_string())])),
            None => None,
        };
        let mut pieces = Vec::new();
        match waiting {
            Some(text) => pieces.push(self.title(&text)),
            None => {
                let percent = (progress.clamp(0.0, 1.0) * 100.0).floor().to_string();
                let text = self.strings.fill("display.percent", &[("n", &percent)]);
                pieces.push(self.title(self.strings.get("display.painting")));
                pieces.extend([Piece::Gap(0.8), Piece::Ring { progress, text, most: 8.0 }]);
            }
        }
        if !style.is_empty() {
            pieces.extend([Piece::Gap(0.8), self.style(style)]);
        }
        items.extend(self.stack(m, panel, pieces));
        items
    }

    fn result<'a>(
        &self,
        m: Measures,
        picture: Picture<'a>,
        qr: Option<&str>,
        seconds_left: u32,
    ) -> Result<Vec<Item<'a>>> {
        let (stage, panel) = m.stage_and_panel(picture.size());
        let mut pieces = vec![self.title(self.strings.get("display.yours"))];
        if let Some(address) = qr {
            // a screen has no stains: the least correction makes the largest modules
            let code = QrCode::with_error_correction_level(address, EcLevel::L)
                .map_err(|e| Error::Usage(format!("{address} is no address for a QR code ({e}); use a shorter one")))?;
            let text = self.strings.get("display.scan").to_owned();
            let scan = Piece::Text { text, size: 1.0, weight: Weight::Regular, ink: Ink::Text };
            pieces.extend([Piece::Gap(0.6), Piece::Code { code }, Piece::Gap(0.4), scan]);
        }
        let text = self.strings.fill("display.back", &[("n", &seconds_left.to_string())]);
        pieces.extend([Piece::Gap(0.6), Piece::Text { text, size: 0.8, weight: Weight::Regular, ink: Ink::Muted }]);
        let mut items = vec![framed(picture, stage)];
        items.extend(self.stack(m, panel, pieces));
        Ok(items)
    }

    fn message<'a>(&self, m: Measures, title: &str, text: &str) -> Vec<Item<'a>> {
        let text = Piece::Text { text: text.to_owned(), size: 1.1, weight: Weight::Regular, ink: Ink::Muted };
        self.stack(m, message_area(m), vec![self.title(title), Piece::Gap(0.7), text])
    }

    fn title(&self, text: &str) -> Piece {
        Piece::Text { text: text.to_owned(), size: 1.7, weight: Weight::SemiBold, ink: Ink::Text }
    }

    fn style(&self, style: &str) -> Piece {
        let text = self.strings.fill("display.style", &[("style", style)]);
        Piece::Text { text, size: 0.95, weight: Weight::Regular, ink: Ink::Muted }
    }

    /// One text in the middle of `area`.
    fn line<'a>(&self, m: Measures, area: Rectangle, text: &str, size: f32, ink: Ink) -> Option<Item<'a>> {
        let Size { width, height } = area.size;
        let room = Room { width, height, size: m.body * size, smallest: m.smallest() };
        let block = self.fonts.lay_out(Weight::SemiBold, text, room);
        Some(Item::Text { area, block, ink })
    }

    /// The pieces below each other in the middle of `area`, all text smaller until everything fits.
    fn stack<'a>(&self, m: Measures, area: Rectangle, pieces: Vec<Piece>) -> Vec<Item<'a>> {
        let mut scale = 1.0;
        loop {
            let smaller = Measures { body: m.body * scale, ..m };
            let laid: Vec<Laid> = pieces.iter().map(|piece| self.lay(m, smaller, area.size, piece)).collect();
            let fixed: u32 = laid.iter().map(|laid| laid.height).sum();
            let least: u32 = laid.iter().map(|laid| laid.least).sum();
            let cut = laid.iter().any(|laid| laid.block.as_ref().is_some_and(|block| block.cut));
            if (fixed + least <= area.size.height && !cut) || smaller.body <= m.smallest() {
                return place(smaller, area, pieces, laid);
            }
            scale *= 0.93;
        }
    }

    /// How high `piece` is in `room`, at the sizes of `smaller`.
    fn lay(&self, m: Measures, smaller: Measures, room: Size, piece: &Piece) -> Laid {
        let text = |text: &str, size: f32, weight: Weight, inset: u32| {
            let size = (smaller.body * size).max(m.smallest() * 0.85);
            let (width, smallest) = (room.width - inset, m.smallest().min(size));
            self.fonts.lay_out(weight, text, Room { width, height: room.height, size, smallest })
        };
        match piece {
            Piece::Text { text: words, size, weight, .. } => Laid::text(text(words, *size, *weight, 0), 0),
            Piece::Call { text: words } => {
                let block = text(words, 1.1, Weight::SemiBold, (smaller.body * 2.0) as u32);
                Laid::text(block, (smaller.body * 0.9) as u32)
            }
            Piece::Ring { text: words, most, .. } => {
                let least = (smaller.body * 4.5) as u32;
                let size = smaller.body * most / 5.0;
                let inside = Room { width: least * 3 / 5, height: least, size, smallest: m.smallest().min(size) };
                let block = self.fonts.lay_out(Weight::SemiBold, words, inside);
                Laid { height: 0, least, most: (smaller.body * most) as u32, block: Some(block) }
            }
            Piece::Code { code } => {
                let modules = (code.width() + 2 * QUIET_ZONE) as u32;
                // half the panel, and where that makes small modules more, for a phone's camera
                let side = room.width.min(room.height);
                let least = (side / 2).max((side * 3 / 4).min(modules * 4));
                Laid { height: 0, least, most: room.width.min(room.height * 3 / 5), block: None }
            }
            Piece::Gap(size) => Laid { height: (smaller.body * size) as u32, least: 0, most: 0, block: None },
        }
    }
}

/// A piece with its height known, but for what takes the room that is left.
struct Laid {
    height: u32,
    /// What a piece that takes the rest needs at least and takes at most; 0 for the others.
    least: u32,
    most: u32,
    block: Option<Block>,
}

impl Laid {
    fn text(block: Block, around: u32) -> Laid {
        Laid { height: block.height + around, least: 0, most: 0, block: Some(block) }
    }
}

/// The laid pieces from the top, the whole centred in `area`; at most one of them takes what is left.
fn place<'a>(m: Measures, area: Rectangle, pieces: Vec<Piece>, laid: Vec<Laid>) -> Vec<Item<'a>> {
    let fixed: u32 = laid.iter().map(|laid| laid.height).sum();
    let rest = area.size.height.saturating_sub(fixed).min(area.size.width);
    let side_of = |laid: &Laid| rest.min(laid.most);
    let total = fixed + laid.iter().map(side_of).sum::<u32>();
    let mut top = area.top_left.y + (area.size.height.saturating_sub(total) / 2) as i32;
    let middle = area.center().x;
    let mut items = Vec::new();
    for (piece, laid) in pieces.into_iter().zip(laid) {
        let side = side_of(&laid);
        let square = Rectangle::new(Point::new(middle - side as i32 / 2, top), Size::new(side, side));
        let across = Rectangle::new(Point::new(area.top_left.x, top), Size::new(area.size.width, laid.height));
        match (piece, laid.block) {
            (Piece::Text { ink, .. }, Some(block)) => items.push(Item::Text { area: across, block, ink }),
            (Piece::Call { .. }, Some(block)) => {
                let width = (block.width + (m.body * 1.8) as u32).min(area.size.width);
                let pill = Point::new(middle - width as i32 / 2, top);
                let pill = Rectangle::new(pill, Size::new(width, laid.height));
                let radius = laid.height.min((m.body * 2.2) as u32) / 2;
                items.push(Item::Round { area: pill, radius, ink: Ink::Accent });
                items.push(Item::Text { area: pill, block, ink: Ink::OnAccent });
            }
            (Piece::Ring { progress, .. }, Some(block)) => {
                items.push(Item::Ring { area: square, stroke: (side / 12).max(3), progress });
                items.push(Item::Text { area: square, block, ink: Ink::Text });
            }
            (Piece::Code { code }, _) => {
                let modules = (code.width() + 2 * QUIET_ZONE) as u32;
                let module = (side / modules).max(1);
                let exact = modules * module;
                let corner = Point::new(middle - exact as i32 / 2, top + (side as i32 - exact as i32) / 2);
                items.push(Item::Code { area: Rectangle::new(corner, Size::new(exact, exact)), module, code });
            }
            _ => {}
        }
        top += (laid.height + side) as i32;
    }
    items
}

/// `picture` as large as fits in the middle of `stage`.
fn framed<'a>(picture: Picture<'a>, stage: Rectangle) -> Item<'a> {
    Item::Picture { area: fit(picture.size(), stage), picture, light: 255 }
}

/// Where text stands that has no picture beside it: lines no longer than the eye follows.
fn message_area(m: Measures) -> Rectangle {
    let size = Size::new((m.width - 2 * m.margin).min((m.body * 24.0) as u32), m.height - 2 * m.margin);
    Rectangle::with_center(m.whole().center(), size)
}

/// A dot a style in the middle of `row`, the chosen one in the accent; none when they would be too close.
fn dots_of<'a>(m: Measures, row: Rectangle, count: usize, chosen: usize) -> Vec<Item<'a>> {
    let dot = ((m.body * 0.28) as u32).max(4);
    let pitch = dot * 5 / 2;
    let width = pitch * count as u32;
    if row.size.height < dot || width > row.size.width {
        return Vec::new();
    }
    let left = row.center().x - (width - (pitch - dot)) as i32 / 2;
    let top = row.center().y - dot as i32 / 2;
    let ink = |index| if index == chosen { Ink::Accent } else { Ink::Panel };
    let area =
        |index: usize| Rectangle::new(Point::new(left + (pitch as usize * index) as i32, top), Size::new(dot, dot));
    (0..count).map(|index| Item::Round { area: area(index), radius: dot / 2, ink: ink(index) }).collect()
}

/// A name without anything that would break a chip.
fn one_line(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join("\u{a0}")
}
