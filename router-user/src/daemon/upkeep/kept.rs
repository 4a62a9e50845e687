//! The interface of what is looked after.

use anyhow::Result;

use crate::{daemon::state::Attachments, dataplane::Dataplane, health::Id};

/// Something that the data plane depends on and that others can change.
///
/// Both functions run while the attachments and the data plane are locked.
pub(super) trait Kept: Send {
    /// Its kind, for people and monitoring.
    fn what(&self) -> &'static str;

    /// The condition that it is not as it has to be.
    fn trouble(&self) -> Id;

    /// Returns its name within its kind.
    fn name(&self) -> &str;

    /// Returns `true` if the probe has to answer 503 while it has a fault.
    fn is_vital(&self) -> bool;

    /// Looks at it and changes nothing.
    ///
    /// # Errors
    /// Returns an error if it cannot be looked at.
    fn look(&self, attachments: &Attachments, plane: &Dataplane) -> Result<Look>;

    /// Sets it again; says what has been done, in words that follow what [`look`](Self::look) has
    /// said.
    ///
    /// # Errors
    /// Returns an error if it cannot be set.
    fn restore(&mut self, attachments: &mut Attachments, plane: &mut Dataplane) -> Result<&'static str>;

    /// Returns advice on how to find the program that changes it again and again.
    fn suspects(&self) -> String;
}

/// The outcome of a look.
pub(super) enum Look {
    /// It is as it has to be.
    Good,
    /// It works, but an operator should know this.
    Flawed(Id, String),
    /// It was changed; how it is now.
    Changed(String),
    /// Only others can bring it back: what is missing.
    Missing(String),
}
