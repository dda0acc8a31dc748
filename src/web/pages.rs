//! The pages, embedded in the program.

use super::access::Role::{Admin, Gallery, Kiosk};
use super::answer::{Fault, Problem, Sent};
use super::{Site, guard};
use crate::daemon::job::Painting;
use crate::strings::{LANGUAGES, Strings};
use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

const KIOSK: &str = include_str!("pages/index.html");
const STUDIO: &str = include_str!("pages/studio.html");
const GALLERY: &str = include_str!("pages/gallery.html");
const ADMIN: &str = include_str!("pages/admin.html");

/// What pages are made of, below `/assets/`: name, media type, contents.
const ASSETS: &[(&str, &str, &[u8])] = &[
    ("admin.js", SCRIPT, include_bytes!("pages/admin.js")),
    ("api.js", SCRIPT, include_bytes!("pages/api.js")),
    ("compare.js", SCRIPT, include_bytes!("pages/compare.js")),
    ("curve.js", SCRIPT, include_bytes!("pages/curve.js")),
    ("element.js", SCRIPT, include_bytes!("pages/element.js")),
    ("gallery.js", SCRIPT, include_bytes!("pages/gallery.js")),
    ("icon.svg", SVG, include_bytes!("pages/icon.svg")),
    ("kiosk.js", SCRIPT, include_bytes!("pages/kiosk.js")),
    ("knobs.js", SCRIPT, include_bytes!("pages/knobs.js")),
    ("label.js", SCRIPT, include_bytes!("pages/label.js")),
    ("learning.js", SCRIPT, include_bytes!("pages/learning.js")),
    ("liveview.js", SCRIPT, include_bytes!("pages/liveview.js")),
    ("mixing.js", SCRIPT, include_bytes!("pages/mixing.js")),
    ("painting.js", SCRIPT, include_bytes!("pages/painting.js")),
    ("pictures.js", SCRIPT, include_bytes!("pages/pictures.js")),
    ("ring.js", SCRIPT, include_bytes!("pages/ring.js")),
    ("slideshow.js", SCRIPT, include_bytes!("pages/slideshow.js")),
    ("stages.js", SCRIPT, include_bytes!("pages/stages.js")),
    ("strengths.js", SCRIPT, include_bytes!("pages/strengths.js")),
    ("strings.js", SCRIPT, include_bytes!("pages/strings.js")),
    ("studio.js", SCRIPT, include_bytes!("pages/studio.js")),
    ("style.css", STYLE, include_bytes!("pages/style.css")),
    ("tiles.js", SCRIPT, include_bytes!("pages/tiles.js")),
    ("tuning.js", SCRIPT, include_bytes!("pages/tuning.js")),
];

/// The pages, each for the role that it is made for, and their parts, which are no secret.
pub(super) fn router() -> Router<Site> {
    let page = |html: &'static str| {
        get(move |asked: HeaderMap| async move { Sent::of(HTML, html.as_bytes()).answer(&asked, html) })
    };
    Router::new()
        .route("/", page(KIOSK).route_layer(from_fn_with_state(Kiosk, guard::require)))
        .route("/gallery", page(GALLERY).route_layer(from_fn_with_state(Gallery, guard::require)))
        .route("/studio", page(STUDIO).route_layer(from_fn_with_state(Admin, guard::require)))
        .route("/admin", page(ADMIN).route_layer(from_fn_with_state(Admin, guard::require)))
        .route("/assets/{name}", get(asset))
}

async fn asset(Path(name): Path<String>, asked: HeaderMap) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|(own, ..)| *own == name);
    let (_, kind, bytes) = found.ok_or_else(|| Problem::missing("file"))?;
    Ok(Sent::of(kind, bytes).answer(&asked, *bytes))
}

/// What people read, in one language.
#[utoipa::path(
    get, path = "/api/v1/strings/{file}", tag = "status",
    params(("file" = String, Path, description = "a language's tag and `.json`, such as `de.json`")),
    responses((status = 200, content_type = "application/json"), (status = 404, body = Fault))
)]
pub(super) async fn strings(Path(file): Path<String>, asked: HeaderMap) -> Result<Response, Problem> {
    let tag = file.strip_suffix(".json");
    let found = LANGUAGES.iter().find(|(language, _)| Some(*language) == tag);
    let (_, text) = found.ok_or_else(|| Problem::missing("language"))?;
    Ok(Sent::of("application/json", text.as_bytes()).answer(&asked, *text))
}

fn html(status: StatusCode, language: &str, title: &str, body: &str) -> Response {
    let text = format!(
        "<!doctype html><html lang=\"{language}\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><title>{title}</title>\
         <link rel=\"icon\" href=\"/assets/icon.svg\" type=\"image/svg+xml\">\
         <link rel=\"stylesheet\" href=\"/assets/style.css\"></head>\
         <body class=\"phone\"><main>{body}</main></body></html>"
    );
    (status, [(header::CONTENT_TYPE, HTML)], text).into_response()
}

/// For a browser that is not paired, or not for this page.
pub(super) fn stranger(site: &Site, status: StatusCode) -> Response {
    let (title, text) = match status {
        StatusCode::FORBIDDEN => ("page.elsewhere.title", "page.elsewhere.text"),
        _ => ("page.unpaired.title", "page.unpaired.text"),
    };
    let texts = texts(site);
    let body = format!("<h1>{}</h1><p>{}</p>", texts.get(title), texts.get(text));
    html(status, texts.language(), "pleinair", &body)
}

/// For a link that shows nothing, or nothing any more.
pub(super) fn gone(site: &Site) -> Response {
    let texts = texts(site);
    let body = format!("<h1>{}</h1><p>{}</p>", texts.get("page.gone.title"), texts.get("page.gone.text"));
    html(StatusCode::NOT_FOUND, texts.language(), "pleinair", &body)
}

/// In the daemon's language, or in English where the configuration names one that there is not.
fn texts(site: &Site) -> Strings {
    let language = &site.daemon().config().language;
    Strings::of(language).or_else(|_| Strings::of("en")).expect("English is embedded")
}

/// A painting for a visitor's phone; `key` is that of its link.
pub(super) fn shared(site: &Site, painting: &Painting, key: &str) -> Response {
    // keys are of letters, digits, - and _; what else came was not admitted by it
    let key: String = key.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    let (id, width, height) = (painting.id, painting.width, painting.height);
    let title = escaped(&site.daemon().config().kiosk.title);
    let picture = format!("/p/{id}/image.png?k={key}");
    let texts = texts(site);
    let alt = texts.fill("page.spoken.plain", &[("prompt", &painting.prompt)]);
    let label = match painting.styles.is_empty() {
        true => texts.get("page.label.plain").to_owned(),
        false => texts.fill("page.label.style", &[("style", &painting.styles.join(", "))]),
    };
    let body = format!(
        "<h1>{title}</h1><p class=\"mat\"><img src=\"{picture}\" width=\"{width}\" height=\"{height}\" alt=\"{}\"></p>\
         <p class=\"label label-title\">{}</p>\
         <p><a class=\"button loud\" href=\"{picture}&amp;download=1\" download=\"pleinair-{id}.png\">{}</a></p>",
        escaped(&alt),
        escaped(&label),
        texts.get("page.save")
    );
    html(StatusCode::OK, texts.language(), &title, &body)
}

/// Text within HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The texts of these rooms are the pages' own; the screen has others.
    const ROOMS: [&str; 5] = ["page.", "kiosk.", "studio.", "gallery.", "admin."];
    /// What looks like a key and is none.
    const ENDINGS: [&str; 3] = [".js", ".css", ".svg"];

    /// Every part of the pages, with its name.
    fn parts() -> Vec<(&'static str, &'static str)> {
        let pages = [("index.html", KIOSK), ("studio.html", STUDIO), ("gallery.html", GALLERY), ("admin.html", ADMIN)];
        let assets = ASSETS.iter().map(|(name, _, bytes)| (*name, std::str::from_utf8(bytes).unwrap()));
        pages.into_iter().chain(assets).collect()
    }

    /// Keys between quotation marks.
    fn keys(text: &str) -> BTreeSet<&str> {
        let plain = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_');
        let own = |word: &&str| ROOMS.iter().any(|room| word.starts_with(room) && word.len() > room.len());
        let file = |word: &&str| ENDINGS.iter().any(|ending| word.ends_with(ending));
        text.split('"').filter(plain).filter(own).filter(|word| !file(word)).collect()
    }

    #[test]
    fn every_text_is_there_and_used() {
        let of_program = include_str!("pages.rs").split("#[cfg(test)]").next().unwrap();
        let used: BTreeSet<_> = parts().iter().flat_map(|(_, text)| keys(text)).chain(keys(of_program)).collect();
        assert!(used.len() > 100, "{} keys: they are not found", used.len());
        for (language, _) in LANGUAGES {
            let strings = Strings::of(language).unwrap();
            let own = |key: &&str| ROOMS.iter().any(|room| key.starts_with(room));
            let known: BTreeSet<_> = strings.all().keys().map(String::as_str).filter(own).collect();
            let missing: Vec<_> = used.difference(&known).collect();
            let unused: Vec<_> = known.difference(&used).collect();
            assert!(missing.is_empty(), "{language} has no {missing:?}");
            assert!(unused.is_empty(), "nobody uses {unused:?} of {language}");
        }
    }

    #[test]
    fn keys_are_found_where_they_are() {
        let text = r#"<p data-say="kiosk.full.title"> say("page.a_b", {n}) from "./kiosk.js" src="/assets/x" "kiosk." "Kiosk.A""#;
        assert_eq!(keys(text).into_iter().collect::<Vec<_>>(), ["kiosk.full.title", "page.a_b"]);
    }

    #[test]
    fn pages_ask_only_for_what_is_embedded() {
        for (name, text) in parts() {
            let imported = text.split("from \"./").skip(1);
            let linked = text.split("=\"/assets/").skip(1);
            for wanted in imported.chain(linked).map(|rest| rest.split('"').next().unwrap()) {
                assert!(ASSETS.iter().any(|(own, ..)| *own == wanted), "{name} asks for {wanted}");
            }
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("://") && !elsewhere.contains("\"//"), "{name} asks another machine");
            let inline = ["<style", " style=\"", " onclick=", "javascript:", "innerHTML"];
            assert!(!inline.iter().any(|word| text.contains(word)), "{name} has what the pages' policy forbids");
        }
        for (name, kind, bytes) in ASSETS {
            assert!(!bytes.is_empty() && !kind.is_empty(), "{name}");
            assert!(parts().iter().any(|(_, text)| text.contains(*name)), "nobody asks for {name}");
        }
    }
}
