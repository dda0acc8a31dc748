//! Prompts as the A1111 web UI understands them, made into this program's.

/// A prompt of this program, and what it took from the other.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Read {
    /// With `{name}` where styles go and braces doubled.
    pub(super) prompt: String,
    /// Names of the styles it uses.
    pub(super) styles: Vec<String>,
    /// What the person should hear.
    pub(super) notes: Vec<String>,
}

/// Finds the names of styles as whole words, also in `<name>` and `(name:1.2)`, and leaves out what loads other networks
/// (`<lora:…>`).
pub(super) fn read(text: &str, names: &[String]) -> Read {
    let mut read = Read::default();
    let mut rest = text;
    let mut before = ' ';
    let mut longest: Vec<&String> = names.iter().collect();
    longest.sort_by_key(|name| std::cmp::Reverse(name.len()));
    while let Some(c) = rest.chars().next() {
        if let Some(after) = network(rest) {
            read.notes
                .push(format!("{} is left out: there are no such networks here", &rest[..rest.len() - after.len()]));
            rest = after;
        } else if let Some((name, after)) = longest.iter().find_map(|name| Some((*name, style(rest, before, name)?))) {
            if !read.styles.contains(name) {
                read.styles.push(name.clone());
            }
            read.prompt += &format!("{{{name}}}");
            rest = after;
            before = ' ';
        } else {
            if matches!(c, '{' | '}') {
                read.prompt.push(c);
            }
            read.prompt.push(c);
            rest = &rest[c.len_utf8()..];
            before = c;
        }
    }
    read.prompt = read.prompt.trim().to_owned();
    read
}

/// What follows `<lora:…>` and its like.
fn network(text: &str) -> Option<&str> {
    let inner = ["<lora:", "<lyco:", "<hypernet:"].iter().find_map(|start| text.strip_prefix(start))?;
    inner.split_once('>').map(|(_, after)| after)
}

/// What follows a style's name.
fn style<'a>(text: &'a str, before: char, name: &str) -> Option<&'a str> {
    if let Some(after) = text.strip_prefix('<').and_then(|inner| strip(inner, name)?.strip_prefix('>')) {
        return Some(after);
    }
    if let Some(inner) = text.strip_prefix('(').and_then(|inner| strip(inner, name)) {
        let (weight, after) = inner.split_once(')')?;
        let weighted = weight.is_empty() || weight.strip_prefix(':').is_some_and(|w| w.trim().parse::<f32>().is_ok());
        return weighted.then_some(after);
    }
    let after = strip(text, name)?;
    let inside = before.is_alphanumeric() || after.chars().next().is_some_and(char::is_alphanumeric);
    (!inside).then_some(after)
}

/// Without a name in front, capitals or not.
fn strip<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.get(..name.len())?;
    start.eq_ignore_ascii_case(name).then(|| &text[name.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn styles() -> Vec<String> {
        vec!["hiroshige".into(), "hiroshige 2".into(), "ink".into()]
    }

    #[test]
    fn names_of_styles_are_found_however_they_are_written() {
        for (text, prompt, used) in [
            ("a house, hiroshige", "a house, {hiroshige}", vec!["hiroshige"]),
            ("a house, Hiroshige 2, sea", "a house, {hiroshige 2}, sea", vec!["hiroshige 2"]),
            ("<hiroshige> (ink:1.2) (ink)", "{hiroshige} {ink} {ink}", vec!["hiroshige", "ink"]),
            ("a pink drink, inks", "a pink drink, inks", vec![]),
            ("a {b}", "a {{b}}", vec![]),
            ("(a house:1.2)", "(a house:1.2)", vec![]),
            ("(ink well)", "({ink} well)", vec!["ink"]),
            ("ö ink", "ö {ink}", vec!["ink"]),
        ] {
            let read = read(text, &styles());
            assert_eq!((read.prompt.as_str(), &read.styles), (prompt, &used.iter().map(|s| (*s).to_owned()).collect()));
            assert!(read.notes.is_empty());
        }
    }

    #[test]
    fn other_networks_are_left_out_with_a_note() {
        let read = read("a house <lora:foo:0.8>", &styles());
        assert_eq!(read.prompt, "a house");
        assert!(read.notes[0].contains("<lora:foo:0.8>"), "{:?}", read.notes);
    }
}
