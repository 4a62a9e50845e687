//! Directories and files that no other user can change, or hold a lock on.
//!
//! A user who may write a directory can swap its contents, and one who may open it can hold a lock
//! on it. So the files that the daemon trusts are below directories that belong to root (or to the
//! user that it runs as), all the way from `/`, and its own directories are for that user alone.

use std::{
    error::Error,
    ffi::CStr,
    fmt,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use tracing::warn;

/// The mode of the daemon's own directories.
const OWN: u32 = 0o700;
/// The mode of such a directory that a group may pass through.
const PASSABLE: u32 = 0o750;
/// The group whose members may use the API's socket, to look.
pub(crate) const ONLOOKERS: &CStr = c"pls-router";
/// Write permission of the group and of others.
const WRITE: u32 = 0o022;
/// Any permission of the group and of others.
const ANY: libc::mode_t = 0o077;
/// Only the owner of something in a directory may remove or rename it (inode(7)).
const STICKY: u32 = 0o1000;
/// As many symbolic links as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// The number of the user that this process runs as.
pub(crate) fn own_user() -> u32 {
    // SAFETY: takes and changes nothing.
    unsafe { libc::geteuid() }
}

/// Has what this process makes from now on be for its user alone, where nothing else is said.
pub(crate) fn set_umask() {
    // SAFETY: takes and changes nothing but a number of the process.
    unsafe { libc::umask(ANY) };
}

/// Returns `true` if only root and this process's user own it and may write it.
pub(crate) fn is_ours(metadata: &Metadata) -> bool {
    is_owner(metadata.uid()) && metadata.mode() & WRITE == 0
}

/// Returns `true` of root and of the user that this process runs as.
pub(crate) fn is_owner(user: u32) -> bool {
    user == 0 || user == own_user()
}

/// A place whose contents another user could change.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The place and the reason.
    pub(crate) why: String,
    /// The remedy.
    pub(crate) fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  fix: {}", self.why, self.fix)
    }
}

impl Error for Refusal {}

/// Checks that no other user can replace `path` or its contents, as far as they exist.
///
/// # Errors
/// Returns a [`Refusal`] if another user owns, or may write, a directory on the way, and another
/// error if that cannot be found out.
pub(crate) fn examine(path: &Path) -> Result<()> {
    examine_way(path, &mut 0)
}

fn examine_way(path: &Path, links: &mut u32) -> Result<()> {
    let mut way = PathBuf::new();
    for component in path.components() {
        way.push(component);
        // The directories above have been examined, so no other user changes this one.
        let metadata = match fs::symlink_metadata(&way) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot examine {}", way.display())),
        };
        let shown = way.display().to_string();
        let (user, mode) = (metadata.uid(), metadata.mode());
        if !is_owner(user) {
            // A directory above may be a user's home: not to be changed for this.
            let fix = if way == path {
                format!(
                    "remove it if it is not of your making, or else: chown root {shown}; chmod go-w {shown}"
                )
            } else {
                format!("name another path than {}, below a directory of root's", path.display())
            };
            let why = format!(
                "{shown} belongs to user {user}, who could change what is in it, or hold a lock on it"
            );
            bail!(Refusal { why, fix });
        }
        if metadata.is_symlink() {
            *links += 1;
            if *links > MAX_LINKS {
                let why = format!("{shown} leads to nothing but symbolic links");
                bail!(Refusal { why, fix: "name another path".to_owned() });
            }
            let target = fs::read_link(&way).with_context(|| format!("cannot read {shown}"))?;
            // An absolute one replaces the way.
            way.pop();
            way.push(target);
            let parents = way.components().any(|component| component == Component::ParentDir);
            if parents {
                way = fs::canonicalize(&way).with_context(|| format!("cannot follow {shown}"))?;
            }
            examine_way(&way, links)?;
        } else if mode & WRITE != 0 && mode & STICKY == 0 {
            let why = format!(
                "{shown} may be written by others (mode {:04o}), who could change what is in it",
                mode & 0o7777
            );
            bail!(Refusal { why, fix: format!("chmod go-w {shown}") });
        }
    }
    Ok(())
}

/// Makes a directory, and those above it that are not there, for this process's user alone,
/// whatever the umask is; leaves those that are there as they are.
///
/// # Errors
/// Returns an error as [`examine`], and when a directory cannot be made.
pub(crate) fn make(path: &Path) -> Result<()> {
    examine(path)?;
    DirBuilder::new()
        .recursive(true)
        .mode(OWN)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    // Between the two, another user may have made it where any user may make directories.
    examine(path)
}

/// Replaces a file, for this process's user alone: under another name first, so that there is a
/// whole one at every moment, also after a loss of power. Makes the directory if it is missing.
///
/// # Errors
/// Returns an error if the file system refuses. The file is then as it was.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Left by a daemon that was killed in the middle of this; whatever it is, it is not written
    // through.
    match fs::remove_file(new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(new, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(new);
    })
}

/// Takes what others may do with a directory of the daemon's own away from them, if they may do
/// anything.
///
/// # Errors
/// Returns an error as [`examine`], when it is no directory, and when it cannot be changed.
pub(crate) fn close(directory: &Path) -> Result<()> {
    examine(directory)?;
    let shown = directory.display();
    let metadata = fs::symlink_metadata(directory).with_context(|| format!("cannot examine {shown}"))?;
    if !metadata.is_dir() {
        bail!("{shown} is no directory\n  fix: remove it, or name another path");
    }
    if metadata.mode() & ANY != 0 {
        fs::set_permissions(directory, Permissions::from_mode(OWN))
            .with_context(|| format!("cannot take {shown} away from other users"))?;
        warn!(
            "{shown} was open to other users (mode {:04o}): it is for root alone now",
            metadata.mode() & 0o7777
        );
    }
    Ok(())
}

/// Lets a group pass through a directory of the daemon's own. One that more users may enter stays
/// as it is.
///
/// # Errors
/// Returns an error as [`examine`], if the group cannot enter a directory that is another group's,
/// and if the directory cannot be changed.
pub(crate) fn open_to(directory: &Path, group: u32) -> Result<()> {
    examine(directory)?;
    let shown = directory.display();
    let metadata = fs::symlink_metadata(directory).with_context(|| format!("cannot examine {shown}"))?;
    match metadata.mode() & 0o777 {
        mode if mode & 0o005 == 0o005 => Ok(()),
        PASSABLE if metadata.gid() == group => Ok(()),
        OWN => {
            // The group first: the one that has it until then is not to enter.
            chown(directory, None, Some(group))
                .with_context(|| format!("cannot give {shown} to the group"))?;
            fs::set_permissions(directory, Permissions::from_mode(PASSABLE))
                .with_context(|| format!("cannot let the group into {shown}"))
        }
        mode => bail!(
            "{shown} is not for them (mode {mode:04o}, group {})\n  fix: chgrp {group} {shown}; chmod 0750 {shown}",
            metadata.gid()
        ),
    }
}

/// Opens a directory, and not whatever a symbolic link in its place leads to.
pub(crate) fn open(directory: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(directory)
}

/// A process that holds a lock.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) user: u32,
    pub(crate) name: String,
}

/// Finds the process that holds a lock (flock(2)) on an open file, as far as this process can see.
pub(crate) fn holder(file: &File) -> Option<Holder> {
    let inode = file.metadata().ok()?.ino();
    let device = file.metadata().ok()?.dev();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| lock_on(line, device, inode))?;
    let process = PathBuf::from(format!("/proc/{pid}"));
    let user = fs::metadata(&process).ok()?.uid();
    let name = fs::read_to_string(process.join("comm")).ok()?.trim().to_owned();
    Some(Holder { pid, user, name })
}

/// The process of a line of `/proc/locks` (proc_locks(5)), if that is a lock on this file.
fn lock_on(line: &str, device: u64, inode: u64) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, _, pid, file, ..] = words[..] else { return None };
    let mut file = file.split(':');
    let mut hexadecimal = || u32::from_str_radix(file.next()?, 16).ok();
    let (major, minor) = (hexadecimal()?, hexadecimal()?);
    let is_it = libc::makedev(major, minor) == device && file.next()?.parse() == Ok(inode);
    pid.parse().ok().filter(|_| is_it)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn new_directories_are_closed_to_others() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("a/b");
        make(&path).expect("it is made");
        assert_eq!((mode(&path), mode(&place.path().join("a"))), (OWN, OWN));
        set_mode(&path, 0o755);
        make(&path).expect("it is there");
        assert_eq!(mode(&path), 0o755);
        close(&path).expect("it is closed");
        assert_eq!(mode(&path), OWN);
    }

    #[test]
    fn directories_that_others_may_write_are_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let open = place.path().join("open");
        let below = open.join("below");
        make(&below).expect("it is made");
        set_mode(&open, 0o777);
        for result in [examine(&below), make(&below.join("more")), close(&below), close(&open)] {
            let text = result.expect_err("others may write it").to_string();
            assert!(text.contains(&format!("{} may be written", open.display())), "{text}");
            assert!(text.contains(&format!("fix: chmod go-w {}", open.display())), "{text}");
        }
        // As /tmp.
        set_mode(&open, 0o1777);
        examine(&below).expect("nobody else can rename what is ours");
        set_mode(&open, 0o770);
        examine(&below).expect_err("a group is somebody else, too");
        set_mode(&open, 0o755);
        // By way of a link, absolute or not.
        let target = place.path().join("target");
        make(&target).expect("it is made");
        for (name, to) in [
            ("absolute", target.as_path()),
            ("relative", Path::new("target")),
            ("up", Path::new("./open/../target")),
        ] {
            let link = place.path().join(name);
            symlink(to, &link).expect("a link");
            set_mode(&target, 0o777);
            examine(&link.join("x")).expect_err(name);
            set_mode(&target, 0o700);
            examine(&link.join("x")).expect(name);
        }
        symlink("loop", place.path().join("loop")).expect("a link");
        examine(&place.path().join("loop")).expect_err("it leads nowhere");
    }

    #[test]
    fn directories_of_another_user_are_refused() {
        if own_user() != 0 {
            return;
        }
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("theirs");
        make(&path).expect("it is made");
        chown(&path, Some(65534), None).expect("we are root");
        let text = close(&path).expect_err("it is not ours").to_string();
        assert!(text.contains("belongs to user 65534") && text.contains("fix: "), "{text}");
        let link = place.path().join("link");
        symlink("/", &link).expect("a link");
        std::os::unix::fs::lchown(&link, Some(65534), None).expect("we are root");
        examine(&link.join("tmp")).expect_err("a link of somebody else's");
    }

    #[test]
    fn a_group_is_let_in_and_nobody_else() {
        if own_user() != 0 {
            return;
        }
        const GROUP: u32 = 4242;
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("theirs");
        make(&path).expect("it is made");
        let state = || (mode(&path), fs::symlink_metadata(&path).expect("it is there").gid());
        for _ in 0..2 {
            open_to(&path, GROUP).expect("it is the daemon's own");
            assert_eq!(state(), (PASSABLE, GROUP));
        }
        // Another group's, and one that may write: somebody has decided otherwise.
        open_to(&path, GROUP + 1).expect_err("another group's");
        assert_eq!(state(), (PASSABLE, GROUP));
        set_mode(&path, 0o770);
        open_to(&path, GROUP).expect_err("a group that may write");
        set_mode(&path, 0o755);
        open_to(&path, GROUP + 1).expect("everybody may enter");
        assert_eq!(state(), (0o755, GROUP));
        close(&path).expect("it is closed");
        assert_eq!(mode(&path), OWN);
    }

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let place = tempfile::tempdir().expect("a directory");
        let file = open(place.path()).expect("it is there");
        assert_eq!(holder(&file), None);
        file.try_lock().expect("nobody has it");
        let holder = holder(&open(place.path()).expect("it is there")).expect("we have it");
        assert_eq!((holder.pid, holder.user), (std::process::id(), own_user()));
        let link = place.path().join("link");
        symlink("/", &link).expect("a link");
        open(&link).expect_err("a link is none");
    }
}
