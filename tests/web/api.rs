//! Paintings and what surrounds them, over the API.

use super::*;
use pleinair::side::captioner::Captioner;
use pleinair::side::content::context;
use std::collections::BTreeSet;
use std::path::Path;

/// It outlives the request: the painter reads it from the job's folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_picture_can_be_given() {
    let house = House::new();
    let mut painted = vec![];
    for file in [None, Some("control_image"), Some("control_image_softedge")] {
        let wish =
            json!({"prompt": "a house", "steps": 2, "seed": 7, "size": "64x64", "control_scale": 0.9}).to_string();
        let files: Vec<_> = file.map(|name| (name, png(80, 60))).into_iter().collect();
        let id = house.form("/api/v1/paintings", &[("wish", &wish)], &files).await.json()["id"].clone();
        let id = id.as_str().unwrap();
        assert_eq!(house.over(id).await, "finished");
        let painting = house.get(&format!("/api/v1/paintings/{id}")).await.json()["painting"].clone();
        let sides = &painting["recipe"]["controls"][0]["image"];
        assert_eq!(sides["width"], if file.is_some() { json!(80) } else { json!(null) });
        painted.push(painting["sha256"].clone());
    }
    assert!(painted[0] != painted[1], "the control picture counts");
}

/// The tiny model with a second ControlNet, which looks at Canny's edges.
fn model_with_canny(folder: &Path) -> Painter {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd15");
    std::fs::create_dir(folder).unwrap();
    for entry in std::fs::read_dir(&tiny).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    std::os::unix::fs::symlink(tiny.join("controlnet"), folder.join("controlnet_canny")).unwrap();
    Painter::open(folder).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_controlnets_looked_at_is_kept_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let painter = model_with_canny(&folder.path().join("model"));
    let house = House::with_model(folder, LOOPBACK, painter, |_| {});
    let painted = async |scale: Value, save: bool, frame: &[(&str, Vec<u8>)]| {
        let wish =
            json!({"prompt": "a house", "steps": 2, "size": "128x64", "control_scale": scale, "save_control": save});
        let answer = house.form("/api/v1/paintings", &[("wish", &wish.to_string())], frame).await;
        let id = answer.json()["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        assert_eq!(house.over(&id).await, "finished");
        id
    };
    let photo = [("frame", png(80, 60))];
    let both = painted(json!("softedge=0.4,canny=0.3"), true, &photo).await;
    let control = async |id: &str, more: &str| house.get(&format!("/api/v1/paintings/{id}/control.png{more}")).await;
    let painting = house.get(&format!("/api/v1/paintings/{both}")).await.json()["painting"].clone();
    assert_eq!(painting["controls"], json!(["soft-edge", "canny"]));
    let [soft, canny] = [control(&both, "?kind=softedge").await.fine(), control(&both, "?kind=canny").await.fine()];
    let frames = [&soft, &canny].map(|answer| Frame::from_bytes(&answer.body, 1 << 20).unwrap());
    assert!(frames.iter().all(|frame| (frame.width(), frame.height()) == (128, 64)) && frames[0] != frames[1]);
    assert_eq!((soft.header("content-type"), control(&both, "").await.body), ("image/png", soft.body.clone()));
    assert_ne!(soft.header("etag"), canny.header("etag"));
    let saved = control(&both, "?kind=canny&download=1").await;
    assert!(saved.header("content-disposition").contains(&format!("pleinair-{both}-canny.png")), "{saved:?}");
    control(&both, "?kind=depth").await.refused(404, "keeps no depth picture, only soft-edge and canny");
    control(&both, "?kind=loud").await.refused(422, "loud");
    // one that was given comes back as it was; the painting is the same whether it is kept or not
    let given = [("control_image_canny", png(128, 64))];
    let (kept, other) = (painted(json!(0.5), true, &given).await, painted(json!(0.5), false, &given).await);
    let seen = Frame::from_bytes(&control(&kept, "").await.fine().body, 1 << 20).unwrap();
    assert_eq!(seen, Frame::from_bytes(&given[0].1, 1 << 20).unwrap());
    control(&other, "").await.refused(404, "keeps no control picture; one that is ordered with \"save_control\"");
    control("0190a1b2-0000-7000-8000-000000000000", "").await.refused(404, "no such painting");
    let nothing = json!({"prompt": "a house", "save_control": true});
    house.post("/api/v1/paintings", nothing).await.refused(422, "no control picture to save");

    let folder = house.folder.path().join("data/paintings");
    let files = |id: &str| {
        let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(id)).collect::<BTreeSet<_>>()
    };
    assert!(files(&both).contains(&format!("{both}.softedge.png")), "{:?}", files(&both));
    assert_eq!(house.delete(&format!("/api/v1/paintings/{both}")).await.status, 204);
    assert!(files(&both).is_empty() && !files(&kept).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_photograph_is_painted_and_kept() {
    let house = House::with(LAN, |config| config.security.always = false);
    let admin = format!("Bearer {}", house.token(Role::Admin));
    let headers = [("authorization", admin.as_str()), ("content-type", "multipart/form-data; boundary=part")];
    let wish = json!({"prompt": "a house", "steps": 2, "seed": 7, "origin": "studio"}).to_string();
    let body = multipart(&[("wish", &wish)], &[("frame", png(80, 60))]);
    let answer = house.ask(request(Method::POST, "/api/v1/paintings", &headers, Body::from(body))).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let ask = |path: String| {
        let headers = [("authorization", admin.as_str())];
        house.ask(request(Method::GET, &path, &headers, Body::empty()))
    };
    let state = loop {
        let state = ask(format!("/api/v1/paintings/{id}")).await.json();
        if state["state"] == "finished" {
            break state;
        }
        assert!(["queued", "running"].contains(&state["state"].as_str().unwrap()), "{state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((&state["id"], &state["origin"]), (&json!(id), &json!("studio")));
    let painting = &state["painting"];
    assert_eq!(
        (&painting["recipe"]["seed"], &painting["has_content"], &painting["kept"]),
        (&json!(7), &json!(true), &json!(true))
    );

    let none = ask(format!("/api/v1/paintings/{id}/preview.jpg")).await;
    assert_eq!(
        (none.status.as_u16(), none.body.len()),
        (204, 0),
        "a painting that is over has no preview, and that is no fault"
    );

    let image = ask(format!("/api/v1/paintings/{id}/image.png")).await.fine();
    let sha256 = painting["sha256"].as_str().unwrap();
    assert_eq!((image.header("content-type"), image.header("etag")), ("image/png", format!("\"{sha256}\"").as_str()));
    assert!(image.header("content-disposition").starts_with("inline"));
    assert_eq!(Frame::from_bytes(&image.body, 1 << 20).unwrap().width(), painting["width"].as_u64().unwrap() as usize);
    let saved = ask(format!("/api/v1/paintings/{id}/image.png?download=1")).await;
    assert!(saved.header("content-disposition").starts_with("attachment"), "{saved:?}");
    for file in ["thumbnail.jpg", "content.jpg"] {
        let picture = ask(format!("/api/v1/paintings/{id}/{file}")).await.fine();
        assert_eq!(picture.header("content-type"), "image/jpeg");
        Frame::from_bytes(&picture.body, 1 << 20).unwrap();
    }
    let known = [("authorization", admin.as_str()), ("if-none-match", image.header("etag"))];
    let again =
        house.ask(request(Method::GET, &format!("/api/v1/paintings/{id}/image.png"), &known, Body::empty())).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));

    let qr = ask(format!("/api/v1/paintings/{id}/qr.svg")).await.fine();
    assert!(qr.body.starts_with(b"<?xml"), "{qr:?}");
    // the phone that scans it has no token
    let link = state["share_url"].as_str().unwrap().strip_prefix("http://192.0.2.7:7860").unwrap().to_owned();
    let page = house.get(&link).await.fine();
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(text.contains(&format!("/p/{id}/image.png?k=")), "{text}");
    let phones = house.get(&link.replace("?k=", "/image.png?k=")).await.fine();
    assert_eq!(phones.body, image.body);
    for other in [format!("/p/{id}"), format!("/p/{id}?k=x"), format!("/p/{id}/image.png?k=x"), "/p/x".into()] {
        assert_eq!(house.get(&other).await.status, 404, "{other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strengths_are_numbers_or_a_number_for_each_stage() {
    let house = House::new();
    let mut painted = vec![];
    for strength in [json!(2), json!("5..3=2,2..0=2"), json!("2..0=2")] {
        let wish =
            json!({"prompt": "a house", "steps": 4, "seed": 7, "style_strength": strength, "content_strength": -1});
        let id = house.order(wish).await;
        assert_eq!(house.over(&id).await, "finished");
        let painting = house.get(&format!("/api/v1/paintings/{id}")).await.json()["painting"].clone();
        let guidance = &painting["recipe"]["guidance"];
        assert_eq!(guidance["style"].as_f64(), strength.as_f64());
        assert_eq!(guidance["style"].as_str(), strength.as_str());
        let image = house.get(&format!("/api/v1/paintings/{id}/image.png")).await.fine();
        painted.push(Frame::from_bytes(&image.body, 1 << 20).unwrap().rgb().to_vec());
    }
    assert!(painted[0] == painted[1] && painted[1] != painted[2]);
    // a field of a form is text
    let id =
        house.form("/api/v1/paintings", &[("prompt", "a house"), ("steps", "1"), ("style_strength", "2")], &[]).await;
    assert_eq!(house.over(id.json()["id"].as_str().unwrap()).await, "finished");
    for (strength, word) in [
        (json!("6=1"), "the style strength of stage 6 is given"),
        (json!("5..3=2,4=1"), "names a stage twice"),
        (json!({"5": 1}), "one for each stage"),
        (json!("5=loud"), "no number"),
    ] {
        let wish = json!({"prompt": "a house", "style_strength": strength});
        house.post("/api/v1/paintings", wish).await.refused(422, word);
    }
    let openapi = house.get("/api/openapi.json").await.json();
    let schema = openapi["components"]["schemas"]["PerStage"]["oneOf"].clone();
    assert_eq!((&schema[0]["type"], &schema[1]["type"]), (&json!("number"), &json!("string")), "{openapi}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gallery_is_turned_page_by_page() {
    let house = House::new();
    let mut ids = vec![];
    for _ in 0..3 {
        ids.insert(0, house.painted().await);
    }
    let hidden = house.order(json!({"prompt": "a house", "steps": 1, "kept": false})).await;
    house.over(&hidden).await;
    let mut seen = vec![];
    let mut path = "/api/v1/paintings?limit=2".to_owned();
    loop {
        let page = house.get(&path).await.fine().json();
        seen.extend(page["paintings"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/api/v1/paintings?limit=2&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    assert_eq!(house.get("/api/v1/paintings?text=boat").await.json()["paintings"], json!([]));
    assert_eq!(house.get("/api/v1/paintings?text=house").await.json()["paintings"].as_array().unwrap().len(), 3);
    house.get("/api/v1/paintings?cursor=x").await.refused(400, "cursor");
    house.get("/api/v1/paintings?limit=x").await.refused(400, "limit");
    house.get("/api/v1/paintings?sort=up").await.refused(400, "sort");

    let mut events = Stream::open(&house).await;
    assert_eq!(house.delete(&format!("/api/v1/paintings/{}", ids[0])).await.status, 204);
    assert_eq!(events.next().await.unwrap(), ("deleted".into(), json!({"event": "deleted", "id": ids[0]})));
    house.delete(&format!("/api/v1/paintings/{}", ids[0])).await.refused(404, "painting");
    house.get(&format!("/api/v1/paintings/{}", ids[0])).await.fine(); // the job is remembered
    house.get(&format!("/api/v1/paintings/{}/image.png", ids[0])).await.refused(404, "painting");
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    house.get(&format!("/api/v1/paintings/{unknown}/preview.jpg")).await.refused(404, "painting");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_make_no_sense_are_refused() {
    let house = House::new();
    for (wish, status, word) in [
        (json!({}), 422, "nothing to paint"),
        (json!({"prompt": "a", "steps": 0}), 422, "steps"),
        (json!({"prompt": "a", "steps": 1000}), 422, "1000 steps"),
        (json!({"prompt": "a", "steps": "many"}), 422, "steps"),
        (json!({"prompt": "a", "colour": "red"}), 422, "colour"),
        (json!({"prompt": "a", "sampler": "magic"}), 422, "magic"),
        (json!({"prompt": "a", "size": "0x0"}), 422, "0"),
        (json!({"prompt": "a {"}), 422, "{"),
        (json!({"styles": [""]}), 422, "style"),
        (json!({"prompt": "a", "origin": "moon"}), 422, "moon"),
        (json!({"prompt": "a", "camera": true}), 503, "camera"),
        (json!([]), 422, "map"),
    ] {
        house.post("/api/v1/paintings", wish).await.refused(status, word);
    }
    let json = [("content-type", "application/json")];
    let order = |headers: &[(&str, &str)], body: &'static str| {
        house.ask(request(Method::POST, "/api/v1/paintings", headers, Body::from(body)))
    };
    order(&json, "{").await.refused(400, "JSON");
    order(&[], "{}").await.refused(415, "application/json");
    order(&[("content-type", "multipart/form-data")], "x").await.refused(400, "boundary");
    order(&[("content-type", "multipart/form-data; boundary=part")], "--part\r\n").await.refused(400, "");
    let with = |fields: Vec<(&'static str, &'static str)>, files: Vec<(&'static str, Vec<u8>)>| {
        let house = &house;
        async move { house.form("/api/v1/paintings", &fields, &files).await }
    };
    with(vec![("prompt", "a")], vec![("frame", b"no picture".to_vec())]).await.refused(422, "picture");
    with(vec![("prompt", "a"), ("steps", "1")], vec![("frame", png(9, 9))]).await.refused(422, "steps");
    with(vec![("prompt", "a")], vec![("frame", png(9, 9)[..40].to_vec())]).await.refused(422, "picture");
    with(vec![("prompt", "a"), ("camera", "true")], vec![("frame", png(9, 9))]).await.refused(400, "not both");
    with(vec![("prompt", "a")], vec![("frame", png(9, 9)), ("frame", png(9, 9))]).await.refused(400, "one frame");
    with(vec![("prompt", "a")], vec![("control_image_pose", png(9, 9))]).await.refused(422, "\"pose\"");
    with(vec![("prompt", "a")], vec![("control_image_depth", png(9, 9))]).await.refused(422, "only for soft-edge");
    with(vec![("prompt", "a")], vec![("control_image", b"none".to_vec())]).await.refused(422, "picture");
    let twice = vec![("control_image", png(9, 9)), ("control_image_softedge", png(9, 9))];
    with(vec![("prompt", "a")], twice).await.refused(422, "two soft-edge pictures");
    with(vec![("prompt", "a"), ("control_scale", "depth=1")], vec![]).await.refused(422, "no ControlNet for depth");
    with(vec![("prompt", "a"), ("control_scale", "loud")], vec![]).await.refused(422, "control_scale");
    with(vec![("wish", "[]")], vec![]).await.refused(400, "wish");
    with(vec![("a", "b"); 70], vec![]).await.refused(400, "parts");
    assert_eq!(house.get("/api/v1/jobs").await.json()["jobs"], json!([]), "nothing was queued");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_may_give_fields_one_by_one() {
    let house = House::new();
    let fields =
        [("prompt", "7"), ("steps", "2"), ("seed", "3"), ("styles", "ink"), ("styles", "oil"), ("kept", "false")];
    let answer = house.form("/api/v1/paintings", &fields, &[]).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(house.over(&id).await, "finished");
    let painting = house.get(&format!("/api/v1/paintings/{id}")).await.json()["painting"].clone();
    assert_eq!((&painting["styles"], &painting["kept"]), (&json!(["ink", "oil"]), &json!(false)));
    assert!(painting["prompt"].as_str().unwrap().starts_with('7'), "{painting}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let house = House::with(LOOPBACK, |config| config.queue.paintings = 2);
    let long = json!({"prompt": "a house", "steps": 900});
    let first = house.order(long.clone()).await;
    let second = house.order(long.clone()).await;
    let answer = house.post("/api/v1/paintings", long).await;
    answer.refused(503, "queue");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
    for id in [second, first] {
        house.delete(&format!("/api/v1/jobs/{id}")).await.fine();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn printing_is_counted() {
    let house = House::with(LOOPBACK, |config| {
        config.kiosk.print = ["cp", "{}", "printed.png"].map(String::from).to_vec();
        config.kiosk.most_prints = 1;
        config.kiosk.print[2] = config.data.with_file_name("printed.png").display().to_string();
    });
    let id = house.painted().await;
    let print = format!("/api/v1/paintings/{id}/print");
    assert_eq!(house.post(&print, json!(null)).await.status, 202);
    let printed = house.folder.path().join("printed.png");
    let image = house.get(&format!("/api/v1/paintings/{id}/image.png")).await.body;
    let end = Instant::now() + PATIENCE;
    while !std::fs::read(&printed).is_ok_and(|bytes| bytes == image) {
        assert!(Instant::now() < end, "nothing was printed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    house.post(&print, json!(null)).await.refused(409, "enough");
    let nobody = House::new();
    nobody.post(&print, json!(null)).await.refused(404, "printer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_says_how_it_is() {
    let house = House::new();
    assert_eq!(house.get("/healthz").await.fine().body, "ok\n");
    assert_eq!(house.get("/readyz").await.fine().json(), json!({"painter": true, "store": true, "camera": true}));
    let kiosk = house.get("/api/v1/kiosk").await.fine().json();
    assert_eq!(
        (&kiosk["camera_source"], &kiosk["camera"], &kiosk["role"]),
        (&json!("browser"), &json!(false), &json!("admin"))
    );
    assert!(kiosk["samplers"].as_array().unwrap().contains(&json!("unipc")), "{kiosk}");
    let status = house.get("/api/v1/status").await.fine().json();
    assert_eq!((&status["bundle"], &status["paintings_waiting"]), (&json!("tiny-sd15"), &json!(0)));
    assert!(status["resident_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(house.get("/api/v1/log").await.fine().json(), json!({"lines": []}));
    house.painted().await;
    let metrics = house.get("/metrics").await.fine();
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("pleinair_jobs_total{kind=\"painting\",state=\"finished\"} 1"), "{text}");
    house.get("/api/v1/frame.jpg").await.refused(404, "camera");
    house.get("/api/v1/camera.mjpeg").await.refused(404, "camera");
    house.form("/api/v1/captions", &[], &[("image", png(9, 9))]).await.refused(501, "captioner");
    house.get("/api/v1/nothing").await.refused(404, "/api/v1/nothing");
    house.send(Method::PUT, "/api/v1/paintings", json!({})).await.refused(405, "method");
    house.daemon.stop();
    assert_eq!(house.get("/readyz").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_camera_is_seen_live_and_still() {
    let stills = tempfile::tempdir().unwrap();
    std::fs::write(stills.path().join("a.png"), png(40, 30)).unwrap();
    let source = format!("folder:{}", stills.path().display());
    let house = House::with(LOOPBACK, |config| config.camera.source = source.parse().unwrap());
    let end = Instant::now() + PATIENCE;
    while house.get("/api/v1/frame.jpg").await.status != 200 {
        assert!(Instant::now() < end, "no picture comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let still = house.get("/api/v1/frame.jpg").await;
    assert_eq!(Frame::from_bytes(&still.body, 1 << 20).unwrap().width(), 40);
    let live = request(Method::GET, "/api/v1/camera.mjpeg", &[], Body::empty());
    let response = house.router.clone().oneshot(live).await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("multipart/x-mixed-replace; boundary="));
    let mut body = response.into_body().into_data_stream();
    for _ in 0..2 {
        let part = tokio::time::timeout(PATIENCE, body.next()).await.unwrap().unwrap().unwrap();
        let start = part.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(Frame::from_bytes(&part[start..part.len() - 2], 1 << 20).unwrap().height(), 30);
    }
    let cameras = house.get("/api/v1/cameras").await.fine().json();
    assert_eq!((&cameras["cameras"][0]["id"], &cameras["cameras"][0]["chosen"]), (&json!(source), &json!(true)));
    assert_eq!(house.send(Method::PUT, "/api/v1/camera", json!({"id": "folder:/"})).await.status, 404);
    assert_eq!(house.send(Method::PUT, "/api/v1/camera", json!({"id": source})).await.status, 204);
    house.site.close();
    while tokio::time::timeout(PATIENCE, body.next()).await.unwrap().is_some() {}
    let id = house.order(json!({"prompt": "a house", "camera": true, "steps": 2})).await;
    assert_eq!(house.over(&id).await, "finished");
}

/// Every reference in a schema leads somewhere.
fn check_references(whole: &Value, part: &Value) {
    match part {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let there = whole.pointer(reference.strip_prefix('#').unwrap());
                assert!(there.is_some(), "{reference} leads nowhere");
            }
            fields.values().for_each(|value| check_references(whole, value));
        }
        Value::Array(items) => items.iter().for_each(|item| check_references(whole, item)),
        _ => {}
    }
}

#[test]
#[should_panic = "leads nowhere"]
fn a_reference_to_nothing_is_found() {
    check_references(&json!({}), &json!({"a": [{"$ref": "#/b"}]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described() {
    let house = House::new();
    let described = house.get("/api/openapi.json").await.fine().json();
    assert!(described["openapi"].as_str().unwrap().starts_with("3."), "{}", described["openapi"]);
    check_references(&described, &described);
    let mut names = BTreeSet::new();
    for (path, methods) in described["paths"].as_object().unwrap() {
        for (method, route) in methods.as_object().unwrap() {
            let parameters =
                route["parameters"].as_array().map_or(0, |all| all.iter().filter(|p| p["in"] == "path").count());
            assert_eq!(parameters, path.matches('{').count(), "{method} {path}");
            assert!(route["responses"].as_object().is_some_and(|all| !all.is_empty()), "{method} {path}");
            assert!(names.insert(format!("{} {path}", method.to_uppercase())));
        }
    }
    // the contract, line by line
    for route in include_str!("routes.txt").lines() {
        assert!(names.remove(route), "{route} is not described");
    }
    assert!(names.is_empty(), "not in the list: {names:?}");
    // what is described is there: an id that is none is answered by the handler, not by the router
    for route in include_str!("routes.txt").lines() {
        let (method, path) = route.split_once(' ').unwrap();
        if ["/api/v1/events", "/sdapi/v1/interrupt"].contains(&path) {
            continue;
        }
        let path = path.replace("{id}", "0190a1b2-0000-7000-8000-000000000000");
        let answer = house.ask(request(method.parse().unwrap(), &path, &[], Body::empty())).await;
        assert_ne!(answer.status, 405, "{route}: {answer:?}");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("there is nothing at"), "{route}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captioner_says_what_a_picture_shows() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let fixtures = reference::root().join("tests/fixtures");
    for (from, to) in [("tiny-sd15", ""), ("captioners/base", "captioner")] {
        copy(&fixtures.join(from), &model.join(to));
    }
    let painter = Painter::open(&model).unwrap();
    let house = House::with_model(folder, LOOPBACK, painter, |_| {});
    assert_eq!(house.get("/api/v1/kiosk").await.json()["captioner"], true);
    let photograph = std::fs::read(fixtures.join("mountain2.jpg")).unwrap();
    let said = house.form("/api/v1/captions", &[], &[("image", photograph.clone())]).await.fine().json();
    let mut captioner = Captioner::open(&model.join("captioner")).unwrap();
    let raw = captioner.caption(&Frame::from_bytes(&photograph, 1 << 24).unwrap()).unwrap();
    assert_eq!(said, json!({"caption": context(&raw), "raw": raw}));
    house.form("/api/v1/captions", &[("name", "x")], &[]).await.refused(400, "no picture");
    house.form("/api/v1/captions", &[], &[("image", b"no picture".to_vec())]).await.refused(422, "not a picture");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copy(&entry, &target),
            false => std::fs::copy(&entry, &target).map(drop).unwrap(),
        }
    }
}
