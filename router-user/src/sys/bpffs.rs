//! The BPF file system.

use std::{ffi::CString, io, mem::MaybeUninit, os::unix::ffi::OsStrExt as _, path::Path};

use anyhow::{Context as _, Result, bail};

/// The usual mount point.
pub(crate) const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Returns `true` if `path`, or the nearest directory above it that exists, is on a BPF file
/// system.
///
/// # Errors
/// Returns an error if the directory cannot be examined.
pub(crate) fn is_bpffs(path: &Path) -> Result<bool> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let name = CString::new(existing.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `name` is a string with a final zero and `found` has room for what statfs(2) writes.
    if unsafe { libc::statfs(name.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot examine {}", existing.display()));
    }
    // SAFETY: statfs(2) has succeeded, so it has filled the structure.
    let found = unsafe { found.assume_init() };
    // glibc and musl do not agree on its sign.
    Ok(found.f_type as u64 == libc::BPF_FS_MAGIC as u64)
}

/// Makes sure that `path` is on a BPF file system. Mounts one at the usual place if that is
/// missing.
///
/// # Errors
/// Returns an error if it is not, and cannot be made so.
pub(crate) fn ensure(path: &Path) -> Result<()> {
    if is_bpffs(path)? {
        return Ok(());
    }
    if path.starts_with(MOUNT_POINT) {
        return mount(Path::new(MOUNT_POINT)).with_context(|| {
            format!("cannot mount a BPF file system at {MOUNT_POINT}: mount -t bpf bpf {MOUNT_POINT}")
        });
    }
    bail!("{} (admin.pins) is not on a BPF file system: mount -t bpf bpf DIRECTORY", path.display())
}

fn mount(at: &Path) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    let options = c"mode=0700";
    // SAFETY: NUL-terminated strings that live through the call.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), at.as_ptr(), c"bpf".as_ptr(), 0, options.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems() {
        assert!(!is_bpffs(Path::new("/proc/no/such")).expect("/proc is there"));
    }
}
