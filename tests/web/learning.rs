//! Styles over the API: a tiny lesson, files, mixes, names.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_style_is_learned_named_used_mixed_and_deleted() {
    let house = House::with(LOOPBACK, |config| config.learning.preview_every = 2);
    let mut events = Stream::open(&house).await;
    let fields = [
        ("name", "dunes"),
        ("context", "a photo of {}"),
        ("stages", "2"),
        ("steps", "3"),
        ("batch", "1"),
        ("seed", "5"),
        ("stage_lr", "1=0.001,0.004"),
        ("learn_stages", "0..1"),
        ("accumulate", "2"),
        ("min_snr", "5"),
        ("validate_prompts", "a boat"),
        ("validate_every", "2"),
        ("early_stop", "9"),
    ];
    let pictures = [("image", png(40, 40)), ("validate_image", png(40, 40))];
    let answer = house.form("/api/v1/styles", &fields, &pictures).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let mut steps = vec![];
    loop {
        let (name, data) = events.next().await.unwrap();
        match name.as_str() {
            "learning" => {
                assert_eq!(data["stages"].as_array().unwrap().len(), 2, "{data}");
                assert_eq!(data["validation"].is_f64(), data["step"] == 2, "{data}");
                steps.push(data["step"].as_u64().unwrap());
            }
            "finished" if data["id"] == id.as_str() => break,
            "failed" | "cancelled" => panic!("{data}"),
            _ => {}
        }
    }
    assert_eq!(steps, [1, 2, 3]);
    let style = house.get(&format!("/api/v1/styles/{id}")).await.fine().json();
    assert_eq!((&style["name"], &style["stages"], &style["kept"]), (&json!("dunes"), &json!(2), &json!(false)));
    let losses = house.get(&format!("/api/v1/styles/{id}/losses")).await.fine().json();
    assert!(losses.as_array().unwrap().iter().all(|point| point["loss"].as_f64().unwrap().is_finite()), "{losses}");
    let csv = house.get(&format!("/api/v1/styles/{id}/losses.csv")).await.fine();
    assert!(csv.body.starts_with(b"step,t_stage,loss,smoothed_loss\n"), "{csv:?}");
    house.get(&format!("/api/v1/styles/{id}/picture.jpg")).await.fine();
    for (picture, wide) in [("losses.png", 1280), ("validation.png", 128)] {
        let png = house.get(&format!("/api/v1/styles/{id}/{picture}")).await.fine();
        assert!(image::load_from_memory(&png.body).unwrap().width() >= wide, "{picture}");
    }
    let wrong = [("learn_stages", "7"), ("vectors_per_stage", "0"), ("stage_lr", "fast"), ("validate_prompts", "{")];
    for (field, value) in wrong {
        let fields = [("name", "x"), ("steps", "1"), (field, value)];
        let answer = house.form("/api/v1/styles", &fields, &[("image", png(40, 40))]).await;
        assert!(answer.status == 422 || answer.status == 400, "{field}: {answer:?}");
    }

    let change = json!({"name": "grande dune", "kept": true, "license": "CC0-1.0"});
    let changed = house.send(Method::PATCH, &format!("/api/v1/styles/{id}"), change).await.fine().json();
    assert_eq!(
        (&changed["name"], &changed["kept"], &changed["license"]),
        (&json!("grande dune"), &json!(true), &json!("CC0-1.0"))
    );
    let painting = house.order(json!({"styles": ["grande dune"], "steps": 2})).await;
    assert_eq!(house.over(&painting).await, "finished");

    let file = house.get(&format!("/api/v1/styles/{id}.safetensors")).await.fine();
    assert!(file.header("content-disposition").contains("grande_dune.safetensors"), "{file:?}");
    let brought = house.form("/api/v1/styles", &[("name", "brought")], &[("style", file.body.to_vec())]).await;
    assert_eq!((brought.status.as_u16(), &brought.json()["source"]), (201, &json!("file")));
    for foreign in ["a1111-old.pt", "card.png", "dreamstyler.bin"] {
        let bytes = std::fs::read(format!("{}/tests/fixtures/styles/{foreign}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let brought = house.form("/api/v1/styles", &[("name", foreign)], &[("style", bytes)]).await;
        assert_eq!(brought.status, 201, "{foreign}: {brought:?}");
        let gone = house.delete(&format!("/api/v1/styles/{}", brought.json()["id"].as_str().unwrap())).await;
        assert_eq!(gone.status, 204);
    }
    let mixed =
        house.post("/api/v1/styles/mix", json!({"name": "both", "rules": ["1=brought", format!("0={id}")]})).await;
    assert_eq!((mixed.status.as_u16(), &mixed.json()["source"]), (201, &json!("mix")), "{mixed:?}");
    let with = json!({"name": "half", "rules": ["1=brought*0.5+both*0.5"]});
    let half = house.post(&format!("/api/v1/styles/{id}/mix"), with).await;
    assert_eq!((half.status.as_u16(), &half.json()["stages"]), (201, &json!(2)), "{half:?}");
    let names = house.get("/api/v1/styles").await.fine().json();
    let names: Vec<_> = names["styles"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["grande dune", "brought", "both", "half"]);

    let taken = json!({"name": "both"});
    house.send(Method::PATCH, &format!("/api/v1/styles/{id}"), taken).await.refused(409, "both");
    house.send(Method::PATCH, &format!("/api/v1/styles/{id}"), json!({"name": "{"})).await.refused(422, "name");
    house.send(Method::PATCH, &format!("/api/v1/styles/{id}"), json!({"colour": 1})).await.refused(422, "colour");
    assert_eq!(house.delete(&format!("/api/v1/styles/{id}")).await.status, 204);
    for path in ["", "/picture.jpg", ".safetensors"] {
        house.get(&format!("/api/v1/styles/{id}{path}")).await.refused(404, "style");
    }
    house.delete(&format!("/api/v1/styles/{id}")).await.refused(404, "style");
    house.send(Method::PATCH, &format!("/api/v1/styles/{id}"), json!({})).await.refused(404, "style");
    house.post(&format!("/api/v1/styles/{id}/mix"), json!({"name": "a", "rules": []})).await.refused(404, "style");
}

#[tokio::test(flavor = "multi_thread")]
async fn lessons_that_make_no_sense_are_refused() {
    let house = House::with(LOOPBACK, |config| (config.learning.most_pictures, config.queue.lessons) = (2, 1));
    let learn = |fields: Vec<(&'static str, &'static str)>, files: Vec<(&'static str, Vec<u8>)>| {
        let house = &house;
        async move { house.form("/api/v1/styles", &fields, &files).await }
    };
    let picture = || ("image", png(20, 20));
    learn(vec![], vec![]).await.refused(400, "nothing to learn");
    learn(vec![], vec![picture(), ("style", vec![1])]).await.refused(400, "not both");
    learn(vec![], vec![("style", b"nonsense".to_vec())]).await.refused(422, "style file");
    learn(vec![], vec![("image", b"nonsense".to_vec())]).await.refused(422, "picture");
    learn(vec![], vec![picture(), picture(), picture()]).await.refused(422, "at most 2");
    learn(vec![("context", "a {}"), ("context", "b {}")], vec![picture()]).await.refused(422, "contexts");
    learn(vec![("steps", "0")], vec![picture()]).await.refused(422, "steps");
    learn(vec![("colour", "red")], vec![picture()]).await.refused(422, "colour");
    learn(vec![("name", "{}")], vec![picture()]).await.refused(422, "name");
    learn(vec![("init", "no such word")], vec![picture()]).await.refused(422, "word");
    house.post("/api/v1/styles", json!({})).await.refused(400, "");
    house.post("/api/v1/styles/mix", json!({"name": "a", "rules": ["0=nobody"]})).await.refused(422, "nobody");
    house.post("/api/v1/styles/mix", json!({"name": "a", "rules": []})).await.refused(422, "style");
    house.post("/api/v1/styles/mix", json!({"rules": []})).await.refused(422, "name");
    let long = learn(vec![("steps", "100000"), ("stages", "2"), ("batch", "1")], vec![picture()]).await.fine().json();
    learn(vec![], vec![picture()]).await.refused(503, "queue");
    // a painting does not wait for the lesson to end
    house.painted().await;
    assert_eq!(house.delete(&format!("/api/v1/jobs/{}", long["id"].as_str().unwrap())).await.status, 204);
    house.get("/api/v1/styles/nobody").await.refused(404, "style");
    house.get("/api/v1/styles/nobody/losses").await.refused(404, "lesson");
}
