//! The scripts of sh that run on the machines. They need no program there that a minimal Linux
//! with systemd has not, and depend on nothing here once they run.

/// See each file.
pub(super) const CONNECT: &str = include_str!("scripts/connect.sh");
pub(super) const LOOK: &str = concat!(include_str!("scripts/lib.sh"), include_str!("scripts/look.sh"));
pub(super) const STATUS: &str = concat!(include_str!("scripts/lib.sh"), include_str!("scripts/status.sh"));
pub(super) const SWITCH: &str = concat!(
    include_str!("scripts/lib.sh"),
    include_str!("scripts/undo.sh"),
    include_str!("scripts/switch.sh")
);
pub(super) const RECOVER: &str = concat!(
    include_str!("scripts/lib.sh"),
    include_str!("scripts/undo.sh"),
    include_str!("scripts/recover.sh")
);
pub(super) const REMOVE: &str = concat!(
    include_str!("scripts/lib.sh"),
    include_str!("scripts/undo.sh"),
    include_str!("scripts/remove.sh")
);

/// Unpacks the package that was copied to `$1`, without the configuration that it brings.
pub(super) const UNPACK: &str = r#"umask 022
dpkg-deb -x "$1/pls-router.deb" "$1/tree" && rm -rf "$1/tree/etc""#;

/// Shows what changes in the configuration; that there is no `diff` is no reason to fail.
pub(super) const DIFF: &str =
    r#"command -v diff >/dev/null || exit 0; diff -u --label installed --label new "$2" "$1""#;
