//! Prompts with places for styles: `a house by the sea, in the style of {}`.

use super::Tokenizer;
use crate::error::{Error, Result};

/// The words before a style's place that go with it.
const IN_THE_STYLE_OF: &str = "in the style of";

/// A style as a prompt names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptStyle {
    /// A learned style: tokens whose vectors the text encoder is handed.
    Learned {
        /// Its name.
        name: String,
        /// How many tokens in a row it stands for, one a vector of its stage; at least 1.
        tokens: usize,
    },
    /// A word or words the model knows; they simply become part of the text.
    Word(String),
}

impl PromptStyle {
    /// A learned style of this name with so many vectors a stage.
    pub fn learned(name: impl Into<String>, tokens: usize) -> Self {
        PromptStyle::Learned { name: name.into(), tokens }
    }

    /// The name a prompt calls it by.
    pub fn name(&self) -> &str {
        match self {
            PromptStyle::Learned { name, .. } | PromptStyle::Word(name) => name,
        }
    }

    /// `<gogh>` is also called by `gogh`.
    fn is_called(&self, name: &str) -> bool {
        let own = self.name();
        own == name || own.strip_prefix('<').and_then(|own| own.strip_suffix('>')) == Some(name)
    }
}

/// A prompt as text with places for styles: `{}` stands for all styles, joined by " and "; `{name}` for the one of that
/// name; `{{` and `}}` for braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    AllStyles,
    Style(String),
}

/// A prompt's token ids, ready for the text encoder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// `[77]`: start, text, end, padding. At a style's position stands [`Tokens::STYLE_PLACEHOLDER`].
    pub ids: Vec<u32>,
    /// Where in `ids` a learned style's vectors go, each by itself and in order, and the style's index among those the
    /// prompt was given.
    pub styles: Vec<(usize, usize)>,
    /// How many tokens did not fit and were cut off the end; the caller warns.
    pub dropped: usize,
    /// Indices of the styles among the tokens cut off: they have no effect there.
    pub dropped_styles: Vec<usize>,
}

impl Tokens {
    /// The id at a style's position: any row of the word table would do, its vector is replaced.
    pub const STYLE_PLACEHOLDER: u32 = 0;
}

impl Template {
    /// Reads a prompt.
    ///
    /// # Errors
    /// [`Error::Usage`] for a brace without its partner.
    pub fn parse(prompt: &str) -> Result<Template> {
        let unpaired = |brace: char| {
            Error::Usage(format!(
                "the prompt {prompt:?} has a {brace:?} without its partner; write {brace}{brace} for one"
            ))
        };
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = prompt;
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = if rest[at..].starts_with('{') { '{' } else { '}' };
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                text.push(brace);
                rest = after;
                continue;
            }
            let close = rest.find(['{', '}']).filter(|&close| brace == '{' && rest[close..].starts_with('}'));
            let name = rest[..close.ok_or_else(|| unpaired(brace))?].trim();
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(if name.is_empty() { Part::AllStyles } else { Part::Style(name.to_owned()) });
            rest = &rest[close.map_or(0, |close| close + 1)..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Template { parts })
    }

    /// Text without places, braces and all.
    pub fn literal(text: &str) -> Template {
        Template { parts: if text.is_empty() { vec![] } else { vec![Part::Text(text.to_owned())] } }
    }

    /// `A painting in the style of {}`: the style alone (the prompt of `es` in the paper's guidance).
    pub fn style_only() -> Template {
        Template { parts: vec![Part::Text(format!("A painting {IN_THE_STYLE_OF} ")), Part::AllStyles] }
    }

    /// Whether there is a place for a style.
    pub fn has_style_place(&self) -> bool {
        self.parts.iter().any(|part| !matches!(part, Part::Text(_)))
    }

    /// The full prompt: where there is no place for a style, `, in the style of {}` is appended; the empty prompt becomes
    /// [`Template::style_only`]. For prompts that are given styles.
    pub fn with_style_place(&self) -> Template {
        if self.has_style_place() {
            return self.clone();
        }
        let text: String = self.parts.iter().map(Part::text).collect();
        let text = text.trim_end().trim_end_matches(',');
        if text.trim().is_empty() {
            return Template::style_only();
        }
        Template { parts: vec![Part::Text(format!("{text}, {IN_THE_STYLE_OF} ")), Part::AllStyles] }
    }

    /// The prompt without its styles (`ec` in the paper's guidance): `, in the style of {}` goes with its comma, any
    /// other `{}` alone, and blanks and commas left over are tidied.
    pub fn context_only(&self) -> Template {
        if !self.has_style_place() {
            return self.clone();
        }
        let mut text = String::new();
        let mut i = 0;
        while let Some(part) = self.parts.get(i) {
            if let Part::Text(words) = part {
                text.push_str(words);
            } else {
                // "{a} and {b}" goes as one.
                while let (Some(Part::Text(joint)), Some(Part::AllStyles | Part::Style(_))) =
                    (self.parts.get(i + 1), self.parts.get(i + 2))
                    && matches!(joint.trim(), "" | "and" | "," | ", and" | "&" | "+")
                {
                    i += 2;
                }
                cut_phrase(&mut text);
            }
            i += 1;
        }
        Template::literal(&tidied(&text))
    }

    /// The prompt as it was written: [`Template::parse`] of it gives the same template.
    pub fn source(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.replace('{', "{{").replace('}', "}}"),
            Part::Style(name) => format!("{{{name}}}"),
            Part::AllStyles => "{}".to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    /// The prompt as text, styles by their names.
    ///
    /// # Errors
    /// [`Error::Usage`] as for [`Template::tokens`].
    pub fn text(&self, styles: &[PromptStyle]) -> Result<String> {
        let pieces = self.pieces(styles)?;
        let name = |piece: Piece| match piece {
            Piece::Text(text) => text,
            Piece::Style(index, _) => styles[index].name().to_owned(),
        };
        Ok(pieces.into_iter().map(name).collect())
    }

    /// The prompt's token ids, cut to the tokenizer's 77 positions.
    ///
    /// A learned style is one token, or as many as it has vectors a stage; the text on both sides is tokenised by itself,
    /// as `transformers` does around an added token. A style of which a part does not fit is cut off whole.
    ///
    /// # Errors
    /// [`Error::Usage`] when the prompt has a place for a style that is not among `styles`.
    pub fn tokens(&self, tokenizer: &Tokenizer, styles: &[PromptStyle]) -> Result<Tokens> {
        let mut ids = Vec::new();
        let room = tokenizer.positions() - 2;
        let (mut places, mut dropped_styles, mut end) = (Vec::new(), Vec::new(), None);
        for piece in self.pieces(styles)? {
            match piece {
                Piece::Text(text) => ids.extend(tokenizer.encode(&text)?),
                Piece::Style(index, tokens) => {
                    // The start token comes before.
                    let first = ids.len() + 1;
                    ids.extend(std::iter::repeat_n(Tokens::STYLE_PLACEHOLDER, tokens));
                    if ids.len() > room {
                        end.get_or_insert(room.min(first - 1));
                        dropped_styles.push(index);
                    } else {
                        places.extend((first..first + tokens).map(|position| (position, index)));
                    }
                }
            }
        }
        let kept = ids.len().min(end.unwrap_or(room));
        let dropped = ids.len() - kept;
        ids.truncate(kept);

        ids.insert(0, tokenizer.bos());
        ids.push(tokenizer.eos());
        ids.resize(tokenizer.positions(), tokenizer.pad());
        Ok(Tokens { ids, styles: places, dropped, dropped_styles })
    }

    /// Text, with the words of plain styles in it, and learned styles; no two texts follow each other.
    fn pieces(&self, styles: &[PromptStyle]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => push_text(&mut pieces, text),
                Part::Style(name) => push_style(&mut pieces, styles, find(styles, name)?),
                Part::AllStyles if styles.is_empty() => {
                    let what = "the prompt has a place {} for styles but none is given; name one with --style";
                    return Err(Error::Usage(what.to_owned()));
                }
                Part::AllStyles => {
                    for index in 0..styles.len() {
                        if index > 0 {
                            push_text(&mut pieces, " and ");
                        }
                        push_style(&mut pieces, styles, index);
                    }
                }
            }
        }
        Ok(pieces)
    }
}

impl Part {
    fn text(&self) -> &str {
        if let Part::Text(text) = self { text } else { "" }
    }
}

enum Piece {
    Text(String),
    /// A style's index and how many tokens it is.
    Style(usize, usize),
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(before)) => before.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

fn push_style(pieces: &mut Vec<Piece>, styles: &[PromptStyle], index: usize) {
    match &styles[index] {
        PromptStyle::Learned { tokens, .. } => pieces.push(Piece::Style(index, *tokens)),
        PromptStyle::Word(words) => push_text(pieces, words),
    }
}

fn find(styles: &[PromptStyle], name: &str) -> Result<usize> {
    styles.iter().position(|style| style.is_called(name)).ok_or_else(|| {
        let known: Vec<&str> = styles.iter().map(PromptStyle::name).collect();
        let known =
            if known.is_empty() { "none is given".to_owned() } else { format!("given are: {}", known.join(", ")) };
        Error::Usage(format!("the prompt names a style {name:?}, but {known}; for braces write {{{{ and }}}}"))
    })
}

/// Takes `, in the style of` off the end, where it stands there.
fn cut_phrase(text: &mut String) {
    let mut kept = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let start = kept.len().checked_sub(IN_THE_STYLE_OF.len()).filter(|&at| kept.is_char_boundary(at));
    if let Some(start) = start
        && kept[start..].eq_ignore_ascii_case(IN_THE_STYLE_OF)
        && !kept[..start].ends_with(char::is_alphanumeric)
    {
        let before = kept[..start].trim_end();
        let before = before.strip_suffix(',').unwrap_or(before);
        kept.truncate(before.len());
        *text = kept;
    }
}

/// One blank between words, none before a comma, no comma at either end.
fn tidied(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").replace(" ,", ",");
    text.trim_matches([' ', ',']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn styles(names: &[&str]) -> Vec<PromptStyle> {
        names.iter().map(|name| PromptStyle::learned(*name, 1)).collect()
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/atelier/tokenizer")).unwrap()
    }

    fn text(prompt: &str, names: &[&str]) -> String {
        Template::parse(prompt).unwrap().text(&styles(names)).unwrap()
    }

    #[test]
    fn the_source_of_a_template_gives_it_again() {
        for text in ["a boat, in the style of {}", "{sky} over {{braces}} and {}", "}}{{", ""] {
            let template = Template::parse(text).unwrap();
            assert_eq!((template.source().as_str(), Template::parse(&template.source()).unwrap()), (text, template));
        }
    }

    #[test]
    fn places_take_styles_by_name_or_all() {
        assert_eq!(text("a house in the style of {}", &["gogh"]), "a house in the style of gogh");
        assert_eq!(text("{}", &["a", "b", "c"]), "a and b and c");
        assert_eq!(text("{b}, then { a }", &["a", "b"]), "b, then a");
        assert_eq!(text("by {gogh} or {<gogh>}", &["<gogh>"]), "by <gogh> or <gogh>");
        assert_eq!(text("{{}} and {{{a}}}", &["a"]), "{} and {a}");
        assert_eq!(text("", &["a"]), "");
    }

    #[test]
    fn unpaired_braces_are_refused() {
        for prompt in ["{", "}", "a {b", "a b}", "{a{b}}", "{a {b}", "{}}", "{{}", "{{{"] {
            let error = Template::parse(prompt).unwrap_err();
            assert!(matches!(&error, Error::Usage(text) if text.contains(prompt)), "{prompt}: {error}");
        }
    }

    #[test]
    fn unknown_names_list_the_known() {
        let template = Template::parse("in the style of {monet}").unwrap();
        let complaint = template.text(&styles(&["gogh", "hokusai"])).unwrap_err();
        assert!(complaint.to_string().contains("\"monet\", but given are: gogh, hokusai"), "{complaint}");
        assert!(template.text(&[]).unwrap_err().to_string().contains("none is given"));
        assert!(matches!(Template::parse("{}").unwrap().tokens(&tokenizer(), &[]), Err(Error::Usage(_))));
    }

    #[test]
    fn a_place_is_appended_where_there_is_none() {
        for (prompt, full) in [
            ("a house", "a house, in the style of S"),
            ("a house, ", "a house, in the style of S"),
            ("a house by {}", "a house by S"),
            ("", "A painting in the style of S"),
            (" , ", "A painting in the style of S"),
            ("{{curly}}", "{curly}, in the style of S"),
        ] {
            let template = Template::parse(prompt).unwrap().with_style_place();
            assert_eq!(template.text(&styles(&["S"])).unwrap(), full, "{prompt:?}");
        }
    }

    #[test]
    fn the_context_is_the_prompt_less_its_style() {
        for (prompt, context) in [
            ("a house, in the style of {}", "a house"),
            ("a house in the style of {}", "a house"),
            (
                "A painting of pencil, pears and apples on a cloth, In The Style Of {gogh}",
                "A painting of pencil, pears and apples on a cloth",
            ),
            ("a house ,in  the style\nof {}", "a house"),
            ("a house, in the style of {}, at night", "a house, at night"),
            ("in the style of {}, a house", "a house"),
            ("in the style of {}", ""),
            ("{}", ""),
            ("a house, in the style of {a} and {b}", "a house"),
            ("a house, in the style of {a}, {b}{c} by the sea", "a house by the sea"),
            ("a {} house", "a house"),
            ("a house by {} , old", "a house by, old"),
            ("a {a} house in the style of {b}", "a house"),
            ("twin the style of {}", "twin the style of"),
            ("éin the style of {}", "éin the style of"),
            ("a  house,  untouched ,", "a  house,  untouched ,"),
        ] {
            let template = Template::parse(prompt).unwrap().context_only();
            assert!(!template.has_style_place());
            assert_eq!(template.text(&[]).unwrap(), context, "{prompt:?}");
        }
    }

    #[test]
    fn the_style_alone() {
        assert_eq!(Template::style_only().text(&styles(&["a", "b"])).unwrap(), "A painting in the style of a and b");
        assert!(Template::style_only().has_style_place());
    }

    #[test]
    fn words_are_text_and_learned_styles_are_tokens() {
        let tokenizer = tokenizer();
        let template = Template::parse("a house, in the style of {}").unwrap();
        let mixed = [PromptStyle::Word("oil".to_owned()), PromptStyle::learned("gogh", 1)];
        let tokens = template.tokens(&tokenizer, &mixed).unwrap();
        let before = tokenizer.encode("a house, in the style of oil and").unwrap();
        assert_eq!(tokens.ids[1..=before.len()], before);
        assert_eq!(tokens.styles, [(before.len() + 1, 1)]);
        assert_eq!((tokens.ids.len(), tokens.dropped), (77, 0));

        let word = template.tokens(&tokenizer, &mixed[..1]).unwrap();
        let literal = Template::literal("a house, in the style of oil").tokens(&tokenizer, &[]).unwrap();
        assert_eq!(word, literal);
    }

    #[test]
    fn a_style_beyond_the_end_is_reported() {
        let prompt = format!("{}{{a}} {{b}} tail", "word ".repeat(74));
        let tokens = Template::parse(&prompt).unwrap().tokens(&tokenizer(), &styles(&["a", "b"])).unwrap();
        assert_eq!(tokens.styles, [(75, 0)]);
        assert_eq!(tokens.dropped_styles, [1]);
        assert!(tokens.dropped >= 2);
        assert_eq!(tokens.ids[76], 3729);
    }
}
