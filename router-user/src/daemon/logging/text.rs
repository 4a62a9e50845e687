//! Texts from the network, such as from a name server: short, and without characters that a
//! terminal, a log or a page acts upon.

/// The most characters of a foreign text that are shown.
const MOST: usize = 200;

/// Returns `text` as printable ASCII, 200 characters at most: whatever else it has of characters is
/// a `?`, and what is too long ends in `...`.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let mut printable: String = text.chars().take(MOST).map(shown).collect();
    if text.chars().nth(MOST).is_some() {
        printable.truncate(MOST - 3);
        printable.push_str("...");
    }
    printable
}

/// Returns the first `most` of `texts`, and what `rest` makes of the number of the others, if there
/// are any.
pub(crate) fn first(
    texts: impl ExactSizeIterator<Item = String>,
    most: usize,
    rest: impl FnOnce(usize) -> String,
) -> Vec<String> {
    let more = texts.len().saturating_sub(most);
    let mut first: Vec<String> = texts.take(most).collect();
    if more > 0 {
        first.push(rest(more));
    }
    first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_acts_upon_is_not_shown() {
        assert_eq!(printable("10.0.0.1 answers: Server Failure"), "10.0.0.1 answers: Server Failure");
        assert_eq!(printable("a\x1b[2Jb\nc\rd\0e\u{202e}f"), "a?[2Jb?c?d?e?f");
        let long = printable(&"x".repeat(100_000));
        assert!(long.len() == MOST && long.ends_with("x..."), "{long}");
        assert_eq!(printable(&"x".repeat(MOST)), "x".repeat(MOST));
    }

    #[test]
    fn long_lists_end_in_a_number() {
        let list =
            |length: usize| first((0..length).map(|n| n.to_string()), 2, |more| format!("{more} more"));
        assert_eq!((list(0), list(2)), (vec![], vec!["0".to_owned(), "1".to_owned()]));
        assert_eq!(list(7), ["0", "1", "5 more"]);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_short_and_printable(text in any::<String>()) {
            let printable = printable(&text);
            prop_assert!(printable.len() <= MOST);
            prop_assert!(printable.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
