//! What files can do that the standard library has no function for.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt as _, path::Path};

/// Exchanges two files or directories at once (renameat2(2), `RENAME_EXCHANGE`): at no moment is
/// there none by one of the names. BPF file systems do since Linux 5.17.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let [one, other] = [one, other].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (one, other) = (one?, other?);
    // SAFETY: strings with a final zero that live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_exchanged() {
        let directory = tempfile::tempdir().expect("a directory");
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        fs::create_dir(&one).expect("a directory");
        fs::write(&other, "text").expect("a file");
        exchange(&one, &other).expect("two names");
        assert_eq!(fs::read_to_string(&one).expect("a file"), "text");
        assert!(other.is_dir());
        let missing = directory.path().join("missing");
        assert_eq!(exchange(&one, &missing).expect_err("one name").kind(), io::ErrorKind::NotFound);
    }
}
