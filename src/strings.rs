//! What visitors read, in their language: one flat JSON file a language, for the pages and the screen alike.
//!
//! Another language is another file beside `strings/en.json` with the same keys and a line in [`LANGUAGES`].

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Every language there is: its tag (BCP 47) and its file's text. The first is the one others are translated from.
pub const LANGUAGES: [(&str, &str); 2] =
    [("en", include_str!("strings/en.json")), ("de", include_str!("strings/de.json"))];

/// The texts of one language by key, such as `display.press`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strings {
    language: &'static str,
    texts: BTreeMap<String, String>,
}

impl Strings {
    /// The texts of `language`, such as `en`; a region after a hyphen (`de-AT`) is ignored where it has no file.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are none, with the languages that exist.
    pub fn of(language: &str) -> Result<Strings> {
        let base = language.split('-').next().unwrap_or(language);
        let named = |wanted: &str| LANGUAGES.iter().find(|(tag, _)| tag.eq_ignore_ascii_case(wanted));
        let Some((tag, text)) = named(language).or_else(|| named(base)) else {
            let known: Vec<&str> = LANGUAGES.iter().map(|(tag, _)| *tag).collect();
            return Err(Error::Usage(format!(
                "there are no texts in `{language}`; choose one of {}",
                known.join(", ")
            )));
        };
        let texts = serde_json::from_str(text).map_err(|e| Error::Usage(format!("strings/{tag}.json: {e}")))?;
        Ok(Strings { language: tag, texts })
    }

    /// The language's tag.
    pub fn language(&self) -> &'static str {
        self.language
    }

    /// The text of `key`, or the key itself where there is none, so that a slip is seen and stops nothing.
    pub fn get<'a>(&'a self, key: &'a str) -> &'a str {
        self.texts.get(key).map_or(key, String::as_str)
    }

    /// The text of `key` with every `{name}` of `values` replaced; values are not looked into again.
    pub fn fill(&self, key: &str, values: &[(&str, &str)]) -> String {
        let mut filled = String::new();
        let mut rest = self.get(key);
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            filled.push_str(before);
            let found =
                values.iter().find(|(name, _)| from[1..].strip_prefix(name).is_some_and(|r| r.starts_with('}')));
            let (text, taken) = found.map_or(("{", 1), |(name, value)| (*value, name.len() + 2));
            filled.push_str(text);
            rest = &from[taken..];
        }
        filled + rest
    }

    /// Every key with its text, in the order of keys.
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `{names}` in a text, in order of the alphabet.
    fn names(text: &str) -> Vec<&str> {
        let mut names: Vec<&str> =
            text.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or_default()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn every_language_has_every_key_and_its_names() {
        let english = Strings::of("en").unwrap();
        assert!(english.all().len() >= 20);
        for (language, _) in LANGUAGES {
            let strings = Strings::of(language).unwrap();
            let keys = |strings: &Strings| strings.all().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&strings), keys(&english), "{language}");
            for (key, text) in strings.all() {
                assert!(!text.trim().is_empty(), "{language}: {key} is empty");
                assert_eq!(names(text), names(english.get(key)), "{language}: {key}");
            }
        }
    }

    #[test]
    fn a_language_is_found_with_its_region_or_refused_with_the_others() {
        assert_eq!(Strings::of("de-AT").unwrap().language(), "de");
        assert_eq!(Strings::of("EN").unwrap().language(), "en");
        let refusal = Strings::of("tlh").unwrap_err().to_string();
        assert!(refusal.contains("`tlh`") && refusal.contains("en, de"), "{refusal}");
    }

    #[test]
    fn names_are_filled_once() {
        let strings =
            Strings { language: "en", texts: BTreeMap::from([("k".to_owned(), "{a}, {b} and {c} of {a".to_owned())]) };
        assert_eq!(strings.fill("k", &[("a", "{b}"), ("b", "two")]), "{b}, two and {c} of {a");
        assert_eq!(strings.fill("missing", &[("a", "x")]), "missing");
    }
}
