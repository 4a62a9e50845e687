//! Groups of users.

use std::{ffi::CStr, io, mem, ptr};

/// The most bytes that the entry of a group may take, members included.
const MOST: usize = 1 << 20;

/// Returns the number of a group by its name, as the machine's sources of names have it
/// (getgrnam(3)); `None` if there is no such group.
pub(crate) fn number(name: &CStr) -> Option<u32> {
    let mut buffer = vec![0; 1024];
    loop {
        // SAFETY: a plain C structure, for which zero is a value.
        let mut group: libc::group = unsafe { mem::zeroed() };
        let mut found = ptr::null_mut();
        // SAFETY: name and buffer outlive the call, the buffer has the length that is given, and
        // nothing that points into it is used after it.
        let error = unsafe {
            libc::getgrnam_r(name.as_ptr(), &raw mut group, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        if error == libc::ERANGE && buffer.len() < MOST {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        }
        return (error == 0 && !found.is_null()).then_some(group.gr_gid);
    }
}

/// Makes this process, all its threads, a member of a group besides those that it is in.
///
/// # Errors
/// Returns an error without CAP_SETGID, unless it is a member already.
pub(crate) fn join(group: u32) -> io::Result<()> {
    let mut groups = own()?;
    // SAFETY: takes and changes nothing.
    if groups.contains(&group) || unsafe { libc::getegid() } == group {
        return Ok(());
    }
    groups.push(group);
    // SAFETY: the list outlives the call, and is as long as is said. The C library has it hold for
    // all threads (nptl(7)).
    let result = unsafe { libc::setgroups(groups.len() as libc::size_t, groups.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the groups that this thread is in, besides its own one.
fn own() -> io::Result<Vec<libc::gid_t>> {
    // SAFETY: with no room, only the number is returned.
    let count = unsafe { libc::getgroups(0, ptr::null_mut()) };
    let mut groups = vec![0; usize::try_from(count).map_err(|_| io::Error::last_os_error())?];
    // SAFETY: the list has as much room as is said.
    let count = unsafe { libc::getgroups(count, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name() {
        assert_eq!(number(c"root"), Some(0));
        assert_eq!(number(c"no such group"), None);
    }
}
