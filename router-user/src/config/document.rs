//! Reading typed values out of parsed TOML while collecting everything that is wrong with them.
//!
//! serde would stop at the first error; an operator who has three typing mistakes wants to hear of
//! three.

#![expect(clippy::wildcard_enum_match_arm, reason = "a wrong type is answered the same way whichever it is")]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity, Source};
use super::schema::{SECTIONS, SectionSchema};
use super::values::Problem;

/// A configuration being read: its text, and what has been found wrong so far.
pub(super) struct Document {
    pub(super) source: Arc<Source>,
    diagnostics: Vec<Diagnostic>,
}

/// One table of it. A table that is not in the file is an empty one.
pub(super) struct Section<'t> {
    schema: SectionSchema,
    table: Option<&'t DeTable<'t>>,
    /// `[name]`, for what has no better place.
    pub(super) header: Option<Range<usize>>,
    /// Keys that unknown ones were taken to mean: saying that these are missing would be saying it
    /// twice.
    misspelt: Vec<&'t str>,
}

impl Document {
    pub(super) fn new(text: &str, path: &Path) -> Self {
        Self { source: Source::new(text, path), diagnostics: Vec::new() }
    }

    /// What was found, in the order of the file.
    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut diagnostics = self.diagnostics;
        diagnostics.sort_by_key(Diagnostic::offset);
        diagnostics
    }

    pub(super) fn error(&mut self, message: impl Into<String>, span: Range<usize>, label: impl Into<String>) {
        self.push(self.diagnostic(Severity::Error, message).at(span, label));
    }

    pub(super) fn warning(
        &mut self,
        message: impl Into<String>,
        span: Range<usize>,
        label: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(self.diagnostic(Severity::Warning, message).at(span, label).help(help));
    }

    pub(super) fn diagnostic(&self, severity: Severity, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(&self.source, severity, message)
    }

    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Notes the parser's complaints about text that is not TOML.
    pub(super) fn syntax_errors(&mut self, errors: &[toml::de::Error]) {
        for error in errors {
            let mut diagnostic =
                self.diagnostic(Severity::Error, format!("not valid TOML: {}", error.message()));
            if let Some(span) = error.span() {
                diagnostic = diagnostic.at(span, "here");
            }
            self.push(diagnostic);
        }
    }

    /// Complains about every key of the top level that is no table of ours.
    pub(super) fn unknown_sections(&mut self, root: &DeTable<'_>) {
        for (key, _) in root {
            let name = key.get_ref().as_ref();
            if SECTIONS.iter().any(|section| section.name == name) {
                continue;
            }
            let label = if let Some(owner) = SECTIONS.iter().find(|section| section.keys.contains(&name)) {
                format!("put it below {}", owner.title())
            } else {
                let names: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
                did_you_mean(name, &names)
                    .unwrap_or_else(|| format!("the tables are {}", listed(names.iter().copied())))
            };
            self.error(format!("unknown key `{name}`"), key.span(), label);
        }
    }

    /// The table of `schema` in `root`, checked for unknown keys.
    pub(super) fn section<'t>(&mut self, root: &'t DeTable<'t>, schema: SectionSchema) -> Section<'t> {
        let empty = Section::absent(schema);
        let Some((key, value)) = root.get_key_value(schema.name) else {
            return empty;
        };
        match value.get_ref() {
            DeValue::Table(table) => self.known_keys(schema, table, &key.span(), value.span()),
            DeValue::Array(array) if array.iter().all(|item| item.get_ref().is_table()) => {
                let span = array.iter().last().map_or(value.span(), Spanned::span);
                self.error(
                    format!("`{}` is given as a list of tables", schema.name),
                    span,
                    format!("there is one: write {}", schema.form()),
                );
                empty
            }
            other => {
                self.error(
                    format!("`{}` is {}, not a table", schema.name, article(other.type_str())),
                    value.span(),
                    format!("write {}", schema.form()),
                );
                empty
            }
        }
    }

    /// The tables of `schema`, each checked for unknown keys.
    pub(super) fn sections<'t>(&mut self, root: &'t DeTable<'t>, schema: SectionSchema) -> Vec<Section<'t>> {
        let Some((key, value)) = root.get_key_value(schema.name) else {
            return Vec::new();
        };
        let mut sections = Vec::new();
        match value.get_ref() {
            DeValue::Array(array) => {
                for item in array {
                    match item.get_ref() {
                        DeValue::Table(table) => {
                            sections.push(self.known_keys(schema, table, &key.span(), item.span()));
                        }
                        other => self.error(
                            format!("a `{}` is {}, not a table", schema.name, article(other.type_str())),
                            item.span(),
                            format!("write a [[{}]] table", schema.name),
                        ),
                    }
                }
            }
            DeValue::Table(table) => {
                self.error(
                    format!("`{}` is given as one table", schema.name),
                    value.span(),
                    format!("there may be several: write [[{}]]", schema.name),
                );
                sections.push(self.known_keys(schema, table, &key.span(), value.span()));
            }
            other => self.error(
                format!("`{}` is {}, not a list of tables", schema.name, article(other.type_str())),
                value.span(),
                format!("write [[{}]] tables", schema.name),
            ),
        }
        sections
    }

    fn known_keys<'t>(
        &mut self,
        schema: SectionSchema,
        table: &'t DeTable<'t>,
        key: &Range<usize>,
        header: Range<usize>,
    ) -> Section<'t> {
        let mut misspelt = Vec::new();
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if schema.keys.contains(&name) {
                continue;
            }
            let label = if let Some(meant) = closest(name, schema.keys) {
                misspelt.push(meant);
                format!("did you mean `{meant}`?")
            } else if let Some(owner) = SECTIONS.iter().find(|section| section.keys.contains(&name)) {
                format!("it belongs to {}", owner.title())
            } else {
                format!("{} has {}", schema.title(), listed(schema.keys.iter().copied()))
            };
            self.error(format!("unknown key `{name}` in {}", schema.title()), key.span(), label);
        }
        // A table made by dotted keys has no header of its own.
        let header = if header.is_empty() { key.clone() } else { header };
        Section { schema, table: Some(table), header: Some(header), misspelt }
    }

    /// A string, understood by `parse`.
    fn parsed<T>(
        &mut self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        let Some(text) = value.get_ref().as_str() else {
            let written = self.source.text.get(value.span()).unwrap_or_default();
            let label = match value.get_ref() {
                DeValue::Integer(_) | DeValue::Float(_) => match parse(written) {
                    Ok(_) => format!("write it in quotes: \"{written}\""),
                    Err(problem) => problem.fix,
                },
                DeValue::Array(_) => "write one string, not a list".to_owned(),
                _ => "write a string in quotes".to_owned(),
            };
            let message = format!("`{key}` is {}, not a string", article(value.get_ref().type_str()));
            self.error(message, value.span(), label);
            return None;
        };
        self.understood(key, value.span(), parse(text))
    }

    /// What was read at `span`, or `None` after complaining.
    fn understood<T>(
        &mut self,
        key: &str,
        span: Range<usize>,
        read: Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        match read {
            Ok(value) => Some(Spanned::new(span, value)),
            Err(Problem { what, fix }) => {
                self.error(format!("`{key}`: {what}"), span, fix);
                None
            }
        }
    }
}

impl<'t> Section<'t> {
    fn absent(schema: SectionSchema) -> Self {
        Self { schema, table: None, header: None, misspelt: Vec::new() }
    }

    fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        debug_assert!(self.schema.keys.contains(&key), "{key} is missing in the schema");
        self.table?.get(key)
    }

    /// A string that may be absent.
    pub(super) fn optional<T>(
        &self,
        document: &mut Document,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        document.parsed(key, self.value(key)?, parse)
    }

    /// A string that must be there; `example` is a good one.
    pub(super) fn required<T>(
        &self,
        document: &mut Document,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        match self.value(key) {
            Some(value) => document.parsed(key, value, parse),
            None => {
                self.missing(document, key, &format!("{example:?}"));
                None
            }
        }
    }

    /// A list of strings, or `None` if it is absent. Bad items are left out after complaining.
    pub(super) fn list<T>(
        &self,
        document: &mut Document,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        let value = self.value(key)?;
        let items = match value.get_ref() {
            DeValue::Array(array) => {
                array.iter().filter_map(|item| document.parsed(key, item, &parse)).collect()
            }
            other => {
                let written = document.source.text.get(value.span()).unwrap_or_default();
                let label = match other {
                    DeValue::String(_) => format!("write a list: [{written}]"),
                    _ => "write a list of strings: [\"...\", \"...\"]".to_owned(),
                };
                let message = format!("`{key}` is {}, not a list", article(other.type_str()));
                document.error(message, value.span(), label);
                Vec::new()
            }
        };
        Some(Spanned::new(value.span(), items))
    }

    /// A string or a whole number that may be absent; `parse` gets either as text.
    pub(super) fn number_or_word<T>(
        &self,
        document: &mut Document,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        let text = match value.get_ref() {
            DeValue::Integer(integer) => whole_number(integer).to_string(),
            DeValue::String(text) => text.to_string(),
            other => {
                let message =
                    format!("`{key}` is {}, not a whole number or a string", article(other.type_str()));
                let label = parse("").err().map_or_else(String::new, |problem| problem.fix);
                document.error(message, value.span(), label);
                return None;
            }
        };
        document.understood(key, value.span(), parse(&text))
    }

    /// The table of `schema` in this one, checked for unknown keys.
    pub(super) fn inner(&self, document: &mut Document, schema: SectionSchema) -> Section<'t> {
        debug_assert!(self.schema.keys.contains(&schema.name), "{} is missing in the schema", schema.name);
        match self.table {
            Some(table) => document.section(table, schema),
            None => Section::absent(schema),
        }
    }

    /// A list that must be there and have something in it; `example` is a good one, in TOML.
    /// `None` stands for "absent or empty, and complained about".
    pub(super) fn required_list<T>(
        &self,
        document: &mut Document,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        let Some(value) = self.value(key) else {
            self.missing(document, key, example);
            return None;
        };
        if value.get_ref().as_array().is_some_and(|array| array.iter().next().is_none()) {
            document.error(
                format!("`{key}` is empty"),
                value.span(),
                format!("say at least one, e.g. {key} = {example}"),
            );
            return None;
        }
        self.list(document, key, parse)
    }

    /// A string or a list of strings that must be there and not be empty.
    pub(super) fn required_one_or_more<T>(
        &self,
        document: &mut Document,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        match self.value(key) {
            Some(value) if value.get_ref().is_array() => self.required_list(document, key, example, parse),
            Some(value) => {
                Some(Spanned::new(value.span(), document.parsed(key, value, parse).into_iter().collect()))
            }
            None => {
                self.missing(document, key, example);
                None
            }
        }
    }

    /// A whole number that may be absent; `example` is a good one.
    pub(super) fn integer<T>(
        &self,
        document: &mut Document,
        key: &str,
        example: u32,
        parse: impl Fn(i128) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            let label = match value.get_ref() {
                DeValue::String(text) if text.parse::<u32>().is_ok() => {
                    format!("write it without quotes: {text}")
                }
                _ => format!("write a whole number, e.g. {example}"),
            };
            let message = format!("`{key}` is {}, not a number", article(value.get_ref().type_str()));
            document.error(message, value.span(), label);
            return None;
        };
        document.understood(key, value.span(), parse(whole_number(integer)))
    }

    fn missing(&self, document: &mut Document, key: &str, example: &str) {
        if self.misspelt.contains(&key) {
            return;
        }
        let title = self.schema.title();
        let add = format!("{key} = {example}");
        let diagnostic = match &self.header {
            Some(header) => document
                .diagnostic(Severity::Error, format!("missing key `{key}` in {title}"))
                .at(header.clone(), format!("add: {add}")),
            None => document
                .diagnostic(Severity::Error, format!("missing table {title}"))
                .help(format!("add:\n{title}\n{add}")),
        };
        document.push(diagnostic);
    }
}

/// The number that is written; one that no type holds is as good as any that is too large.
fn whole_number(integer: &DeInteger<'_>) -> i128 {
    i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX)
}

/// "an integer", "a string".
fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The name among `known` that `written` was probably meant to be, as words for the operator.
pub(crate) fn did_you_mean(written: &str, known: &[&str]) -> Option<String> {
    closest(written, known).map(|name| format!("did you mean `{name}`?"))
}

/// The name among `known` that is most like `written`, if any is like it.
pub(crate) fn closest<'n>(written: &str, known: &[&'n str]) -> Option<&'n str> {
    known
        .iter()
        .map(|name| (strsim::jaro_winkler(written, name), *name))
        // In a short name one slip is much: "tpc" is not at all like "tcp" by the first measure.
        .filter(|(likeness, name)| {
            *likeness > 0.8 || (name.len() > 2 && strsim::osa_distance(written, name) < 2)
        })
        .max_by(|(one, _), (two, _)| one.total_cmp(two))
        .map(|(_, name)| name)
}
