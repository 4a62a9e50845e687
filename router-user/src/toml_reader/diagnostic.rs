//! An error, a warning or a note about a place in a document, shown as rustc shows it.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// The severity of a diagnostic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The document cannot be used.
    Error,
    /// It can, but is probably not intended.
    Warning,
    /// It may well be intended.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// The text that diagnostics point into.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn new(text: &str, path: &Path) -> Arc<Self> {
        Arc::new(Self { path: path.display().to_string(), text: text.to_owned() })
    }
}

/// An error, a warning or a note about a place in a document. Its `Display` is the whole message,
/// over several lines and without a final line break.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Its severity.
    pub severity: Severity,
    /// The fault, in one line.
    pub message: String,
    /// The remedy, if the label of the place does not tell it.
    pub help: Option<String>,
    /// Places and their labels, the main one first.
    labels: Vec<(Range<usize>, String)>,
    source: Arc<Source>,
}

impl Diagnostic {
    pub(crate) fn new(
        source: &Arc<Source>,
        severity: Severity,
        message: String,
        labels: &[(Range<usize>, &str)],
        help: Option<&str>,
    ) -> Self {
        // A span from the parser can lie one past the end (an unclosed string at the end of the
        // file).
        let end = source.text.len();
        let within = |span: &Range<usize>| span.start.min(end)..span.end.min(end);
        let labels = labels.iter().map(|(span, label)| (within(span), (*label).to_owned())).collect();
        Self { severity, message, help: help.map(str::to_owned), labels, source: Arc::clone(source) }
    }

    /// Returns the document's file.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.source.path
    }

    /// Returns line and column of the main place, from 1; `None` if it is about the whole file.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        let (span, _) = self.labels.first()?;
        let before = self.source.text.get(..span.start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before.get(line_start..)?.chars().count() + 1;
        Some((line, column))
    }

    /// Returns the remedy, in one line.
    #[must_use]
    pub fn fix(&self) -> String {
        let label = self.labels.first().map(|(_, label)| label);
        self.help.as_ref().or(label).cloned().unwrap_or_default()
    }

    /// Returns the message in one line, for a log: `FILE:LINE:COLUMN: fault; remedy`.
    #[must_use]
    pub fn brief(&self) -> String {
        let place = self.position().map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        format!("{}{place}: {}; {}", self.source.path, self.message, self.fix())
    }

    /// Returns the offset of the main place, by which diagnostics are sorted.
    pub(crate) fn offset(&self) -> usize {
        self.labels.first().map_or(0, |(span, _)| span.start)
    }

    /// Returns the whole message, with colours if `colour`.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let title = level.primary_title(self.message.as_str());
        let mut group = if self.labels.is_empty() {
            Group::with_title(title).element(Origin::path(self.source.path.as_str()))
        } else {
            let mut snippet = Snippet::source(self.source.text.as_str()).path(self.source.path.as_str());
            for (number, (span, label)) in self.labels.iter().enumerate() {
                let kind = if number == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
                snippet = snippet.annotation(kind.span(span.clone()).label(label.as_str()));
            }
            Group::with_title(title).element(snippet)
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}
