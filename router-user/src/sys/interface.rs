//! Names and indexes of network interfaces.

use std::{
    ffi::{CStr, CString},
    io,
};

use anyhow::{Context as _, Result};

/// Returns the index of an interface in this network namespace, by its name or one of its
/// alternative names.
///
/// # Errors
/// Returns an error if there is no such interface.
pub fn interface_index(name: &str) -> Result<u32> {
    let text = CString::new(name).with_context(|| format!("{name:?} is not an interface name"))?;
    // SAFETY: a NUL-terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).with_context(|| format!("there is no interface {name}")),
        index => Ok(index),
    }
}

/// Returns the name of the interface with this index in this network namespace, if there is one.
pub fn interface_name(index: u32) -> Option<String> {
    let mut name: [libc::c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the function asks for.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: the function has succeeded, so the buffer holds a NUL-terminated name.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}
