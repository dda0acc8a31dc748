//! What of a caption is content: a style's context describes all that is NOT style (DreamStyler, arXiv 2309.06933,
//! section 3.2), and captioners like to begin with what the picture is painted with.

/// Nouns that say how a picture was made.
const MEDIA: [&str; 30] = [
    "painting",
    "paintings",
    "drawing",
    "sketch",
    "illustration",
    "print",
    "woodcut",
    "engraving",
    "etching",
    "lithograph",
    "watercolor",
    "watercolour",
    "pastel",
    "fresco",
    "mosaic",
    "mural",
    "poster",
    "cartoon",
    "artwork",
    "photo",
    "photograph",
    "picture",
    "image",
    "canvas",
    "collage",
    "portrait",
    "oil",
    "ink",
    "charcoal",
    "gouache",
];
/// Words that go with them.
const ADJECTIVES: [&str; 39] = [
    "oil",
    "ink",
    "acrylic",
    "watercolor",
    "watercolour",
    "pencil",
    "charcoal",
    "pastel",
    "digital",
    "abstract",
    "impressionist",
    "impressionistic",
    "expressionist",
    "cubist",
    "surreal",
    "surrealist",
    "realistic",
    "baroque",
    "renaissance",
    "rococo",
    "romantic",
    "modern",
    "japanese",
    "chinese",
    "old",
    "vintage",
    "famous",
    "black",
    "white",
    "and",
    "colorful",
    "colourful",
    "stylized",
    "line",
    "landscape",
    "still",
    "life",
    "genre",
    "framed",
];
/// What links them to the content.
const LINKS: [&str; 5] = ["of", "showing", "depicting", "with", "featuring"];
const ARTICLES: [&str; 4] = ["a", "an", "the", "this"];
/// Phrases that say it at the end or in between; what follows the first two belongs to them, up to the next comma.
const NAMING: [&[&str]; 3] = [&["in", "the", "style", "of"], &["in", "the", "manner", "of"], &["painted", "by"]];
const PHRASES: [&[&str]; 9] = [
    &["oil", "on", "canvas"],
    &["on", "canvas"],
    &["on", "a", "canvas"],
    &["on", "paper"],
    &["in", "black", "and", "white"],
    &["in", "watercolor"],
    &["in", "watercolour"],
    &["in", "oil"],
    &["in", "oils"],
];

/// What captions begin with; the second only goes before a medium, for a close up of a flower is one of a flower.
const BEFORE: [&[&str]; 2] = [&["there", "is"], &["a", "close", "up", "of"]];

/// What the picture shows, without words for style, medium or maker; empty where a caption says nothing else.
pub fn content(caption: &str) -> String {
    let lower = caption.to_lowercase().replace(',', " , ");
    let mut words: Vec<&str> = lower.split_whitespace().map(|word| word.trim_end_matches(['.', '!'])).collect();
    for phrase in NAMING {
        while let Some(at) = find(&words, phrase) {
            let end = words[at..].iter().position(|word| *word == ",").map_or(words.len(), |comma| at + comma);
            words.drain(at..end);
        }
    }
    for phrase in PHRASES {
        while let Some(at) = find(&words, phrase) {
            words.drain(at..at + phrase.len());
        }
    }
    for phrase in BEFORE {
        if words.starts_with(phrase) && (phrase == BEFORE[0] || opening(&words[phrase.len()..]).is_some()) {
            words.drain(..phrase.len());
        }
    }
    while let Some(length) = opening(&words) {
        words.drain(..length);
    }
    let mut text = words.join(" ").replace(" ,", ",");
    while text.contains(",,") {
        text = text.replace(",,", ",");
    }
    text.trim_matches([' ', ',']).to_owned()
}

/// A context prompt of a caption, with `{}` where the style goes.
pub fn context(caption: &str) -> String {
    match content(caption).as_str() {
        "" => "A painting in the style of {}".to_owned(),
        shown => format!("A painting of {shown}, in the style of {{}}"),
    }
}

fn find(words: &[&str], phrase: &[&str]) -> Option<usize> {
    words.windows(phrase.len()).position(|window| window == phrase)
}

/// How many words at the start say what the picture is made of: `a black and white drawing of`, or all of `an oil painting`.
fn opening(words: &[&str]) -> Option<usize> {
    let mut at = usize::from(words.first().is_some_and(|word| ARTICLES.contains(word)));
    let noun = loop {
        let word = words.get(at)?;
        let followed = words.get(at + 1).is_none_or(|next| LINKS.contains(next) || *next == ",");
        if MEDIA.contains(word) && followed {
            break at;
        }
        if !ADJECTIVES.contains(word) && !MEDIA.contains(word) {
            return None;
        }
        at += 1;
    };
    let linked = words.get(noun + 1).is_some_and(|word| LINKS.contains(word) || *word == ",");
    Some(noun + 1 + usize::from(linked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_goes_and_content_stays() {
        let cases = [
            ("a painting of a house by the sea", "a house by the sea"),
            ("an oil painting of a vase with flowers on a table", "a vase with flowers on a table"),
            ("a black and white drawing of an old man", "an old man"),
            ("there is a watercolor painting of two boats.", "two boats"),
            ("a painting of a picture of a dog", "a dog"),
            ("a village in winter, in the style of van gogh", "a village in winter"),
            ("trees in the style of monet, with a river", "trees, with a river"),
            ("a woman, oil on canvas", "a woman"),
            ("a woman painting a fence", "a woman painting a fence"),
            ("an oil lamp on a table", "an oil lamp on a table"),
            ("a black dog and a white cat", "a black dog and a white cat"),
            ("a modern city at night", "a modern city at night"),
            ("a painting", ""),
            ("An Impressionist landscape painting of Hills", "hills"),
            ("a close up of a painting of a horse", "a horse"),
            ("there is a close up of a flower", "a close up of a flower"),
            ("a framed picture", ""),
            ("a picture frame on a wall", "a picture frame on a wall"),
            ("a still life painting of pears", "pears"),
            ("", ""),
        ];
        for (caption, expected) in cases {
            assert_eq!(content(caption), expected, "{caption}");
        }
    }

    #[test]
    fn a_context_says_where_the_style_goes() {
        assert_eq!(context("a painting of pears"), "A painting of pears, in the style of {}");
        assert_eq!(context("a painting"), "A painting in the style of {}");
        for text in [context("a boat"), context("")] {
            crate::prompt::Template::parse(&text).unwrap();
        }
    }
}
