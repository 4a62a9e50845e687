//! The tables that a document may have.

/// A table and its keys.
#[derive(Clone, Copy, Debug)]
pub struct TableSchema {
    /// Its name.
    pub name: &'static str,
    /// Its form.
    pub form: Form,
    /// Its keys.
    pub keys: &'static [&'static str],
}

/// The form of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[name]`
    Single,
    /// `[[name]]`, any number of times.
    Repeated,
    /// `name = { .. }` in another table.
    Inline,
}

impl TableSchema {
    /// Returns the table's name as the file has it: `[snat]`, `[[forward]]`, or `timeouts` in a
    /// rule.
    #[must_use]
    pub fn title(&self) -> String {
        match self.form {
            Form::Single => format!("[{}]", self.name),
            Form::Repeated => format!("[[{}]]", self.name),
            Form::Inline => format!("`{}`", self.name),
        }
    }

    /// Returns the text to type for such a table.
    pub(super) fn example(&self) -> String {
        match self.form {
            Form::Single | Form::Repeated => self.title(),
            Form::Inline => format!("{} = {{ {} = ... }}", self.name, self.keys.first().unwrap_or(&"")),
        }
    }
}
