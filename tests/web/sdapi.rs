//! What clients made for the A1111 web UI send and expect; the bodies are those that webuiapi and photo booths send.

use super::*;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// As webuiapi's `txt2img()` without arguments, but for size and steps.
fn webuiapi() -> Value {
    json!({
        "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7, "firstphase_width": 0,
        "prompt": "a house", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0, "batch_size": 1,
        "n_iter": 1, "steps": 2, "cfg_scale": 7.0, "width": 64, "height": 64, "restore_faces": false, "tiling": false,
        "negative_prompt": "", "eta": 1.0, "s_churn": 0, "override_settings": {},
        "override_settings_restore_afterwards": true, "sampler_name": "Euler a", "sampler_index": "Euler a",
        "script_name": null, "script_args": [], "send_images": true, "save_images": false, "alwayson_scripts": {},
    })
}

fn with(mut order: Value, changes: Value) -> Value {
    order.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    order
}

fn pictures(answer: &Value) -> Vec<Frame> {
    let decoded = |image: &Value| {
        let png = BASE64_STANDARD.decode(image.as_str().unwrap()).unwrap();
        assert!(png.starts_with(b"\x89PNG"));
        Frame::from_bytes(&png, 1 << 20).unwrap()
    };
    answer["images"].as_array().unwrap().iter().map(decoded).collect()
}

fn info(answer: &Value) -> Value {
    serde_json::from_str(answer["info"].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_paints_a_prompt() {
    let house = House::new();
    let answer = house.post("/sdapi/v1/txt2img", webuiapi()).await.fine().json();
    assert_eq!(pictures(&answer).len(), 1);
    let told = info(&answer);
    assert_eq!(
        (&told["sampler_name"], &told["steps"], &told["width"]),
        (&json!("Euler"), &json!(2), &json!(64)),
        "{told}"
    );
    assert!(told["extra_generation_params"]["Notes"].as_str().unwrap().contains("Euler a"), "{told}");
    assert!(told["infotexts"][0].as_str().unwrap().contains("Steps: 2"), "{told}");
    assert_eq!(answer["parameters"]["prompt"], "a house");
    assert_eq!(
        house.get("/api/v1/paintings").await.json()["paintings"],
        json!([]),
        "not in the gallery unless asked for"
    );

    let more = with(
        webuiapi(),
        json!({"batch_size": 2, "n_iter": 2, "seed": 40, "save_images": true, "sampler_name": "DPM++ 2M"}),
    );
    let answer = house.post("/sdapi/v1/txt2img", more).await.fine().json();
    assert_eq!(info(&answer)["all_seeds"], json!([40, 41, 42, 43]));
    let frames = pictures(&answer);
    assert!(frames.len() == 4 && frames[0] != frames[1]);
    assert_eq!(house.get("/api/v1/paintings").await.json()["paintings"].as_array().unwrap().len(), 4);
    let silent = with(webuiapi(), json!({"send_images": false}));
    assert_eq!(house.post("/sdapi/v1/txt2img", silent).await.fine().json()["images"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_photo_booth_paints_a_photograph() {
    let house = House::new();
    let bare = BASE64_STANDARD.encode(png(64, 64));
    let unit = json!({"enabled": true, "module": "softedge_hed", "model": "control_v11p_sd15_softedge", "weight": 0.7});
    let order = json!({
        "init_images": [format!("data:image/png;base64,{bare}")], "denoising_strength": 0.9, "prompt": "a house", "steps": 4,
        "width": 64, "height": 64, "seed": 3, "sampler_name": "DPM++ 2M Karras",
    });
    let plain = house.post("/sdapi/v1/img2img", order.clone()).await.fine().json();
    let guided = with(order.clone(), json!({"alwayson_scripts": {"ControlNet": {"args": [unit]}}}));
    let guided = house.post("/sdapi/v1/img2img", guided).await.fine().json();
    assert_ne!(pictures(&plain), pictures(&guided), "the unit counts");
    assert_eq!(info(&plain)["denoising_strength"], 0.9);
    let from_edges =
        json!({"prompt": "a house", "steps": 2, "alwayson_scripts": {"controlnet": {"args": [{"image": bare}]}}});
    house.post("/sdapi/v1/txt2img", from_edges).await.fine();

    house.post("/sdapi/v1/img2img", json!({"prompt": "a"})).await.refused(404, "init_images");
    let refused = |changes: Value| house.post("/sdapi/v1/img2img", with(order.clone(), changes));
    refused(json!({"init_images": ["%"]})).await.refused(422, "Base64");
    refused(json!({"init_images": ["aGk="]})).await.refused(422, "picture");
    refused(json!({"mask": bare})).await.refused(422, "mask");
    refused(json!({"enable_hr": true})).await.refused(422, "enable_hr");
    refused(json!({"sampler_name": "PLMS"})).await.refused(404, "PLMS");
    refused(json!({"batch_size": 17})).await.refused(422, "17");
    refused(json!({"styles": ["nobody"]})).await.refused(422, "nobody");
    refused(json!({"override_settings": {"sd_model_checkpoint": "other"}})).await.refused(422, "other");
    refused(json!({"steps": "x"})).await.refused(422, "x");
    let units = |units: Value| json!({"alwayson_scripts": {"controlnet": {"args": units}}});
    refused(units(json!([{}, {}]))).await.refused(422, "two units look at soft-edge pictures");
    let depth = json!({"model": "control_v11f1p_sd15_depth [cfd03158]", "module": "depth_midas"});
    refused(units(json!([{}, depth]))).await.refused(422, "no ControlNet for depth pictures, only for soft-edge");
    refused(units(json!([{"image": "%"}]))).await.refused(422, "Base64");

    // a picture that is the control picture itself, with a photograph and without one
    let white = BASE64_STANDARD.encode(png(32, 32));
    let given = units(json!([{"image": white, "module": "none", "weight": 0.7}]));
    let looked = house.post("/sdapi/v1/img2img", with(order.clone(), given.clone())).await.fine().json();
    assert!(pictures(&looked) != pictures(&guided) && pictures(&looked) != pictures(&plain));
    let prompt = json!({"prompt": "a house", "steps": 2, "seed": 3, "width": 64, "height": 64});
    let free = house.post("/sdapi/v1/txt2img", prompt.clone()).await.fine().json();
    let held = house.post("/sdapi/v1/txt2img", with(prompt, given)).await.fine().json();
    assert_ne!(pictures(&free), pictures(&held));
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_and_interrupted() {
    let house = House::with(LOOPBACK, |config| config.painting.preview_every = 1);
    let idle = house.get("/sdapi/v1/progress").await.fine().json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    let order = with(webuiapi(), json!({"steps": 900, "sampler_name": "DDIM"}));
    let painting = house.post("/sdapi/v1/txt2img", order);
    let watching = async {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = house.get("/sdapi/v1/progress?skip_current_image=false").await.fine().json();
            if let Some(image) = now["current_image"].as_str() {
                assert!((0.0..1.0).contains(&now["progress"].as_f64().unwrap()), "{now}");
                assert_eq!(now["state"]["sampling_steps"], 900);
                Frame::from_bytes(&BASE64_STANDARD.decode(image).unwrap(), 1 << 20).unwrap();
                let without = house.get("/sdapi/v1/progress?skip_current_image=true").await.json();
                assert!(without["current_image"].is_null());
                break;
            }
            assert!(Instant::now() < end, "{now}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        house.post("/sdapi/v1/interrupt", json!(null)).await.fine();
    };
    let (answer, ()) = tokio::join!(painting, watching);
    assert_eq!(answer.fine().json()["images"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_no_longer_waits_has_no_painting_made() {
    let house = House::new();
    let order = with(webuiapi(), json!({"steps": 900}));
    let impatient = tokio::time::timeout(Duration::from_millis(500), house.post("/sdapi/v1/txt2img", order)).await;
    assert!(impatient.is_err());
    let jobs = house.get("/api/v1/jobs").await.json();
    assert_eq!(house.over(jobs["jobs"][0]["id"].as_str().unwrap()).await, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_is_listed() {
    let house = House::new();
    let own = &house.get("/sdapi/v1/sd-models").await.fine().json()[0];
    assert_eq!((&own["title"], &own["model_name"]), (&json!("tiny-sd15"), &json!("tiny-sd15")));
    let samplers = house.get("/sdapi/v1/samplers").await.fine().json();
    assert!(samplers.as_array().unwrap().iter().any(|s| s["name"] == "DPM++ 2M" && s["aliases"][0] == "dpm++2m"));
    assert_eq!(house.get("/sdapi/v1/options").await.fine().json()["sd_model_checkpoint"], "tiny-sd15");
    assert_eq!(
        house.post("/sdapi/v1/options", json!({"sd_model_checkpoint": "tiny-sd15"})).await.fine().json(),
        json!(null)
    );
    house.post("/sdapi/v1/options", json!({"sd_model_checkpoint": "other"})).await.refused(422, "other");
    assert_eq!(house.get("/sdapi/v1/embeddings").await.fine().json(), json!({"loaded": {}, "skipped": {}}));

    let id = house.painted().await;
    let image = house.get(&format!("/api/v1/paintings/{id}/image.png")).await.body;
    let told = house.post("/sdapi/v1/png-info", json!({"image": BASE64_STANDARD.encode(&image)})).await.fine().json();
    assert_eq!(
        (&told["parameters"]["Steps"], &told["parameters"]["Prompt"]),
        (&json!("2"), &json!("a house")),
        "{told}"
    );
    assert!(told["items"]["pleinair"].as_str().unwrap().starts_with('{'));
    house.post("/sdapi/v1/png-info", json!({"image": "aGk="})).await.refused(422, "PNG");
    house.post("/sdapi/v1/png-info", json!({})).await.refused(422, "image");
}
