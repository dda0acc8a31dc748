//! Embeddings that other programs' libraries wrote, 768 numbers wide, paint on a random model of that width.

use pleinair::painter::{Habits, Painter, Request, Size, StyleChoice};
use pleinair::style::{FileFormat, Style};
use pleinair_quantize::configs::Model;
use pleinair_quantize::synth::{Dtype, Synth};
use std::path::Path;
use std::sync::atomic::AtomicBool;

#[test]
fn embeddings_of_others_paint_on_a_model_of_their_width() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("wide");
    let synth = Synth { model: Model::Wide, seed: 3, dtype: Dtype::F16, out: out.clone(), force: false };
    synth.run(&AtomicBool::new(false)).unwrap();
    let painter = Painter::open(&out).unwrap();
    assert_eq!(painter.text_encoder().width(), 768);

    let paint = |style: Style| {
        let request = Request {
            styles: vec![style.token.clone()],
            prompt: Some("a boat, in the style of {}".into()),
            steps: Some(3),
            size: Some(Size::Sides(64, 64)),
            ..Request::default()
        };
        let (order, _) = request.order(&painter, vec![StyleChoice::Learned(style)], None, Habits::default()).unwrap();
        painter.paint(&order, &mut |_| Ok(())).unwrap()
    };
    let styles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/styles");
    let none = paint(Style { token: "nothing".into(), vectors: vec![vec![0.0; 768]], ..Style::default() });
    for file in ["a1111.pt", "learned_embeds.bin", "learned_embeds.safetensors"] {
        let style = Style::open(styles.join(file)).unwrap();
        let painted = paint(style.clone());
        assert!(painted != none, "{file} has no effect");
        // and the same from a file that this program made of it
        for format in FileFormat::ALL {
            let bytes = style.to_format(format, None).unwrap();
            assert!(paint(Style::from_bytes(&bytes).unwrap()) == painted, "{file} as {format}");
        }
    }
    let one = Style::open(styles.join("learned_embeds.bin")).unwrap();
    assert!(paint(one) == paint(Style::open(styles.join("learned_embeds.safetensors")).unwrap()));
}
