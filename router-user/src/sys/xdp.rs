//! The modes of XDP programs.

use std::fmt;

/// The mode in which an XDP program is attached to an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// In the driver, before a socket buffer exists: the fast way.
    Native,
    /// After the kernel has made a socket buffer: works on every driver, several times slower.
    Generic,
}

impl Mode {
    /// Every mode.
    pub const ALL: &[Self] = &[Self::Native, Self::Generic];

    /// Returns the other mode.
    pub const fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }

    /// Returns `native` or `generic`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
