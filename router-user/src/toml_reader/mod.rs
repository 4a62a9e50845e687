//! A reader of TOML that reports every error at once, with its place and the remedy.
//!
//! It stands on the `toml` crate's parsed document, which keeps the place of each key and value,
//! and goes on after syntax errors. Neither of the usual ways does as well: serde, also with
//! `toml::Spanned`, stops at the first wrong value; `toml-span` stops at the first syntax error,
//! and the place of a table is its whole body. The reader knows nothing of the router: tables and
//! values are [`crate::config`]'s.

mod diagnostic;
mod document;
mod schema;

pub use diagnostic::{Diagnostic, Severity};
pub use schema::{Form, TableSchema};

pub(crate) use document::{Document, List, Problem, Span, Table, closest, did_you_mean, wrong};
