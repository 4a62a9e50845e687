//! The report: rules that could not be translated, and things to look at.

use super::{
    action::{self, Action},
    ruleset::{Family, Rule, Ruleset},
};

/// Something to know about a line.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Remark {
    /// The line, from 1; 0 for the whole.
    pub line: usize,
    /// The rule as it stands there; empty for the whole.
    pub rule: String,
    /// The words for people.
    pub text: String,
}

/// Collects remarks.
#[derive(Debug, Default)]
pub(super) struct Report {
    left_out: Vec<Remark>,
    remarks: Vec<Remark>,
}

impl Report {
    /// Notes that the configuration does not have a rule, and why.
    pub(super) fn left_out(&mut self, line: usize, rule: &str, why: impl Into<String>) {
        self.left_out.push(Remark { line, rule: rule.to_owned(), text: why.into() });
    }

    /// Notes what the configuration says otherwise.
    pub(super) fn remark(&mut self, line: usize, rule: &str, text: impl Into<String>) {
        self.remarks.push(Remark { line, rule: rule.to_owned(), text: text.into() });
    }

    /// Returns what was left out, and the remarks, by lines.
    pub(super) fn sorted(self) -> (Vec<Remark>, Vec<Remark>) {
        let tidy = |mut remarks: Vec<Remark>| {
            remarks.sort();
            remarks.dedup();
            remarks
        };
        (tidy(self.left_out), tidy(self.remarks))
    }
}

/// Lists remarks as people read them.
pub(crate) fn listed(remarks: &[Remark]) -> String {
    let one = |Remark { line, rule, text }: &Remark| match line {
        0 => format!("  {text}\n"),
        _ => format!("  line {line}: {rule}\n    {text}\n"),
    };
    remarks.iter().map(one).collect()
}

/// Returns all remarks as comments of a configuration.
pub(super) fn as_comments(left_out: &[Remark], remarks: &[Remark]) -> String {
    let mut text = String::new();
    for (title, remarks) in [("Not translated:", left_out), ("Remarks:", remarks)] {
        if !remarks.is_empty() {
            text.push_str(&format!("\n# {title}\n"));
            for line in listed(remarks).lines() {
                text.push_str(&format!("# {}\n", printable(line)));
            }
        }
    }
    text
}

/// Without what may not stand in a comment of TOML, or could deceive whoever reads it.
pub(super) fn printable(line: &str) -> String {
    line.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// Reports rules of chains that a configuration has nothing for.
pub(super) fn other_chains(ruleset: &Ruleset, report: &mut Report) {
    let all = || ruleset.rules().filter(|rule| rule.family == Family::V4);
    for rule in all().filter(|rule| rule.table == "nat" && ["OUTPUT", "INPUT"].contains(&rule.chain.as_str()))
    {
        if matches!(action::read(rule), Ok((_, Action::To(_) | Action::Redirect | Action::From(_))) | Err(_))
        {
            let why = "it is about this machine's own connections, which pls-router leaves to the kernel: keep it there";
            report.left_out(rule.line, &rule.text, why);
        }
    }
    let forward: Vec<&Rule> =
        all().filter(|rule| rule.table == "filter" && rule.chain == "FORWARD").collect();
    let mut accepts = Vec::new();
    for rule in forward {
        match action::read(rule) {
            Ok((_, Action::Drop)) => report.left_out(
                rule.line,
                &rule.text,
                "packets of sessions do not pass the chain FORWARD: if a rule would let these in, narrow its `sources`",
            ),
            Ok((_, Action::Accept)) => accepts.push(rule.line.to_string()),
            Ok(_) | Err(_) => {}
        }
    }
    if !accepts.is_empty() {
        let lines = accepts.join(", ");
        let text = format!(
            "the chain FORWARD accepts packets (line {lines}): not needed, `sources` of the rules decide who may use them"
        );
        report.remark(0, "", text);
    }
    if all().any(|rule| rule.table == "filter" && rule.chain == "INPUT") {
        report.remark(
            0,
            "",
            "rules of the chain INPUT stay in force, but addresses in `sources` reach this machine \
             itself only by `allow` of [local], and not even its SSH without",
        );
    }
}

/// Returns the segment size that the table mangle sets in passing: `"pmtu"`, or a number.
pub(super) fn segment_size(ruleset: &Ruleset, report: &mut Report) -> Option<String> {
    let mut found: Option<String> = None;
    for rule in ruleset.rules().filter(|rule| rule.family == Family::V4 && rule.table == "mangle") {
        let value = |name: &str| rule.options.iter().find(|choice| choice.name == name);
        if !rule.options.iter().any(|choice| choice.values.iter().any(|value| value == "TCPMSS")) {
            continue;
        }
        let size = if value("--clamp-mss-to-pmtu").is_some() {
            Some("\"pmtu\"".to_owned())
        } else {
            let bytes = value("--set-mss").and_then(|choice| choice.values.first());
            bytes.and_then(|bytes| bytes.parse::<u16>().ok()).map(|bytes| bytes.to_string())
        };
        match (size, &found) {
            (Some(size), None) => {
                report.remark(rule.line, &rule.text, "`mss` of every rule: a configuration sets it by rule");
                found = Some(size);
            }
            (Some(size), Some(known)) if size == *known => {}
            _ => report.left_out(rule.line, &rule.text, "it sets another segment size than an earlier rule"),
        }
    }
    found
}
