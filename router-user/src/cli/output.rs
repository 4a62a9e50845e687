//! Printing: in colour on a terminal, unless NO_COLOR is set, and errors in one form.

use std::fmt::Display;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// Headings.
pub(super) const STRONG: Style = Style::new().bold();
/// Good values.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// Warnings.
pub(super) const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
/// Errors.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();

/// Returns `text` in `style`. Printing removes the colours where they are not wanted.
pub(super) fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints `text` as it is, with its colours if they are wanted.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints text without colours.
pub(super) fn raw(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Prints `value` as JSON, over several lines.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(print(&text)?)
}

/// Prints `value` as one line of JSON.
pub(super) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    Ok(print(&text)?)
}

/// Prints an error to standard error.
pub(super) fn print_error(what: &str) {
    // Text that starts with its own "error:" (the configuration's) is left alone.
    let text = if what.starts_with("error: ") || what.starts_with("warning: ") {
        what.to_owned()
    } else {
        format!("{} {what}", styled(BAD, "error:"))
    };
    // There is no place to report a failure.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Prints a remark to standard error.
pub(super) fn remark(what: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{what}");
}

/// Formats 1234567 as "1,234,567".
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count: "1 session", "1,204 sessions".
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Formats seconds: "45s", "3m 20s", "2h 4m", "5d 3h".
pub(super) fn time(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(size, _)| seconds >= *size) else {
        return "0s".to_owned();
    };
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, name) in units.iter().skip(first).take(2) {
        let number = rest / size;
        rest %= size;
        if number > 0 {
            parts.push(format!("{number}{name}"));
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn times() {
        let shown = [0, 45, 60, 200, 7440, 86_400, 86_460, 270_000].map(time);
        assert_eq!(shown, ["0s", "45s", "1m", "3m 20s", "2h 4m", "1d", "1d", "3d 3h"]);
    }
}
