//! The time, as the lab's logs write it.

use std::time::SystemTime;

/// Returns it.
pub(crate) fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
