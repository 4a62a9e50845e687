//! The user that this process runs as.

/// Returns that user's number.
pub(crate) fn own_user() -> u32 {
    // SAFETY: takes and changes nothing.
    unsafe { libc::geteuid() }
}
