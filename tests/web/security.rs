//! Who is let in, and what is refused before it does any harm.

use super::*;

const OTHER_SITE: [(&str, &str); 2] = [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")];

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_may() {
    let house = House::with(LAN, |_| {});
    let nobody = "0190a1b2-0000-7000-8000-000000000000";
    // least role by route; what is not here is open
    let rules: Vec<(&str, String, Role)> = [
        ("GET", "/gallery", Role::Gallery),
        ("GET", "/api/v1/paintings", Role::Gallery),
        ("GET", "/api/v1/paintings/{id}", Role::Gallery),
        ("GET", "/api/v1/paintings/{id}/image.png", Role::Gallery),
        ("GET", "/api/v1/paintings/{id}/thumbnail.jpg", Role::Gallery),
        ("GET", "/api/v1/paintings/{id}/content.jpg", Role::Gallery),
        ("GET", "/api/v1/paintings/{id}/control.png", Role::Gallery),
        ("GET", "/api/v1/styles", Role::Gallery),
        ("GET", "/api/v1/styles/{id}/picture.jpg", Role::Gallery),
        ("GET", "/api/v1/events", Role::Gallery),
        ("GET", "/api/v1/kiosk", Role::Gallery),
        ("GET", "/", Role::Kiosk),
        ("POST", "/api/v1/paintings", Role::Kiosk),
        ("GET", "/api/v1/paintings/{id}/preview.jpg", Role::Kiosk),
        ("GET", "/api/v1/paintings/{id}/qr.svg", Role::Kiosk),
        ("POST", "/api/v1/paintings/{id}/print", Role::Kiosk),
        ("GET", "/api/v1/jobs", Role::Kiosk),
        ("GET", "/api/v1/jobs/{id}", Role::Kiosk),
        ("DELETE", "/api/v1/jobs/{id}", Role::Kiosk),
        ("GET", "/api/v1/styles/{id}", Role::Kiosk),
        ("GET", "/api/v1/camera.mjpeg", Role::Kiosk),
        ("GET", "/api/v1/frame.jpg", Role::Kiosk),
        ("POST", "/api/v1/shutter", Role::Kiosk),
        ("POST", "/sdapi/v1/txt2img", Role::Kiosk),
        ("POST", "/sdapi/v1/img2img", Role::Kiosk),
        ("GET", "/sdapi/v1/progress", Role::Kiosk),
        ("POST", "/sdapi/v1/interrupt", Role::Kiosk),
        ("GET", "/sdapi/v1/options", Role::Kiosk),
        ("POST", "/sdapi/v1/options", Role::Kiosk),
        ("GET", "/sdapi/v1/sd-models", Role::Kiosk),
        ("GET", "/sdapi/v1/samplers", Role::Kiosk),
        ("GET", "/sdapi/v1/embeddings", Role::Kiosk),
        ("POST", "/sdapi/v1/png-info", Role::Kiosk),
        ("GET", "/studio", Role::Admin),
        ("GET", "/admin", Role::Admin),
        ("DELETE", "/api/v1/paintings/{id}", Role::Admin),
        ("POST", "/api/v1/styles", Role::Admin),
        ("GET", "/api/v1/styles/{id}.safetensors", Role::Admin),
        ("PATCH", "/api/v1/styles/{id}", Role::Admin),
        ("DELETE", "/api/v1/styles/{id}", Role::Admin),
        ("POST", "/api/v1/styles/mix", Role::Admin),
        ("POST", "/api/v1/styles/{id}/mix", Role::Admin),
        ("GET", "/api/v1/styles/{id}/losses", Role::Admin),
        ("GET", "/api/v1/styles/{id}/losses.csv", Role::Admin),
        ("GET", "/api/v1/styles/{id}/losses.png", Role::Admin),
        ("GET", "/api/v1/styles/{id}/validation.png", Role::Admin),
        ("POST", "/api/v1/captions", Role::Admin),
        ("GET", "/api/v1/status", Role::Admin),
        ("GET", "/api/v1/log", Role::Admin),
        ("GET", "/metrics", Role::Admin),
        ("GET", "/api/v1/pairing", Role::Admin),
        ("GET", "/api/v1/cameras", Role::Admin),
        ("PUT", "/api/v1/camera", Role::Admin),
    ]
    .into_iter()
    .map(|(method, path, role)| (method, path.replace("{id}", nobody), role))
    .collect();
    let open = ["/healthz", "/readyz", "/p/{id}", "/p/{id}/image.png", "/pair", "/api/v1/strings/{file}"];
    for route in include_str!("routes.txt").lines() {
        let (method, path) = route.split_once(' ').unwrap();
        let path = path.replace("{id}", nobody);
        let ruled = rules.iter().any(|(m, p, _)| *m == method && *p == path);
        assert!(ruled || open.iter().any(|open| open.replace("{id}", nobody) == path), "no role is named for {route}");
    }
    for (method, path, least) in &rules {
        let ask = |token: Option<String>| {
            let token = token.map(|token| bearer(&token));
            let headers: Vec<_> = token.iter().map(|token| ("authorization", token.as_str())).collect();
            house.ask_head(request(method.parse().unwrap(), path, &headers, Body::empty()))
        };
        assert_eq!(ask(None).await, 401, "{method} {path}");
        assert_eq!(ask(Some("0".repeat(32))).await, 401, "{method} {path}");
        for role in Role::ALL {
            let status = ask(Some(house.token(role))).await;
            let refused = status == 401 || status == 403;
            assert_eq!(refused, role < *least, "{method} {path} as {role:?}: {status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_nobody_needs_a_token_unless_it_is_so_configured() {
    assert_eq!(House::new().get("/api/v1/status").await.status, 200);
    let careful = House::with(LOOPBACK, |config| config.security.always = true);
    careful.get("/api/v1/status").await.refused(401, "token");
    assert_eq!(careful.get("/admin").await.header("content-type"), "text/html; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_paired_and_the_token_leaves_the_address() {
    let house = House::with(LAN, |_| {});
    let token = house.token(Role::Kiosk);
    let paired = house.get(&format!("/pair?token={token}")).await;
    assert_eq!((paired.status.as_u16(), paired.header("location")), (303, "/"));
    let cookie = paired.header("set-cookie").to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let ask = |path: &'static str| house.ask(request(Method::GET, path, &[("cookie", &cookie)], Body::empty()));
    assert_eq!(ask("/").await.status, 200);
    let kiosk = ask("/api/v1/kiosk").await.json();
    assert_eq!((&kiosk["role"], &kiosk["tokens"]), (&json!("kiosk"), &json!(true)));
    assert_eq!(ask("/admin").await.status, 403);
    for path in ["/pair", "/pair?token=", "/pair?token=0"] {
        let refused = house.get(path).await;
        assert_eq!((refused.status.as_u16(), refused.header("set-cookie")), (401, ""), "{path}");
    }
    let admin = bearer(&house.token(Role::Admin));
    let codes =
        house.ask(request(Method::GET, "/api/v1/pairing", &[("authorization", &admin)], Body::empty())).await.json();
    assert!(codes["pairings"].as_array().unwrap().iter().any(|code| code["url"].as_str().unwrap().ends_with(&token)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kiosk_takes_back_its_own_jobs_only() {
    let house = House::with(LAN, |_| {});
    let ask = |role: Role, method: Method, path: String, body: Value| {
        let token = bearer(&house.token(role));
        let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
        house.ask(request(method, &path, &headers, Body::from(body.to_string())))
    };
    let long = json!({"prompt": "a", "steps": 900, "origin": "studio"});
    let studio = ask(Role::Admin, Method::POST, "/api/v1/paintings".into(), long.clone()).await.json()["id"].clone();
    let kiosk = ask(Role::Kiosk, Method::POST, "/api/v1/paintings".into(), long).await.json()["id"].clone();
    let path = |id: &Value| format!("/api/v1/jobs/{}", id.as_str().unwrap());
    let job = ask(Role::Kiosk, Method::GET, path(&kiosk), json!(null)).await.json();
    assert_eq!(job["origin"], "kiosk", "whatever it says");
    ask(Role::Kiosk, Method::DELETE, path(&studio), json!(null)).await.refused(403, "kiosk");
    assert_eq!(ask(Role::Kiosk, Method::DELETE, path(&kiosk), json!(null)).await.status, 204);
    assert_eq!(ask(Role::Admin, Method::DELETE, path(&studio), json!(null)).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sites_and_rebound_names_are_refused() {
    let house = House::new();
    let press = |headers: &[(&str, &str)]| house.ask(request(Method::POST, "/api/v1/shutter", headers, Body::empty()));
    assert_eq!(press(&[]).await.status, 202);
    assert_eq!(press(&[("origin", "http://127.0.0.1:7860"), ("sec-fetch-site", "same-origin")]).await.status, 202);
    for header in OTHER_SITE {
        press(&[header]).await.refused(403, "another site");
        for path in ["/api/v1/events", "/api/v1/camera.mjpeg", "/api/v1/paintings", "/metrics", "/sdapi/v1/progress"] {
            house.ask(request(Method::GET, path, &[header], Body::empty())).await.refused(403, "another site");
        }
    }
    // a link on another site may lead to a page
    assert_eq!(house.ask(request(Method::GET, "/", &OTHER_SITE[1..], Body::empty())).await.status, 200);
    for host in ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "192.168.1.1"] {
        house.ask(request(Method::GET, "/api/v1/kiosk", &[("host", host)], Body::empty())).await.refused(403, "host");
    }
    for host in ["localhost:7860", "[::1]:7860", "127.0.0.1"] {
        house.ask(request(Method::GET, "/api/v1/kiosk", &[("host", host)], Body::empty())).await.fine();
    }
    let bare = Request::get("/healthz").body(Body::empty()).unwrap();
    house.ask(bare).await.refused(400, "host");
    let known = House::with(LOOPBACK, |config| config.security.hosts = vec!["kiosk.lan".into()]);
    known.ask(request(Method::GET, "/healthz", &[("host", "kiosk.lan:7860")], Body::empty())).await.fine();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_makes_browsers_careful() {
    let house = House::new();
    for path in ["/", "/healthz", "/nothing", "/api/v1/kiosk", "/p/x"] {
        let answer = house.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!((answer.header("x-frame-options"), answer.header("referrer-policy")), ("DENY", "no-referrer"));
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_pictures_are_refused() {
    let house = House::with(LOOPBACK, |config| {
        (config.security.body_megabytes, config.security.megapixels) = (1, 1);
    });
    let large = json!({"prompt": "x".repeat(1_100_000)});
    house.post("/api/v1/paintings", large).await.refused(413, "");
    house.form("/api/v1/paintings", &[], &[("frame", vec![0; 1_100_000])]).await.refused(413, "");
    // a header that promises more pixels than memory has
    let mut bomb = png(9, 9);
    bomb[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let many = png(1100, 1000);
    for (picture, status, word) in [(bomb, 422, "30000x30000"), (many, 413, "1100x1000")] {
        house.form("/api/v1/styles", &[("name", "a")], &[("image", picture.clone())]).await.refused(status, word);
        house.form("/api/v1/paintings", &[("prompt", "a")], &[("frame", picture.clone())]).await.refused(status, word);
    }
    house.form("/api/v1/paintings", &[("prompt", &"x".repeat(70_000))], &[]).await.refused(400, "longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_has_to_wait() {
    let house = House::with(LOOPBACK, |config| config.security.requests_per_minute = 3);
    for _ in 0..3 {
        assert_eq!(house.post("/api/v1/shutter", json!(null)).await.status, 202);
    }
    let refused = house.post("/api/v1/shutter", json!(null)).await;
    refused.refused(429, "too many");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(house.get("/api/v1/kiosk").await.status, 200, "looking is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_in_is_given_up() {
    let house = House::with(LOOPBACK, |config| config.security.request_seconds = 1);
    for path in ["/api/v1/paintings", "/sdapi/v1/txt2img"] {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let kind = [("content-type", "application/json")];
        house.ask(request(Method::POST, path, &kind, body)).await.refused(408, "");
        drop(sender);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_from_a_client_reaches_the_disk() {
    let house = House::new();
    std::fs::write(house.folder.path().join("secret.png"), "secret").unwrap();
    let data = house.folder.path().join("data");
    std::fs::write(data.join("secret.safetensors"), "secret").unwrap();
    let id = house.painted().await;
    for path in [
        "/assets/..%2f..%2fsecret.png",
        "/assets/%2e%2e%2fsecret.png",
        "/assets/../secret.png",
        "/assets/..%5csecret.png",
        "/api/v1/paintings/..%2f..%2f..%2fsecret/image.png",
        "/api/v1/paintings/..%2fsecret",
        "/api/v1/styles/..%2f..%2fsecret.safetensors",
        "/api/v1/styles/..%2fsecret/picture.jpg",
        "/api/v1/styles/..%2fsecret/losses",
        "/api/v1/jobs/..%2f..",
        "/p/..%2f..%2fsecret/image.png",
        "/api/v1/paintings/%00/image.png",
        "//etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
    ] {
        let answer = house.get(path).await;
        assert!(answer.status == 404, "{path}: {answer:?}");
        assert!(!answer.body.windows(6).any(|six| six == b"secret") || path.contains("secret"), "{path}: {answer:?}");
    }
    let outside = format!("{}/../secret.safetensors", data.display());
    let mix = json!({"name": "a", "rules": [format!("5..0={outside}")]});
    house.post("/api/v1/styles/mix", mix).await.refused(422, "no style");
    house
        .post("/api/v1/paintings", json!({"prompt": "a", "mix": ["5..0=../secret.safetensors"]}))
        .await
        .refused(422, "no style");
    // the names of uploaded files lead outside (see `multipart`); what is written is named by ids
    let answer = house.form("/api/v1/paintings", &[("prompt", "a"), ("steps", "4")], &[("frame", png(9, 9))]).await;
    house.over(answer.fine().json()["id"].as_str().unwrap()).await;
    let names = |folder: &str| {
        std::fs::read_dir(data.join(folder)).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
    };
    let known = |name: &std::ffi::OsString| name.to_str().unwrap()[..36].parse::<pleinair::daemon::job::Id>().is_ok();
    assert!(names("paintings").iter().all(known) && names("paintings").len() == 5, "{:?}", names("paintings"));
    assert!(house.get(&format!("/api/v1/paintings/{id}")).await.status == 200);
}

impl House {
    /// The status of an answer whose body may never end.
    async fn ask_head(&self, request: Request<Body>) -> u16 {
        self.router.clone().oneshot(request).await.unwrap().status().as_u16()
    }
}
