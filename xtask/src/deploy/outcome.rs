//! The state in which a deploy leaves a host.

/// A host that did not fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// It was upgraded, put back by request or removed, as was asked for.
    Done,
    /// There was nothing to do.
    Already,
    /// An interrupted deploy was undone.
    BackAgain,
    /// A dry run: it would be changed.
    WouldChange,
}

/// A host that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Failure {
    /// Before anything was changed.
    Untouched,
    /// The previous version runs again.
    PutBack,
    /// The previous version could not be put back, or is not as it was.
    NotAsBefore,
    /// The connection broke; the machine goes on by itself.
    Unknown,
}

/// The state of a host at the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Good(State),
    Failed(Failure),
    /// Its turn did not come.
    NotReached,
}

impl Outcome {
    /// In words, for the list at the end.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Good(State::Done) => "done",
            Self::Good(State::Already) => "was done already, left alone",
            Self::Good(State::BackAgain) => "the interrupted deploy was undone",
            Self::Good(State::WouldChange) => "would be done",
            Self::Failed(Failure::Untouched) => "FAILED, nothing was changed",
            Self::Failed(Failure::PutBack) => "FAILED, the previous version is back",
            Self::Failed(Failure::NotAsBefore) => "FAILED, and it is NOT as before: log in",
            Self::Failed(Failure::Unknown) => "FAILED, the connection broke: see `deploy status`",
            Self::NotReached => "not touched",
        }
    }

    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Failed(_))
    }
}
