//! The stream of events, and jobs that are taken back.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_painting_is_told_from_the_order_to_the_end() {
    let house = House::with(LOOPBACK, |config| config.painting.preview_every = 1);
    let mut events = Stream::open(&house).await;
    let id = house.order(json!({"prompt": "a house", "steps": 3})).await;
    let mut told = vec![];
    while let Some((name, data)) = events.next().await {
        assert_eq!(data["event"], name);
        if data["id"] == id.as_str() {
            told.push((name.clone(), data));
        }
        if name == "finished" {
            break;
        }
    }
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], *names.last().unwrap()), ("queued", "finished"), "{names:?}");
    assert!(names.contains(&"preview"), "{names:?}");
    let steps: Vec<_> =
        told.iter().filter(|(name, _)| name == "step").map(|(_, data)| (&data["i"], &data["n"])).collect();
    assert_eq!(steps, [(&json!(1), &json!(3)), (&json!(2), &json!(3)), (&json!(3), &json!(3))]);
    assert!(told.iter().all(|(name, data)| *name != "step" || data["stage"].is_null()), "no style, no stage");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_taken_back_while_they_wait_and_while_they_run() {
    let house = House::new();
    let mut events = Stream::open(&house).await;
    let running = house.order(json!({"prompt": "a house", "steps": 900})).await;
    while events.next().await.unwrap().0 != "step" {}
    let waiting = house.order(json!({"prompt": "a house", "steps": 2})).await;
    let painting = house.get(&format!("/api/v1/paintings/{waiting}")).await.json();
    assert_eq!((&painting["state"], &painting["position"]), (&json!("queued"), &json!(1)), "{painting}");
    assert!(painting["painting"].is_null());
    for id in [&waiting, &running] {
        assert_eq!(house.delete(&format!("/api/v1/jobs/{id}")).await.status, 204);
        assert_eq!(house.over(id).await, "cancelled");
        house.delete(&format!("/api/v1/jobs/{id}")).await.refused(409, "over");
        house.get(&format!("/api/v1/paintings/{id}/image.png")).await.refused(404, "no such");
    }
    let mut cancelled = vec![];
    while cancelled.len() < 2 {
        let (name, data) = events.next().await.unwrap();
        if name == "cancelled" {
            cancelled.push(data["id"].clone());
        }
    }
    assert_eq!(cancelled, [json!(waiting), json!(running)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_the_site_closes() {
    let house = House::new();
    let mut events = Stream::open(&house).await;
    house.post("/api/v1/shutter", json!(null)).await.fine();
    assert_eq!(events.next().await.unwrap().0, "shutter");
    house.site.close();
    assert!(events.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_told() {
    let house = House::new();
    let mut events = Stream::open(&house).await;
    for _ in 0..3000 {
        house.daemon.press_shutter();
    }
    let mut lagged = None;
    while lagged.is_none() {
        let (name, data) = events.next().await.unwrap();
        lagged = (name == "lagged").then_some(data);
    }
    assert!(lagged.unwrap()["missed"].as_u64().unwrap() > 0);
}
