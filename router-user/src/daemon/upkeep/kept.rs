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

    /// Which one of its kind.
    fn name(&self) -> &str;

    /// Whether the probe has to answer 503 while it is not as it has to be.
    fn is_vital(&self) -> bool;

    /// Looks at it and changes nothing.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn look(&self, attachments: &Attachments, plane: &Dataplane) -> Result<Look>;

    /// Sets it again; says what has been done, in words that follow what [`look`](Self::look) has
    /// said.
    ///
    /// # Errors
    /// When it cannot be set.
    fn restore(&mut self, attachments: &mut Attachments, plane: &mut Dataplane) -> Result<&'static str>;

    /// Who may change it again and again, and how to find out.
    fn suspects(&self) -> String;
}

/// What a look has shown.
pub(super) enum Look {
    /// It is as it has to be.
    Good,
    /// So it is, but somebody should know this.
    Doubtful(Id, String),
    /// Somebody has changed it: what it is now.
    Changed(String),
    /// Only others can bring it back: what is missing.
    Missing(String),
}
