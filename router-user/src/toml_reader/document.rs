//! Reads typed values out of a TOML document and collects every error in them.
//!
//! serde stops at the first error. Here each value is read by itself, from the `toml` crate's
//! parsed document with its places in the text, so one run reports all errors.

#![expect(clippy::wildcard_enum_match_arm, reason = "all wrong types get the same answer")]

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity, Source};
use super::schema::{Form, TableSchema};

/// A place in the text, in bytes.
pub(crate) type Span = Range<usize>;
/// A value of the file, and its place.
type Value<'d> = Spanned<DeValue<'d>>;
/// A list of the file, and the place of each item.
pub(crate) type List<T> = Spanned<Vec<Spanned<T>>>;

/// An error in a value, and the text to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) fix: String,
}

/// An error in a value: what is wrong, and what to write instead, as format strings.
macro_rules! wrong {
    ($what:literal, $fix:literal $(,)?) => {
        Err($crate::toml_reader::Problem { what: format!($what), fix: format!($fix) })
    };
}
pub(crate) use wrong;

/// A document being read: its text, and the errors and warnings so far.
pub(crate) struct Document {
    source: Arc<Source>,
    /// The tables that it may have.
    tables: &'static [TableSchema],
    diagnostics: RefCell<Vec<Diagnostic>>,
}

/// One table of the document. A table that the file does not have is empty.
pub(crate) struct Table<'d> {
    document: &'d Document,
    pub(crate) schema: TableSchema,
    table: Option<&'d DeTable<'d>>,
    /// `[name]`, for errors that have no better place.
    header: Option<Span>,
    /// Known keys that unknown ones resemble. They are not reported as missing as well.
    misspelt: Vec<&'static str>,
}

/// One key of a table, and its value if the file has it.
pub(crate) struct Key<'t, 'd> {
    table: &'t Table<'d>,
    name: &'static str,
    value: Option<&'d Value<'d>>,
    /// A good value, in TOML, if the key must be there.
    example: Option<&'static str>,
}

impl Document {
    pub(crate) fn new(text: &str, path: &Path, tables: &'static [TableSchema]) -> Self {
        Self { source: Source::new(text, path), tables, diagnostics: RefCell::default() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.source.text
    }

    /// Returns what was found, in the order of the file.
    pub(crate) fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut diagnostics = self.diagnostics.into_inner();
        diagnostics.sort_by_key(Diagnostic::offset);
        diagnostics
    }

    pub(crate) fn error(&self, message: impl Into<String>, span: Span, label: impl AsRef<str>) {
        self.report(Severity::Error, message, &[(span, label.as_ref())], None);
    }

    pub(crate) fn warning(&self, message: impl Into<String>, span: Span, label: &str, help: &str) {
        self.report(Severity::Warning, message, &[(span, label)], Some(help));
    }

    /// Adds a diagnostic. The first of the labels is the main place.
    pub(crate) fn report(
        &self,
        severity: Severity,
        message: impl Into<String>,
        labels: &[(Span, &str)],
        help: Option<&str>,
    ) {
        let diagnostic = Diagnostic::new(&self.source, severity, message.into(), labels, help);
        self.diagnostics.borrow_mut().push(diagnostic);
    }

    /// Returns the table that has a key of this name.
    fn owner(&self, key: &str) -> Option<String> {
        self.tables.iter().find(|table| table.keys.contains(&key)).map(TableSchema::title)
    }

    /// Reports the parser's errors.
    pub(crate) fn syntax_errors(&self, errors: &[toml::de::Error]) {
        for error in errors {
            let message = format!("not valid TOML: {}", error.message());
            let labels: Vec<_> = error.span().map(|span| (span, "here")).into_iter().collect();
            self.report(Severity::Error, message, &labels, None);
        }
    }

    /// Reports every key of the top level that is not a known table.
    pub(crate) fn unknown_tables(&self, root: &DeTable<'_>) {
        let names: Vec<&str> = self.tables.iter().map(|table| table.name).collect();
        self.unknown_keys(root, &names, "", "put it below", "the tables are");
    }

    /// Reports every key of `table` that is not a known one. Returns the known ones that they
    /// resemble. The other arguments are words for the errors.
    fn unknown_keys<'k>(
        &self,
        table: &DeTable<'_>,
        known: &[&'k str],
        place: &str,
        belongs: &str,
        has: &str,
    ) -> Vec<&'k str> {
        let mut resembled = Vec::new();
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let label = if let Some(meant) = closest(name, known) {
                resembled.push(meant);
                format!("did you mean `{meant}`?")
            } else if let Some(title) = self.owner(name) {
                format!("{belongs} {title}")
            } else {
                format!("{has} {}", listed(known))
            };
            self.error(format!("unknown key `{name}`{place}"), key.span(), label);
        }
        resembled
    }

    /// Returns the table of `schema` in `root`, after checking it for unknown keys.
    pub(crate) fn table<'d>(&'d self, root: &'d DeTable<'d>, schema: TableSchema) -> Table<'d> {
        self.tables(root, schema).pop().unwrap_or_else(|| Table::absent(self, schema))
    }

    /// Returns the tables of `schema` in `root`, after checking each for unknown keys.
    pub(crate) fn tables<'d>(&'d self, root: &'d DeTable<'d>, schema: TableSchema) -> Vec<Table<'d>> {
        let Some((key, value)) = root.get_key_value(schema.name) else {
            return Vec::new();
        };
        let (name, form, repeated) = (schema.name, schema.example(), schema.form == Form::Repeated);
        let (message, span, label) = match value.get_ref() {
            DeValue::Table(table) => {
                if repeated {
                    let label = format!("there may be several: write {form}");
                    self.error(format!("`{name}` is given as one table"), value.span(), label);
                }
                return vec![Table::present(self, schema, table, key.span(), value.span())];
            }
            DeValue::Array(items) if repeated => {
                let table = |item: &'d Value<'d>| {
                    if let DeValue::Table(table) = item.get_ref() {
                        return Some(Table::present(self, schema, table, key.span(), item.span()));
                    }
                    let message = format!("a `{name}` is {}, not a table", kind(item.get_ref()));
                    self.error(message, item.span(), format!("write a {form} table"));
                    None
                };
                return items.iter().filter_map(table).collect();
            }
            DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                let last = items.iter().last().map_or(value.span(), Spanned::span);
                let label = format!("there is one: write {form}");
                (format!("`{name}` is given as a list of tables"), last, label)
            }
            other => {
                let (wanted, tables) =
                    if repeated { ("a list of tables", " tables") } else { ("a table", "") };
                let message = format!("`{name}` is {}, not {wanted}", kind(other));
                (message, value.span(), format!("write {form}{tables}"))
            }
        };
        self.error(message, span, label);
        Vec::new()
    }
}

impl<'d> Table<'d> {
    fn absent(document: &'d Document, schema: TableSchema) -> Self {
        Self { document, schema, table: None, header: None, misspelt: Vec::new() }
    }

    fn present(
        document: &'d Document,
        schema: TableSchema,
        table: &'d DeTable<'d>,
        key: Span,
        header: Span,
    ) -> Self {
        let title = schema.title();
        let (place, has) = (format!(" in {title}"), format!("{title} has"));
        let misspelt = document.unknown_keys(table, schema.keys, &place, "it belongs to", &has);
        // A table made by dotted keys has no header.
        let header = Some(if header.is_empty() { key } else { header });
        Self { document, schema, table: Some(table), header, misspelt }
    }

    /// Returns `true` if the file has the table.
    pub(crate) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Returns the place of the table's header; empty if the file does not have the table.
    pub(crate) fn header(&self) -> Span {
        self.header.clone().unwrap_or_default()
    }

    /// Returns the table of `schema` in this one, after checking it for unknown keys.
    pub(crate) fn inner(&self, schema: TableSchema) -> Table<'d> {
        match self.table {
            Some(table) => self.document.table(table, schema),
            None => Self::absent(self.document, schema),
        }
    }

    /// Returns a key of the table. One that is not in the schema is absent.
    pub(crate) fn key(&self, name: &'static str) -> Key<'_, 'd> {
        let table = self.table.filter(|_| self.schema.keys.contains(&name));
        Key { table: self, name, value: table.and_then(|table| table.get(name)), example: None }
    }
}

impl<'d> Key<'_, 'd> {
    /// Reports the key if it is missing, or an empty list; `example` is a good value, in TOML.
    pub(crate) fn required(mut self, example: &'static str) -> Self {
        self.example = Some(example);
        let Table { document, schema, header, misspelt, .. } = self.table;
        let expected = schema.keys.contains(&self.name) && !misspelt.contains(&self.name);
        if self.value.is_none() && expected {
            let (name, title) = (self.name, schema.title());
            if let Some(header) = header {
                let message = format!("missing key `{name}` in {title}");
                document.error(message, header.clone(), format!("add: {name} = {example}"));
            } else {
                let help = format!("add:\n{title}\n{name} = {example}");
                document.report(Severity::Error, format!("missing table {title}"), &[], Some(&help));
            }
        }
        self
    }

    /// Returns `true` if the file has the key.
    pub(crate) fn is_there(&self) -> bool {
        self.value.is_some()
    }

    /// Returns `true` if the value is a list.
    pub(crate) fn is_list(&self) -> bool {
        self.value.is_some_and(|value| value.get_ref().is_array())
    }

    /// Reads a string.
    pub(crate) fn text<T>(&self, parse: impl Fn(&str) -> Result<T, Problem>) -> Option<Spanned<T>> {
        self.parsed(self.value?, &parse)
    }

    /// Reads a list of strings; an absent one is empty. Leaves out bad items after reporting them.
    pub(crate) fn list<T>(&self, parse: impl Fn(&str) -> Result<T, Problem>) -> List<T> {
        if let Some(value) = self.value.filter(|value| !value.get_ref().is_array()) {
            let label = match value.get_ref() {
                DeValue::String(_) => format!("write a list: [{}]", self.written(value)),
                _ => "write a list of strings: [\"...\", \"...\"]".to_owned(),
            };
            self.wrong_type::<T>("a list", value, &label);
            return Spanned::new(value.span(), Vec::new());
        }
        self.text_or_list(parse)
    }

    /// Reads a string or a list of strings, as a list.
    pub(crate) fn text_or_list<T>(&self, parse: impl Fn(&str) -> Result<T, Problem>) -> List<T> {
        let Some(value) = self.value else { return Spanned::new(0..0, Vec::new()) };
        let items: Vec<&Value<'_>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        if let (Some(example), []) = (self.example, items.as_slice()) {
            let label = format!("say at least one, e.g. {} = {example}", self.name);
            self.table.document.error(format!("`{}` is empty", self.name), value.span(), label);
        }
        let parsed = items.into_iter().filter_map(|item| self.parsed(item, &parse));
        Spanned::new(value.span(), parsed.collect())
    }

    /// Reads a whole number; `example` is a good one.
    pub(crate) fn integer<T>(
        &self,
        example: u32,
        parse: impl Fn(i128) -> Result<T, Problem>,
    ) -> Option<Spanned<T>> {
        let value = self.value?;
        match (whole_number(value.get_ref()), value.get_ref().as_str()) {
            (Some(number), _) => self.understood(value, parse(number)),
            (None, Some(text)) if text.parse::<u32>().is_ok() => {
                self.wrong_type("a number", value, &format!("write it without quotes: {text}"))
            }
            _ => self.wrong_type("a number", value, &format!("write a whole number, e.g. {example}")),
        }
    }

    /// Reads a string or a whole number; `parse` gets either as text.
    pub(crate) fn number_or_text<T>(&self, parse: impl Fn(&str) -> Result<T, Problem>) -> Option<Spanned<T>> {
        let value = self.value?;
        match (whole_number(value.get_ref()), value.get_ref().as_str()) {
            (Some(number), _) => self.understood(value, parse(&number.to_string())),
            (None, Some(text)) => self.understood(value, parse(text)),
            (None, None) => {
                let label = parse("").err().map_or_else(String::new, |problem| problem.fix);
                self.wrong_type("a whole number or a string", value, &label)
            }
        }
    }

    fn parsed<T>(&self, value: &Value<'_>, parse: impl Fn(&str) -> Result<T, Problem>) -> Option<Spanned<T>> {
        let written = self.written(value);
        let label = match value.get_ref() {
            DeValue::String(text) => return self.understood(value, parse(text)),
            DeValue::Integer(_) | DeValue::Float(_) => match parse(written) {
                Ok(_) => format!("write it in quotes: \"{written}\""),
                Err(problem) => problem.fix,
            },
            DeValue::Array(_) => "write one string, not a list".to_owned(),
            _ => "write a string in quotes".to_owned(),
        };
        self.wrong_type("a string", value, &label)
    }

    fn understood<T>(&self, value: &Value<'_>, read: Result<T, Problem>) -> Option<Spanned<T>> {
        let report = |Problem { what, fix }| {
            self.table.document.error(format!("`{}`: {what}", self.name), value.span(), fix);
        };
        read.map_err(report).ok().map(|read| Spanned::new(value.span(), read))
    }

    fn written(&self, value: &Value<'_>) -> &'d str {
        self.table.document.text().get(value.span()).unwrap_or_default()
    }

    /// Reports a value of the wrong type. Returns `None`.
    fn wrong_type<T>(&self, wanted: &str, value: &Value<'_>, label: &str) -> Option<Spanned<T>> {
        let message = format!("`{}` is {}, not {wanted}", self.name, kind(value.get_ref()));
        self.table.document.error(message, value.span(), label);
        None
    }
}

/// Returns the number that is written. One that no type holds is as good as any that is too large.
fn whole_number(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    Some(i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX))
}

/// Returns the type of a value: "an integer", "a string".
fn kind(value: &DeValue<'_>) -> String {
    let noun = value.type_str();
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Returns a question about the name in `known` that `written` was probably meant to be, in any
/// case. Returns `other` if there is none.
pub(crate) fn did_you_mean(written: &str, known: &[&str], other: &str) -> String {
    let meant = closest(&written.to_ascii_lowercase(), known);
    meant.map_or_else(|| other.to_owned(), |name| format!("did you mean `{name}`?"))
}

/// Returns the name in `known` that is most like `written`, if any is like it.
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
